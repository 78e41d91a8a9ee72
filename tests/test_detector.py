"""The first look at a picture, and detection at the zoom that follows from it."""

import numpy as np
import pytest
from conftest import TinyConfig
from test_network import set_weights

from mrcnn.detector import MOST_LOOKS, find_zooms
from mrcnn.fast_network import Found
from mrcnn.model import MaskRCNN
from mrcnn.molding import parse_image_meta
from mrcnn.object_size import object_zoom

pytestmark = pytest.mark.filterwarnings("ignore:.*DETECTION_MAX_INSTANCES")


class ZoomConfig(TinyConfig):
    IMAGES_PER_GPU = 2
    IMAGE_RESIZE_MODE = "pad64"
    IMAGE_MIN_DIM = 64
    PIXEL_CONVENTION = "exact"
    OBJECT_SIZE = 40
    ZOOM_LIMITS = (0.5, 3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = MaskRCNN("inference", ZoomConfig(), str(tmp_path_factory.mktemp("logs")))
    set_weights(model.keras_model)
    return model


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def same(one, other):
    np.testing.assert_array_equal(one["rois"], other["rois"])
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)
    for a, b in zip(one["patches"], other["patches"], strict=True):
        assert a[:2] == b[:2]
        np.testing.assert_array_equal(a[2], b[2])


def test_the_zoom_follows_from_the_boxes_of_a_first_look(model):
    pictures = [picture(64, 64), picture(90, 100, 1)]
    for image, zoom in zip(pictures, model.find_zooms(pictures), strict=True):
        # Results have boxes rounded to whole pixels, the zoom those before.
        assert zoom == pytest.approx(seen_at(model, image, None), rel=0.1)


def seen_at(model, image, zoom):
    """The zoom that one look asks for."""
    [found] = model.detect_patches([image], zooms=[zoom])
    return object_zoom(found["rois"], model.config)


class Shortsighted:
    """Stands in for a network that takes the halves of squares above 48 pixels for objects."""

    def __init__(self, side):
        self.side, self.looks = side, []

    def __call__(self, images, metas, masks):
        scales = parse_image_meta(metas)["scale"]
        self.looks += [round(float(scale), 3) for scale in scales]
        boxes = np.zeros((len(images), 5, 6), np.float32)
        for row, scale in enumerate(scales):
            seen = self.side * scale
            while seen > 48:
                seen /= 2
            boxes[row, :3] = [0, 0, *np.divide(seen, images.shape[1:3]), 1, 0.9]
        return Found(boxes, None, None, None, None)


@pytest.mark.parametrize("side", [10, 30, 46, 60])  # the last is seen as 30, and nothing tells
def test_one_look_is_enough_for_objects_that_are_not_too_large(side):
    network = Shortsighted(side)
    find_zooms(network, [picture(64, 64)], ZoomConfig())
    assert network.looks == [1.0]


def test_parts_of_large_objects_lead_to_another_look():
    config = type("Config", (ZoomConfig,), {"OBJECT_SIZE": 20, "ZOOM_LIMITS": (0.1, 3.0)})()
    network = Shortsighted(90)
    zooms = find_zooms(network, [picture(128, 128), picture(64, 100)], config)
    # Seen as 45 at first, which asks for 20 / 45; seen whole there, and from near at last.
    assert network.looks == [1.0, 1.0, 0.444, 0.444, 0.222, 0.222]
    assert zooms == pytest.approx([20 / 90] * 2, rel=1e-3)


def test_looks_come_to_an_end():
    config = type("Config", (ZoomConfig,), {"OBJECT_SIZE": 2, "ZOOM_LIMITS": (0.001, 3.0)})()
    network = Shortsighted(47)
    find_zooms(network, [picture(64, 64)], config)
    assert len(network.looks) <= MOST_LOOKS


def test_detection_takes_the_second_look_at_that_zoom(model):
    pictures = [picture(64, 64), picture(90, 100, 1), picture(64, 64, 2)]
    expected = model.detect_patches(pictures, zooms=model.find_zooms(pictures))
    for one, other in zip(model.detect_patches(pictures), expected, strict=True):
        same(one, other)


def test_several_pictures_are_as_each_alone(model):
    pictures = [picture(64, 64), picture(90, 100, 1), picture(64, 64, 2)]
    for image, result in zip(pictures, model.detect_patches(pictures), strict=True):
        same(result, model.detect_patches([image])[0])


def test_no_object_size_no_first_look(model):
    config = type("Plain", (ZoomConfig,), {"OBJECT_SIZE": None})()
    plain = MaskRCNN("inference", config, model.model_dir)
    for weight, value in zip(plain.keras_model.weights, model.keras_model.get_weights(),
                             strict=True):
        weight.assign(value)
    image = picture(64, 64)
    assert plain.find_zooms([image]) == [None]
    same(plain.detect_patches([image])[0], model.detect_patches([image], zooms=[None])[0])


def test_nothing_found_at_the_first_look_leaves_the_zoom_alone(model, monkeypatch):
    monkeypatch.setattr(model.config, "DETECTION_MIN_CONFIDENCE", 1.0)
    sure = MaskRCNN("inference", model.config, model.model_dir)
    image = picture(64, 64)
    assert sure.find_zooms([image]) == [None]
    assert len(sure.detect_patches([image])[0]["scores"]) == 0
    assert sure.find_zooms([]) == [] and sure.detect_patches([]) == []
