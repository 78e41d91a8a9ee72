"""Exposure: of images in memory, of all types, and of parts of large images."""

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.pixels import exposure
from mrcnn.pixels.exposure import (
    SMALLEST_RANGE,
    Exposure,
    measure,
    percentiles,
    standardise,
    subsample,
    to_rgb,
)
from tests.support.sliced_image import SlicedImage


class NucleiConfig(Config):
    INTENSITY_PERCENTILES = (1, 99.8)
    DARK_GROUND = True


CONFIG = NucleiConfig()


def make_image(rng, shape=(40, 50), light=False):
    """A dim image of bright spots, or dark spots on a light background, uint8."""
    image = rng.integers(10, 20, shape).astype(np.uint8)
    image[5:15, 10:20] += 60
    return 200 - image if light else image


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_8_bits_are_standardised(rng, light, shape):
    image = make_image(rng, shape, light)
    found = measure(image, CONFIG)
    assert found.inverted == light
    expected = standardise(image if image.ndim == 3 else image[..., None], CONFIG)
    np.testing.assert_array_equal(found.apply(image).ravel(), expected.ravel())


def test_a_nearly_empty_8_bit_image_is_not_stretched_into_noise(rng):
    image = rng.integers(10, 13, (40, 50, 1)).astype(np.uint8)
    found = measure(image, CONFIG)
    assert found.high - found.low == 8
    np.testing.assert_array_equal(found.apply(image), standardise(image, CONFIG))


@pytest.mark.parametrize(
    "dtype, factor, offset",
    [
        (np.uint16, 37, 1000),
        (np.int32, 1000, -50_000),
        (np.uint32, 10_000, 5),
        (np.float32, 0.01, -3),
        (np.float64, 1e-9, 1e-6),
        (np.int16, 100, -20_000),
        (np.float16, 1, 0),
    ],
)
def test_scale_and_offset_of_the_values_do_not_matter(rng, dtype, factor, offset):
    image = make_image(rng, (60, 80))
    reference = measure(image, CONFIG).apply(image).astype(int)
    changed = (image * float(factor) + offset).astype(dtype)
    assert np.abs(measure(changed, CONFIG).apply(changed).astype(int) - reference).max() <= 1


def test_masks_of_two_values():
    image = np.zeros((20, 20), bool)
    image[4:9, 5:9] = True
    shown = measure(image, CONFIG).apply(image)
    np.testing.assert_array_equal(shown, np.where(image, 255, 0))


def test_values_that_are_no_numbers(rng):
    image = make_image(rng).astype(np.float32)
    image[0, 0], image[0, 1] = np.nan, np.nan
    assert np.isfinite(list(vars(measure(image, CONFIG)).values())).all()
    with pytest.raises(UserError, match="dtype complex64 are not supported"):
        measure(image.astype(np.complex64), CONFIG)


@pytest.mark.parametrize("value", [0, 700])
def test_an_image_of_one_value_becomes_black(value):
    image = np.full((10, 12), value, np.uint16)
    assert not measure(image, CONFIG).apply(image).any()


def test_few_pixels_that_differ_are_seen():
    image = np.full((100, 100), 300, np.uint16)
    image[3, 4] = 900
    shown = measure(image, CONFIG).apply(image)
    assert shown[3, 4] == 255 and shown.sum() == 255


def test_inversion_can_be_forced(rng):
    image = make_image(rng)
    plain, inverted = (measure(image, CONFIG, inverted=way).apply(image) for way in (False, True))
    np.testing.assert_array_equal(plain, 255 - inverted)
    assert np.array_equal(measure(image, CONFIG).apply(image), plain)


def test_alpha_does_not_count(rng):
    image = make_image(rng, (40, 50, 3))
    with_alpha = np.concatenate([image, np.full((40, 50, 1), 255, np.uint8)], axis=-1)
    assert measure(image, CONFIG) == measure(with_alpha, CONFIG)


def test_a_configuration_that_asks_for_nothing_leaves_8_bits_alone(rng):
    image = make_image(rng)
    np.testing.assert_array_equal(measure(image, Config()).apply(image), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32])
def test_large_images_are_read_in_bands(rng, monkeypatch, dtype):
    monkeypatch.setattr(exposure, "BAND_VALUES", 1200)
    monkeypatch.setattr(exposure, "BAND_ROWS", 4)
    file = SlicedImage(rng.integers(0, 200, (101, 60, 3)).astype(dtype))
    wanted = [0, 1, 50, 99.8, 100]
    np.testing.assert_allclose(percentiles(file, wanted), np.percentile(file.array, wanted))
    assert file.largest <= 4 * 60 * 3
    np.testing.assert_array_equal(subsample(file, 7), file.array[::7, ::7])


def test_of_other_types_a_grid_of_values_is_enough(rng, monkeypatch):
    monkeypatch.setattr(exposure, "MOST_VALUES", 5000)
    monkeypatch.setattr(exposure, "BAND_ROWS", 8)
    image = rng.normal(size=(300, 300)).astype(np.float32)
    np.testing.assert_allclose(
        percentiles(image, [1, 50, 99]), np.percentile(image, [1, 50, 99]), atol=0.2
    )


def test_parts_are_shown_as_the_whole(rng):
    image = rng.integers(0, 4000, (50, 60)).astype(np.uint16)
    found = Exposure(100, 3000, True)
    np.testing.assert_array_equal(found.apply(image)[10:20, 5:9], found.apply(image[10:20, 5:9]))


def test_images_without_pixels():
    for dtype in (np.uint8, np.float32):
        image = np.zeros((0, 5, 3), dtype)
        assert measure(image, CONFIG).apply(image).shape == image.shape


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("inverted", [False, True])
def test_values_that_are_not_finite_are_background_and_count_for_nothing(dtype, inverted):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 100, (40, 50)).astype(dtype)
    truth = measure(image, CONFIG, inverted)
    wrong = rng.random(image.shape) < 0.2
    holes = np.where(wrong, rng.choice([np.nan, np.inf, -np.inf], image.shape), image).astype(dtype)
    found = measure(holes, CONFIG, inverted)
    assert found.not_finite == wrong.sum() and truth.not_finite == 0
    assert found.low == pytest.approx(truth.low, abs=3) and found.high == pytest.approx(
        truth.high, abs=3
    )
    assert not found.apply(holes)[wrong].any()
    np.testing.assert_array_equal(found.apply(holes)[~wrong], found.apply(image)[~wrong])


def test_images_without_finite_values_and_extreme_ones():
    with pytest.raises(UserError, match="no finite values"):
        measure(np.full((9, 9), np.nan), CONFIG)
    ends = np.array([[-1.7e308, 0, 1.7e308]])
    exposure = measure(ends, CONFIG, False)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(exposure.apply(ends)[0, [0, 2]], [0, 255])


# ---- In memory ---------------------------------------------------------------------------------


def config_with(**keys):
    return type("TestConfig", (Config,), keys)()


def stretched(**keys):
    return config_with(INTENSITY_PERCENTILES=(1, 99.8), **keys)


@pytest.fixture
def faint():
    """Faint blobs on a dark background, in three unequal channels."""
    rng = np.random.default_rng(0)
    image = rng.poisson(4, (40, 30, 3))
    image[10:18, 5:14] += np.array([20, 35, 50])
    return image.astype(np.uint8)


def test_nothing_is_done_unless_asked_for(faint):
    assert standardise(faint, Config()) is faint


def test_equals_a_plain_computation(faint):
    low, high = np.percentile(faint, [1, 99.8])
    expected = np.rint(np.clip((faint - low) / (high - low), 0, 1) * 255)
    result = standardise(faint, stretched())
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32])
def test_other_types_give_the_same_8_bits(faint, dtype):
    for image in (faint, 255 - faint):
        result = standardise(image.astype(dtype), stretched(DARK_GROUND=True))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, standardise(image, stretched(DARK_GROUND=True)))


def test_the_range_of_the_result_does_not_depend_on_the_exposure(faint):
    brighter = (faint * 3).astype(np.uint8)
    np.testing.assert_allclose(
        standardise(faint, stretched()).astype(int), standardise(brighter, stretched()), atol=1
    )


def test_an_empty_faint_is_not_blown_up():
    rng = np.random.default_rng(0)
    noise = rng.integers(20, 22, (20, 20, 3)).astype(np.uint8)
    result = standardise(noise, stretched())
    assert np.ptp(result) <= 255 / SMALLEST_RANGE + 1
    constant = np.full((5, 5, 3), 77, np.uint8)
    assert not standardise(constant, stretched()).any()


def test_light_grounds_become_dark(faint):
    config = config_with(DARK_GROUND=True)
    np.testing.assert_array_equal(standardise(faint, config), faint)
    np.testing.assert_array_equal(standardise(255 - faint, config), faint)
    both = stretched(DARK_GROUND=True)
    np.testing.assert_allclose(
        standardise(faint, both).astype(int),
        standardise(255 - faint, stretched(DARK_GROUND=True)),
        atol=40,
    )
    assert np.median(standardise(255 - faint, both)) < 127


def test_no_pixels():
    assert standardise(np.zeros((0, 4, 3), np.uint8), stretched()).shape == (0, 4, 3)


def test_deep_values_are_shown_between_the_usual_percentiles():
    """A dim 12-bit image with one hot pixel: percentiles 1 and 99.8 become 0 and 255."""
    values = np.linspace(100, 1100, 10000).reshape(100, 100).astype(np.uint16)
    values[50, 50] = 65535
    shown = to_rgb(values, measure(values, Config()))
    low, high = np.percentile(values, [1, 99.8])
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(shown, np.stack([expected] * 3, axis=-1))
