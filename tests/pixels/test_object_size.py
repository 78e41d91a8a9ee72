"""The scale that objects ask for, in training and in detection."""

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.data.examples import make_example
from mrcnn.pixels import molding
from mrcnn.pixels.image_meta import parse_image_meta
from mrcnn.pixels.object_size import median_side, object_scale


def config_with(**keys):
    return type("TestConfig", (Config,), keys)()


def square_of(side, y=10.0, x=10.0):
    return [y, x, y + side, x + side]


def test_median_side_of_boxes():
    boxes = [square_of(8), [0, 0, 4, 36], square_of(40), [5, 5, 5, 9]]  # the last has no area
    assert median_side(np.array(boxes)) == 12  # 4 x 36 is as large as a square of side 12
    assert median_side(np.zeros((0, 4))) is None
    assert median_side(np.zeros((3, 4))) is None


@pytest.mark.parametrize("side, scale", [(8, 4.0), (16, 2.0), (64, 0.5), (2, 6.0), (500, 0.25)])
def test_scale_brings_the_median_object_to_the_wanted_size(side, scale):
    config = config_with(OBJECT_SIZE=32, SCALE_LIMITS=(0.25, 6.0))
    assert object_scale(np.array([square_of(side)]), config) == pytest.approx(scale)


def test_no_scale_without_objects_or_object_size():
    assert object_scale(np.zeros((0, 4)), config_with(OBJECT_SIZE=32)) is None
    assert object_scale(np.array([square_of(8)]), Config()) is None


@pytest.mark.parametrize("side", [6, 12, 30])
def test_training_crops_show_objects_at_the_wanted_size(side):
    config = config_with(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, OBJECT_SIZE=16)
    layers = np.zeros((80, 90, 1), np.int32)
    count = 0
    for y in range(0, 80 - side, side + 4):
        for x in range(0, 90 - side, side + 4):
            count += 1
            layers[y : y + side, x : x + side] = count
    image = np.repeat((layers > 0) * 255, 3, axis=-1).astype(np.uint8)
    example = make_example(
        image, layers, np.ones(count, np.int32), config, np.random.default_rng(0)
    )
    assert example.scale == pytest.approx(16 / side, rel=0.02)
    assert example.image.shape == (64, 64, 3)


def test_crops_without_objects_take_the_configured_scale():
    config = config_with(
        IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, OBJECT_SIZE=16, IMAGE_MIN_SCALE=2.0
    )
    image, layers = np.zeros((80, 90, 3), np.uint8), np.zeros((80, 90, 1), np.int32)
    example = make_example(image, layers, np.zeros(0, np.int32), config, np.random.default_rng(0))
    assert example.scale == 2.0


def test_molding_takes_a_zoom_for_every_image():
    config = config_with(IMAGE_RESIZE_MODE="pad64", IMAGE_MIN_DIM=64, PIXEL_CONVENTION="exact")
    images = [np.full((100, 80, 3), 9, np.uint8)] * 3
    molded, metas, windows = molding.mold_inputs(images, config, [0.5, None, 1.7])
    assert [m.shape for m in molded] == [(64, 64, 3), (128, 128, 3), (192, 192, 3)]
    np.testing.assert_allclose(parse_image_meta(metas)["scale"], [0.5, 1.0, 1.7])
    sizes = windows[:, 2:] - windows[:, :2]
    np.testing.assert_array_equal(sizes, [[50, 40], [100, 80], [170, 136]])
