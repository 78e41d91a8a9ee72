"""Truncated SVD: the best approximation, whole rank is the same, files load again."""

import numpy as np
import pytest
from keras import ops

from mrcnn.compression import compress, rank_of_energy, truncated_svd
from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.weights.legacy_h5 import ranks_in_file
from tests.network.test_models import batch, set_weights
from tests.support.tiny import TinyConfig


class C4Config(TinyConfig):
    ARCHITECTURE = "c4"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = MaskRCNN("inference", TinyConfig(), str(tmp_path_factory.mktemp("logs")))
    set_weights(model.keras_model)
    return model


def outputs(model):
    return [
        np.asarray(o)
        for o in model.keras_model.predict_on_batch(
            list(batch(model.config, np.random.default_rng(4)))
        )
    ]


def test_truncation_is_the_best_of_its_rank(rng):
    # Equation 15 by eigenvectors of W^T W; the error is what the dropped values leave.
    kernel = rng.normal(size=(9, 6))
    values, vectors = np.linalg.eigh(kernel.T @ kernel)
    for rank in (1, 3, 6):
        first, second = truncated_svd(kernel, rank)
        assert first.shape == (9, rank) and second.shape == (rank, 6)
        projection = vectors[:, -rank:] @ vectors[:, -rank:].T
        np.testing.assert_allclose(first @ second, kernel @ projection, atol=1e-10)
        error = np.square(kernel - first @ second).sum()
        np.testing.assert_allclose(error, values[: 6 - rank].sum(), atol=1e-10)


@pytest.mark.parametrize("energy, rank", [(0.5, 1), (0.8, 1), (0.81, 2), (0.99, 3), (1.0, 3)])
def test_rank_of_energy(energy, rank):
    assert rank_of_energy(np.sqrt([8.0, 1.5, 0.5]), energy) == rank


def test_whole_rank_changes_nothing_and_the_model_stays(model):
    before = outputs(model)
    whole = compress(model, rank=32)  # both layers have 32 outputs
    for old, new in zip(before, outputs(whole), strict=True):
        np.testing.assert_allclose(old, new, atol=2e-3)
    for old, again in zip(before, outputs(model), strict=True):
        np.testing.assert_array_equal(old, again)


def test_layers_become_two_and_smaller(model):
    small = compress(model, rank=(5, 3))
    assert small.config.FPN_CLASSIF_FC_RANKS == (5, 3)
    assert model.config.FPN_CLASSIF_FC_RANKS == (0, 0)
    thin, whole = (small.bank.layers[n] for n in ("mrcnn_class_conv1_svd", "mrcnn_class_conv1"))
    assert tuple(thin.kernel.shape) == (7, 7, 16, 5) and not thin.use_bias
    assert tuple(whole.kernel.shape) == (1, 1, 5, 32)
    saved = 7 * 7 * 16 * 32 + 32 * 32 - 5 * (7 * 7 * 16 + 32) - 3 * (32 + 32)
    assert model.keras_model.count_params() - small.keras_model.count_params() == saved
    kernel = ops.convert_to_numpy(model.bank.layers["mrcnn_class_conv1"].kernel).reshape(-1, 32)
    first, second = truncated_svd(kernel.astype("float64"), 5)
    got = ops.convert_to_numpy(thin.kernel).reshape(-1, 5) @ ops.convert_to_numpy(
        whole.kernel
    ).reshape(5, 32)
    np.testing.assert_allclose(got, first @ second, atol=1e-5)


def test_energy_chooses_the_ranks(model):
    low, high = (compress(model, energy=e).config.FPN_CLASSIF_FC_RANKS for e in (0.5, 0.95))
    assert all(1 <= a < b <= 32 for a, b in zip(low, high, strict=True))


def test_saved_file_loads_and_detects(model, tmp_path, rng):
    small = compress(model, rank=6)
    small.save_weights(tmp_path / "small.h5")
    assert ranks_in_file(tmp_path / "small.h5") == (6, 6)
    model.save_weights(tmp_path / "whole.h5")
    assert ranks_in_file(tmp_path / "whole.h5") == (0, 0)
    again = MaskRCNN("inference", small.config, str(tmp_path))
    report = again.load_weights(tmp_path / "small.h5")
    assert report.assigned == report.total
    image = rng.integers(0, 255, (64, 64, 3)).astype("uint8")
    one, other = small.detect([image])[0], again.detect([image])[0]
    np.testing.assert_array_equal(one["rois"], other["rois"])
    with pytest.raises(UserError, match="mrcnn_class_conv1"):
        model.load_weights(tmp_path / "small.h5", by_name=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either a rank or an energy"),
        ({"rank": 3, "energy": 0.5}, "either a rank or an energy"),
        ({"rank": 0}, "rank = 0"),
        ({"rank": 33}, "rank = 33"),
        ({"rank": (3,)}, "rank = "),
        ({"energy": 0.0}, "energy = 0"),
        ({"energy": 1.1}, "energy = 1.1"),
    ],
)
def test_wrong_arguments(arguments, message, model):
    with pytest.raises(UserError, match=message) as error:
        compress(model, **arguments)
    assert "\n" not in str(error.value)


def test_needs_whole_layers(model, tmp_path):
    with pytest.raises(UserError, match="whole fully connected"):
        compress(compress(model, rank=3), rank=2)
    with pytest.raises(UserError, match="whole fully connected"):
        compress(MaskRCNN("inference", C4Config(), str(tmp_path)), rank=2)
