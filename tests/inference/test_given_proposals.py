"""Detection from given proposals, on one size of the image and on a pyramid of sizes."""

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.inference.given_proposals import nearest_scale
from mrcnn.model import MaskRCNN
from mrcnn.pixels.boxes import denorm_boxes
from tests.network.test_models import set_weights
from tests.support.tiny import TinyConfig


class PadConfig(TinyConfig):
    IMAGE_RESIZE_MODE = "pad64"
    IMAGE_MIN_DIM = 64
    IMAGE_MIN_SCALE = 1
    DETECTION_MAX_INSTANCES = 30
    MASK_ROI_SCALE = 1.2


def model_of(config, folder):
    model = MaskRCNN("inference", config, str(folder))
    set_weights(model.keras_model)
    model.bank.layers["mrcnn_class_logits"].bias.assign([0.0, 20.0, 0.0])
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Shared: it finds objects wherever it is asked, and suppresses nothing."""
    config = PadConfig()
    config.DETECTION_NMS_THRESHOLD = 1.0
    return model_of(config, tmp_path_factory.mktemp("logs"))


@pytest.mark.parametrize(
    "side, scales, chosen",
    [
        (224, (1,), 0),
        (224, (0.5, 1, 2), 1),
        (100, (0.5, 1, 2), 2),
        (500, (0.5, 1, 2), 0),
        (224 / 1.4, (1, 2), 0),
        (224 / 1.42, (1, 2), 1),
    ],
)
def test_the_rule_of_224_pixels(side, scales, chosen):
    boxes = np.array([[5, 7, 5 + side / 2, 7 + side * 2]])
    assert nearest_scale(boxes, scales).tolist() == [chosen]
    # By its definition: the scaled region nearest to 224 x 224 in area, as a factor.
    factors = [max(a / 224**2, 224**2 / a) for a in (side**2 * z**2 for z in scales)]
    assert chosen == int(np.argmin(factors))


@pytest.mark.parametrize(
    "architecture, convention", [("fpn", "exact"), ("fpn", "matterport"), ("c4", "exact")]
)
def test_own_proposals_give_the_same_detections(architecture, convention, rng, tmp_path):
    class Own(PadConfig):
        ARCHITECTURE, PIXEL_CONVENTION = architecture, convention

    config = Own()
    model = model_of(config, tmp_path)
    image = rng.integers(0, 255, (64, 128, 3)).astype("uint8")  # no padding
    molded, metas, _ = model.mold_inputs([image])
    rois = model._fast()(molded, metas).rois[0]
    exact = config.exact_pixels
    pixels = (
        rois * np.tile(image.shape[:2], 2)
        if exact
        else rois * (np.tile(image.shape[:2], 2) - 1) + np.array([0, 0, 1, 1])
    )
    pixels = pixels[(rois != 0).any(axis=1)]
    [expected], [found] = model.detect([image]), model.detect_proposals([image], [pixels])
    assert len(found["scores"]) == len(expected["scores"]) > 3
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)
    np.testing.assert_allclose(found["rois"], expected["rois"], atol=1)
    np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
    assert (found["masks"] != expected["masks"]).mean() < 0.01
    assert np.asarray(denorm_boxes(rois, image.shape, exact=exact)).shape == rois.shape


def test_a_pyramid_of_one_size_twice_is_that_size(rng, model):
    image = rng.integers(0, 255, (50, 70, 3)).astype("uint8")
    boxes = np.array([[5, 5, 30, 30], [10, 20, 45, 60], [0, 0, 50, 70]], float)
    [once] = model.detect_proposals([image], [boxes], scales=(2.0,))
    [twice] = model.detect_proposals([image], [boxes], scales=(2.0, 2.0))
    assert len(once["scores"])
    for key in once:
        np.testing.assert_array_equal(once[key], twice[key])


def test_regions_are_seen_at_their_own_size(rng, model):
    # 32 pixels belong to the larger image, 48 to the smaller one: as each alone.
    image = rng.integers(0, 255, (64, 64, 3)).astype("uint8")
    small, large = np.array([[2.0, 2, 34, 34]]), np.array([[8.0, 8, 56, 56]])
    scales = (5.0, 7.0)
    [both] = model.detect_proposals([image], [np.concatenate([small, large])], scales=scales)
    [one] = model.detect_proposals([image], [small], scales=scales[1:])
    [other] = model.detect_proposals([image], [large], scales=scales[:1])
    expected = sorted([*one["scores"], *other["scores"]])
    np.testing.assert_allclose(sorted(both["scores"]), expected, atol=1e-4)


def test_more_proposals_than_the_network_takes_at_once(rng, model):
    image = rng.integers(0, 255, (64, 64, 3)).astype("uint8")
    corners = rng.uniform(0, 40, (95, 2))
    boxes = np.concatenate([corners, corners + 20], axis=1)
    [found] = model.detect_proposals([image], [boxes])
    parts = [
        model.detect_proposals([image], [part])[0]["scores"]
        for part in (boxes[:40], boxes[40:80], boxes[80:])
    ]
    best = np.sort(np.concatenate(parts))[::-1][:30]
    np.testing.assert_allclose(found["scores"], best, atol=1e-5)


def test_no_proposals(rng, model):
    image = rng.integers(0, 255, (64, 64, 3)).astype("uint8")
    [found] = model.detect_proposals([image], [np.zeros((0, 4))])
    assert found["masks"].shape == (64, 64, 0) and found["rois"].shape == (0, 4)


@pytest.mark.parametrize("scales", [(), (0,), (-1.0, 2.0), (np.inf,)])
def test_wrong_scales(scales, model):
    with pytest.raises(UserError, match="scales = "):
        model.detect_proposals([np.zeros((64, 64, 3), np.uint8)], [np.zeros((0, 4))], scales)


@pytest.mark.parametrize("proposals", [np.zeros((3, 5)), np.full((1, 4), np.nan), np.zeros(4)])
def test_wrong_proposals(proposals, model):
    with pytest.raises(UserError, match="proposals of shape") as error:
        model.detect_proposals([np.zeros((64, 64, 3), np.uint8)], [proposals])
    assert "\n" not in str(error.value)
