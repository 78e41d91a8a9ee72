"""The parts of a large image by which its scale is measured."""

import numpy as np

from mrcnn.inference.scale import PARTS, varied_parts
from mrcnn.pixels.exposure import Exposure, measure
from tests.test_segmenter import SpotFinder, spots


def test_the_scale_of_a_large_image_is_sought_where_there_is_something(rng):
    image = np.zeros((4000, 4000), np.uint8)
    image[3300:3700, 300:700] = spots(rng, (400, 400))
    exposure = measure(image, SpotFinder.config)
    parts = varied_parts(image, exposure)
    assert len(parts) == PARTS and image[parts[0]].any()
    assert all(image[part].shape == (384, 384) for part in parts)


def test_the_parts_of_a_strip_are_all_different():
    image = np.random.default_rng(0).integers(0, 255, (1, 30_000), np.uint8)
    parts = varied_parts(image, Exposure(0, 255))
    starts = [columns.start for _, columns in parts]
    assert len(set(starts)) == len(parts) == 5
    assert all(image[part].shape == (1, 384) for part in parts)
