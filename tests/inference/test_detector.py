"""The first forward pass, and detection at the scale that follows from it."""

import math

import numpy as np
import pytest

from mrcnn.inference import detector
from mrcnn.inference.detector import FIRST_FACTORS, MORE_PASSES, find_scales
from mrcnn.inference.fast_network import Found
from mrcnn.model import MaskRCNN
from mrcnn.pixels.image_meta import parse_image_meta
from mrcnn.pixels.object_size import object_scale
from tests.network.test_models import set_weights
from tests.support.tiny import TinyConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*DETECTION_MAX_INSTANCES")


class ScaleConfig(TinyConfig):
    IMAGES_PER_GPU = 2
    IMAGE_RESIZE_MODE = "pad64"
    IMAGE_MIN_DIM = 64
    PIXEL_CONVENTION = "exact"
    OBJECT_SIZE = 40
    SCALE_LIMITS = (0.5, 3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = MaskRCNN("inference", ScaleConfig(), str(tmp_path_factory.mktemp("logs")))
    set_weights(model.keras_model)
    return model


def make_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def same(one, other):
    np.testing.assert_array_equal(one["rois"], other["rois"])
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)
    for a, b in zip(one["patches"], other["patches"], strict=True):
        assert a[:2] == b[:2]
        np.testing.assert_array_equal(a[2], b[2])


def test_the_scale_follows_from_the_boxes_of_a_first_forward_pass(model):
    images = [make_image(64, 64), make_image(90, 100, 1)]
    low, high = model.config.SCALE_LIMITS
    for image, scale in zip(images, model.find_scales(images), strict=True):
        [found] = model.detect_patches([image], scales=[None])
        assert low < scale < high
        # Scales have steps of 2 ** .25, and the boxes of results are rounded to whole pixels.
        assert scale == pytest.approx(object_scale(found["rois"], model.config), rel=0.15)


class Shortsighted:
    """Stands in for a network: it sees squares of 6 to 96 pixels only, and takes the halves of
    those above 48 for objects."""

    def __init__(self, side):
        self.side, self.looks = side, []

    def __call__(self, images, metas, masks):
        [scale] = parse_image_meta(metas)["scale"]
        self.looks.append(round(float(scale), 3))
        boxes = np.zeros((1, 5, 6), np.float32)
        seen = self.side * scale
        if 6 <= seen <= 96:
            seen = seen / 2 if seen > 48 else seen
            boxes[0, :3] = [0, 0, *np.divide(seen, images.shape[1:3]), 1, 0.9]
        return Found(boxes, None, None, None, None)


def scale_found(side, shape=(64, 64), **keys):
    """(scale, looks) for an image with objects of this side."""
    config = type("Config", (ScaleConfig,), {"SCALE_LIMITS": (0.01, 9.0), **keys})()
    network = Shortsighted(side)
    [scale] = find_scales(network, [make_image(*shape)], config)
    return scale, network.looks


@pytest.mark.parametrize("side", [10, 25])
def test_one_look_is_enough_for_objects_that_are_not_too_large(side):
    scale, looks = scale_found(side)
    assert looks == [1.0] and scale == pytest.approx(40 / side, rel=0.1)
    assert math.log2(scale) * 4 == pytest.approx(round(math.log2(scale) * 4))


@pytest.mark.parametrize("side", [33, 46])
def test_a_scale_that_is_near_is_kept(side):
    assert scale_found(side) == (1.0, [1.0])


def test_a_large_image_is_seen_coarsely_first():
    shape = (400, 400)
    assert scale_found(80, shape) == (0.5, [0.5])  # 40 there: as asked for
    scale, looks = scale_found(60, shape)  # 30 there
    assert looks == [0.5] and scale == pytest.approx(40 / 60, rel=0.1)
    scale, looks = scale_found(40, shape)  # 20 there, which might be the largest ones only
    assert looks == [0.5, 1.0] and scale == 1.0
    scale, looks = scale_found(10, shape)  # too small to be seen there
    assert looks == [0.5, 1.0] and scale == pytest.approx(4, rel=0.1)
    scale, looks = scale_found(160, shape, OBJECT_SIZE=20)  # 40 for 80 there: parts
    assert looks == [0.5, 0.25, 0.125] and scale == 0.125


def test_parts_of_large_objects_lead_to_another_look():
    scale, looks = scale_found(90, OBJECT_SIZE=20)
    # Seen as 45 at first, which asks for 20 / 45; seen whole there, and from near at last.
    assert looks == [1.0, 0.42, 0.21]
    assert scale == pytest.approx(20 / 90, rel=0.1)


def test_other_scales_are_tried_where_the_first_forward_pass_finds_nothing():
    scale, looks = scale_found(130)
    assert looks[:2] == [1.0, 0.333] and scale == pytest.approx(40 / 130, rel=0.1)
    scale, looks = scale_found(4)
    assert looks == [1.0, 0.333, 2.0] and scale == pytest.approx(40 / 4, rel=0.11)
    scale, looks = scale_found(1)
    assert looks == [1.0, 0.333, 2.0] and scale == 1.0  # nothing is seen anywhere


def test_a_closer_look_that_finds_nothing_is_not_followed():
    scale, looks = scale_found(40, OBJECT_SIZE=4)
    assert looks == [1.0, 0.105] and scale == 1.0


def test_looks_come_to_an_end():
    _, looks = scale_found(47, OBJECT_SIZE=2, SCALE_LIMITS=(0.4, 3.0))
    assert len(looks) <= len(FIRST_FACTORS) + MORE_PASSES


def test_no_scale_makes_an_image_too_large(monkeypatch):
    monkeypatch.setattr(detector, "MOST_PIXELS", 100 * 200)
    scale, looks = scale_found(20, shape=(200, 400))
    assert looks == [0.5] and scale == 0.5
    assert scale_found(10, shape=(50, 50))[0] == pytest.approx(200**0.5 / 5)


def test_detection_takes_a_second_forward_pass_at_that_scale(model):
    images = [make_image(64, 64), make_image(90, 100, 1), make_image(64, 64, 2)]
    expected = model.detect_patches(images, scales=model.find_scales(images))
    for one, other in zip(model.detect_patches(images), expected, strict=True):
        same(one, other)


def test_several_images_are_as_each_alone(model):
    images = [make_image(64, 64), make_image(90, 100, 1), make_image(64, 64, 2)]
    for image, result in zip(images, model.detect_patches(images), strict=True):
        same(result, model.detect_patches([image])[0])


def test_no_object_size_no_first_look(model):
    config = type("Plain", (ScaleConfig,), {"OBJECT_SIZE": None})()
    plain = MaskRCNN("inference", config, model.model_dir)
    for weight, value in zip(
        plain.keras_model.weights, model.keras_model.get_weights(), strict=True
    ):
        weight.assign(value)
    image = make_image(64, 64)
    assert plain.find_scales([image]) == [None]
    same(plain.detect_patches([image])[0], model.detect_patches([image], scales=[None])[0])


def test_nothing_found_in_the_first_forward_pass_leaves_the_scale_alone(model, monkeypatch):
    monkeypatch.setattr(model.config, "DETECTION_MIN_CONFIDENCE", 1.0)
    sure = MaskRCNN("inference", model.config, model.model_dir)
    image = make_image(64, 64)
    assert sure.find_scales([image]) == [1.0]
    assert len(sure.detect_patches([image])[0]["scores"]) == 0
    assert sure.find_scales([]) == [] and sure.detect_patches([]) == []
