"""What every test may ask for: a tiny configuration, and the real data where it is at hand."""

import os
import signal
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

from tests.support.tiny import TinyConfig, small_backbone

# What a script runs in the background has Ctrl-C ignored, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where two workers share the files, these begin first, so that both end at about the same time.
LONG_FILES = (
    "training/test_fit.py",
    "samples/nucleus/test_cli.py",
    "training/test_alternating.py",
    "training/test_devices.py",
    "network/test_models.py",
    "campaigns/test_campaigns.py",
    "network/test_architecture.py",
    "samples/nucleus/test_files.py",
    "test_export.py",
    "test_fine_tuning.py",
    "test_segmenter.py",
    "cli/test_main.py",
    "samples/nucleus/test_notebooks.py",
    "inference/test_fast_network.py",
    "inference/test_given_proposals.py",
    "test_model.py",
    "samples/test_shapes.py",
)


def pytest_collection_modifyitems(items):
    """Put the tests of the long files first; all else stays in its order."""
    ranks = {f"tests/{name}": rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.location[0], len(ranks)))


@pytest.fixture
def tiny_config():
    """A `TinyConfig` of the test's own."""
    return TinyConfig()


@pytest.fixture
def rng():
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real data and reference outputs, `$MRCNN_SHARED` or `../shared`."""
    root = Path(__file__).resolve().parent.parent.parent / "shared"
    path = Path(os.environ.get("MRCNN_SHARED", root))
    if not (path / "legacy" / "expected.npz").is_file():
        pytest.skip(f"no reference data in {path}: set MRCNN_SHARED to its folder")
    return path


@pytest.fixture
def small(monkeypatch):
    """The nucleus configuration with a network that compiles in seconds."""
    from samples.nucleus import nucleus

    monkeypatch.setattr(nucleus.NucleusConfig, "BACKBONE", staticmethod(small_backbone))
    monkeypatch.setattr(
        nucleus.NucleusConfig,
        "COMPUTE_BACKBONE_SHAPE",
        staticmethod(
            lambda shape: np.array([[shape[0] // s, shape[1] // s] for s in (4, 8, 16, 32, 64)])
        ),
    )
    sizes = {
        "IMAGE_MIN_DIM": 64,
        "IMAGE_MAX_DIM": 64,
        "TOP_DOWN_PYRAMID_SIZE": 16,
        "IMAGE_MIN_SCALE": 1.0,
        "IMAGE_SCALE_JITTER": (1.0, 1.0),
        "RPN_CONV_CHANNELS": 16,
        "FPN_CLASSIF_FC_LAYERS_SIZE": 32,
        "MASK_CONV_CHANNELS": 16,
        "PRE_NMS_LIMIT": 200,
        "POST_NMS_ROIS_TRAINING": 50,
        "POST_NMS_ROIS_INFERENCE": 40,
        "TRAIN_ROIS_PER_IMAGE": 16,
        "MAX_GT_INSTANCES": 100,
        "DETECTION_MAX_INSTANCES": 40,
        "PRECISION": "float32",
    }
    for name, value in sizes.items():
        monkeypatch.setattr(nucleus.NucleusConfig, name, value)
