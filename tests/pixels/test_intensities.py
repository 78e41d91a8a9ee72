"""Stretching and inverting images."""

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.pixels.intensities import SMALLEST_RANGE, standardise


def config_with(**keys):
    return type("TestConfig", (Config,), keys)()


def stretched(**keys):
    return config_with(INTENSITY_PERCENTILES=(1, 99.8), **keys)


@pytest.fixture
def picture():
    """Faint blobs on a dark background, in three unequal channels."""
    rng = np.random.default_rng(0)
    image = rng.poisson(4, (40, 30, 3))
    image[10:18, 5:14] += np.array([20, 35, 50])
    return image.astype(np.uint8)


def test_nothing_is_done_unless_asked_for(picture):
    assert standardise(picture, Config()) is picture


def test_equals_a_plain_computation(picture):
    low, high = np.percentile(picture, [1, 99.8])
    expected = np.rint(np.clip((picture - low) / (high - low), 0, 1) * 255)
    result = standardise(picture, stretched())
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_floats_give_the_same_as_whole_numbers(picture):
    whole = standardise(picture, stretched())
    real = standardise(picture.astype(np.float32), stretched())
    assert real.dtype == np.float32
    np.testing.assert_allclose(real, whole, atol=0.5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_all_whole_numbers_are_rounded(picture, dtype):
    for image in (picture, 255 - picture):
        result = standardise(image.astype(dtype), stretched(DARK_GROUND=True))
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, standardise(image, stretched(DARK_GROUND=True)))


def test_the_range_of_the_result_does_not_depend_on_the_exposure(picture):
    brighter = (picture * 3).astype(np.uint8)
    np.testing.assert_allclose(
        standardise(picture, stretched()).astype(int), standardise(brighter, stretched()), atol=1
    )


def test_an_empty_picture_is_not_blown_up():
    rng = np.random.default_rng(0)
    noise = rng.integers(20, 22, (20, 20, 3)).astype(np.uint8)
    result = standardise(noise, stretched())
    assert np.ptp(result) <= 255 / SMALLEST_RANGE + 1
    constant = np.full((5, 5, 3), 77, np.uint8)
    assert not standardise(constant, stretched()).any()


def test_light_grounds_become_dark(picture):
    config = config_with(DARK_GROUND=True)
    np.testing.assert_array_equal(standardise(picture, config), picture)
    np.testing.assert_array_equal(standardise(255 - picture, config), picture)
    both = stretched(DARK_GROUND=True)
    np.testing.assert_allclose(
        standardise(picture, both).astype(int),
        standardise(255 - picture, stretched(DARK_GROUND=True)),
        atol=40,
    )
    assert np.median(standardise(255 - picture, both)) < 127


def test_no_pixels():
    assert standardise(np.zeros((0, 4, 3), np.uint8), stretched()).shape == (0, 4, 3)
