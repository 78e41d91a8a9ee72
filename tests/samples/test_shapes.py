"""The shapes sample: what it draws, and a short real training and detection."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrcnn import utils
from mrcnn.errors import UserError
from mrcnn.training.log import read_log
from samples.shapes import shapes
from tests.support.tiny import SmallConfig

SCRIPT = Path(shapes.__file__)


class TinyConfig(shapes.ShapesConfig):
    """As small as the network gets, for a few steps on a slow machine."""

    IMAGES_PER_GPU = 1
    STEPS_PER_EPOCH = 3
    VALIDATION_STEPS = 1
    BACKBONE = staticmethod(SmallConfig.BACKBONE)
    COMPUTE_BACKBONE_SHAPE = staticmethod(SmallConfig.COMPUTE_BACKBONE_SHAPE)
    TOP_DOWN_PYRAMID_SIZE = 32
    FPN_CLASSIF_FC_LAYERS_SIZE = 64
    RPN_CONV_CHANNELS = 32
    MASK_CONV_CHANNELS = 32
    POST_NMS_ROIS_TRAINING = 100
    POST_NMS_ROIS_INFERENCE = 50
    PRE_NMS_LIMIT = 300


def dataset_of(count, seed=0):
    dataset = shapes.ShapesDataset()
    dataset.load_shapes(count, 128, 96, seed=seed)
    dataset.prepare()
    return dataset


def test_images_and_masks_belong_together():
    dataset = dataset_of(30)
    assert dataset.class_names == ["BG", "square", "circle", "triangle"]
    seen = set()
    for image_id in dataset.image_ids:
        image = dataset.load_image(image_id)
        mask, class_ids = dataset.load_mask(image_id)
        info = dataset.image_info[image_id]
        assert image.shape == (128, 96, 3) and image.dtype == np.uint8
        assert mask.shape == (128, 96, len(class_ids)) and mask.dtype == bool
        assert class_ids.dtype == np.int32 and 1 <= len(class_ids) <= 4
        assert mask.sum(axis=-1).max() <= 1
        assert mask.any(axis=(0, 1)).all(), "a shape is hidden entirely"
        assert (image[~mask.any(axis=-1)] == info["bg_color"]).all()
        for i, (name, color, _) in enumerate(dataset.image_reference(image_id)):
            assert (image[mask[:, :, i]] == color).all()
            assert dataset.class_names[class_ids[i]] == name
        seen.update(class_ids.tolist())
    assert seen == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "area"), [("square", 41 * 41), ("circle", np.pi * 20.5**2), ("triangle", 41 * 47 / 2)]
)
def test_shapes_have_their_size_and_place(name, area):
    mask = shapes.ShapesDataset.shape_mask((100, 100), name, (50, 40, 20))
    assert mask.sum() == pytest.approx(area, rel=0.03)
    ((y1, x1, y2, x2),) = utils.extract_bboxes(mask[:, :, None])
    assert (y1, y2) == (20, 61)
    assert x1 + x2 == 101  # centred on the pixel centre 50.5


def test_same_seed_same_images():
    first, second, other = dataset_of(3), dataset_of(3), dataset_of(3, seed=1)
    np.testing.assert_array_equal(first.load_image(2), second.load_image(2))
    assert (first.load_image(2) != other.load_image(2)).any()


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match="shapes need 80 pixels"):
        shapes.ShapesDataset().load_shapes(1, 64, 64)


def test_trains_and_detects(tmp_path):
    model = shapes.modellib.MaskRCNN("training", TinyConfig(), str(tmp_path / "logs"))
    shapes.train(model, epochs=1, images=6)
    run = Path(model.log_dir)
    (row,) = read_log(next(run.glob("*.csv")))
    losses = {name: value for name, value in row.items() if name.endswith("loss")}
    assert "mrcnn_mask_loss" in losses and "val_loss" in losses
    assert all(np.isfinite(value) for value in losses.values())
    assert row["loss"] > 0

    class TinyInference(TinyConfig):
        DETECTION_MIN_CONFIDENCE = 0.0

    detector = shapes.modellib.MaskRCNN("inference", TinyInference(), str(tmp_path / "logs"))
    shapes.load_weights(detector, "last")
    (result,) = shapes.detect(detector, str(tmp_path / "found"), count=1)
    assert os.listdir(tmp_path / "found") == ["shapes_000.png"]
    count = len(result["rois"])
    assert result["masks"].shape == (128, 128, count)
    assert set(result["class_ids"]) <= {1, 2, 3}
    assert ((result["scores"] >= 0) & (result["scores"] <= 1)).all()


def run_script(*arguments, cwd):
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_line_from_another_directory(tmp_path):
    shown = run_script("--help", cwd=tmp_path)
    assert shown.returncode == 0 and "shapes.py train --weights none" in shown.stdout
    refused = run_script("detect", "--weights", "none", cwd=tmp_path)
    assert refused.returncode == 2
    assert "error: detect needs trained weights" in refused.stderr
    assert "Traceback" not in refused.stderr
