"""Augmentation: every change on its own, image and labels together, imgaug's augmenters."""

import dataclasses
import sys

import numpy as np
import pytest

from mrcnn.data import augment
from mrcnn.data.augment import RandomAugmentation, apply_augmentation
from mrcnn.errors import UserError

OFF = RandomAugmentation(
    flips=False, right_angles=False, brightness=0, contrast=0, gamma=0, invert=0, grey=0, hue=0,
    tint=0, blur=0,
)  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)


def labels_of(image):
    """Label layers that follow the first channel, so that any mismatch of the two shows."""
    return image[..., :1].astype(np.int32)


def test_brightness_multiplies():
    values = np.array([0.0, 100.0, 250.0])
    assert augment.adjust_brightness(values, 1.2).tolist() == [0, 120, 300]


def test_contrast_stretches_about_the_mean():
    values = np.array([90.0, 110.0])
    assert augment.adjust_contrast(values, 2.0, 100).tolist() == [80, 120]
    assert augment.adjust_contrast(values, 0.5, 100).tolist() == [95, 105]


def test_gamma_keeps_the_ends_and_bends_the_middle():
    values = np.array([0.0, 64.0, 255.0])
    np.testing.assert_allclose(augment.adjust_gamma(values, 2.0), [0, 255 * (64 / 255) ** 2, 255])


@pytest.mark.parametrize(
    ("name", "low", "high"), [("brightness", 40, 160), ("gamma", 20, 160), ("contrast", 56, 92)]
)
def test_curves_stay_within_their_limits(name, low, high):
    """A value of 1.0 allows factors and exponents from one half to two."""
    image = np.full((4, 4, 1), 80, np.uint8)
    image[0] = 255
    image[1] = 0
    change = dataclasses.replace(OFF, **{name: 1.0})
    results = [change.recolour(image, np.random.default_rng(seed)) for seed in range(20)]
    values = np.array([result[2, 0, 0] for result in results])
    assert len(set(values.tolist())) > 5
    assert (values >= low).all() and (values <= high).all()
    assert all(result[0, 0, 0] > result[2, 0, 0] > result[1, 0, 0] for result in results)


def test_the_curve_is_gamma_then_contrast_then_brightness(image):
    """Pixel by pixel, with one rounding at the end."""
    change = RandomAugmentation(invert=0.5, grey=0, hue=0, tint=0, blur=0)
    for seed in range(8):
        gain, stretch, power, _ = np.random.default_rng(seed).uniform(-1, 1, 4)
        values = augment.adjust_gamma(image / 1.0, 1.3**power)
        values = augment.adjust_contrast(values, 1.3**stretch, values.mean())
        expected = np.clip(np.rint(augment.adjust_brightness(values, 1.3**gain)), 0, 255)
        result = change.recolour(image, np.random.default_rng(seed)).astype(float)
        inverted = np.abs(result - expected).max() > 1
        np.testing.assert_array_equal(result, 255 - expected if inverted else expected)


def test_faint_images_stay_visible():
    """Fluorescence often lives between 5 and 20 of 255."""
    image = np.full((8, 8, 3), 5, np.uint8)
    image[2:6, 2:6] = 20
    for seed in range(50):
        result = RandomAugmentation().recolour(image, np.random.default_rng(seed)).astype(int)
        assert abs(result[4, 4, 0] - result[0, 0, 0]) >= 3


@pytest.mark.parametrize(
    "unchanged",
    [
        lambda image: augment.rotate_hue(image, 0),
        lambda image: augment.rotate_hue(image, 360),
        lambda image: augment.blur(image, 0),
        lambda image: augment.invert(augment.invert(image)),
    ],
)
def test_neutral_parameters_change_nothing(unchanged, image):
    result = unchanged(image)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, image)


def test_grey_is_luminance_in_three_channels(image):
    grey = augment.to_grey(image)
    expected = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(grey - expected[..., None]).max() <= 1
    assert grey.dtype == np.uint8 and grey.shape == image.shape


def test_hue_moves_colours_but_not_greys():
    red = np.array([[[200, 0, 0]]], np.uint8)
    assert augment.rotate_hue(red, 120)[0, 0].tolist() == [0, 200, 0]
    assert augment.rotate_hue(red, 240)[0, 0].tolist() == [0, 0, 200]
    grey = np.full((2, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(augment.rotate_hue(grey, 33), grey)


def test_tint_changes_every_channel_by_its_own_curve(image):
    gains, powers = np.array([1.0, 0.5, 0.8]), np.array([1.0, 1.0, 1.3])
    expected = np.rint(255 * gains * (image / 255) ** powers)
    np.testing.assert_array_equal(augment.tint(image, gains, powers), expected)
    np.testing.assert_array_equal(augment.tint(image, np.ones(3), np.ones(3)), image)


def test_tint_stays_within_its_limits():
    white = np.full((1, 1, 3), 255, np.uint8)
    change = dataclasses.replace(OFF, tint=1.0, tint_gain=0.5)
    results = np.array([change.recolour(white, np.random.default_rng(s))[0, 0] for s in range(99)])
    assert results.min() >= 127 and results.min() < 140 and results.max() > 245
    assert (np.ptp(results, axis=1) > 0).mean() > 0.9  # channels differ


def test_blur_spreads_each_channel_on_its_own():
    image = np.zeros((11, 11, 2), np.uint8)
    image[5, 5, 0] = 255
    result = augment.blur(image, 1.0)
    assert 0 < result[5, 6, 0] < result[5, 5, 0] < 255
    assert not result[..., 1].any()


def test_switched_off_is_the_identity(image, rng):
    result, layers = OFF(image, labels_of(image), rng)
    np.testing.assert_array_equal(result, image)
    np.testing.assert_array_equal(layers, labels_of(image))


def test_image_and_labels_move_together_through_all_eight_positions():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    moves = dataclasses.replace(OFF, flips=True, right_angles=True)
    seen = set()
    for seed in range(100):
        moved, layers = moves(image, labels_of(image), np.random.default_rng(seed))
        np.testing.assert_array_equal(moved, layers)
        seen.add((moved.shape, moved.tobytes()))
    assert len(seen) == 8


def test_probability_one_always_acts(image, rng):
    inverted, _ = dataclasses.replace(OFF, invert=1.0)(image, labels_of(image), rng)
    np.testing.assert_array_equal(inverted, 255 - image)
    grey, _ = dataclasses.replace(OFF, grey=1.0)(image, labels_of(image), rng)
    assert (grey[..., :1] == grey).all()


def test_switching_one_change_off_leaves_the_others_as_they_were(image):
    full = RandomAugmentation(invert=0, blur=0)
    fewer = dataclasses.replace(full, gamma=0, contrast=0, brightness=0, grey=0, hue=0)
    for seed in range(5):
        _, layers = full(image, labels_of(image), np.random.default_rng(seed))
        _, others = fewer(image, labels_of(image), np.random.default_rng(seed))
        np.testing.assert_array_equal(layers, others)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_any_number_of_channels(channels, rng):
    image = rng.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    always = RandomAugmentation(invert=1, grey=1, hue=1, tint=1, blur=1)
    result, _ = apply_augmentation(always, image, labels_of(image), rng)
    assert result.shape == image.shape and result.dtype == np.uint8


def test_same_generator_same_result(image):
    one, two = (
        RandomAugmentation()(image, labels_of(image), np.random.default_rng(3)) for _ in range(2)
    )
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_none_is_no_augmentation(image, rng):
    layers = labels_of(image)
    assert apply_augmentation(None, image, layers, rng) == (image, layers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda image, layers, rng: (image[:-1], layers), "same height and width"),
        (lambda image, layers, rng: (image[..., :1], layers), "channels"),
        (lambda image, layers, rng: (image / 255, layers), "not uint8"),
    ],
)
def test_wrong_results_are_refused(wrong, message, image, rng):
    with pytest.raises(UserError, match=message):
        apply_augmentation(wrong, image, labels_of(image), rng)


def test_images_must_be_uint8(image, rng):
    with pytest.raises(UserError, match="must be uint8"):
        apply_augmentation(OFF, image.astype(np.uint16), labels_of(image), rng)


@pytest.fixture(scope="module")
def augmenters():
    # Any ImportError: its OpenCV may lack the system's graphics libraries.
    return pytest.importorskip(
        "imgaug.augmenters", reason="imgaug cannot be imported", exc_type=ImportError
    )


def test_imgaug_moves_labels_with_the_image(augmenters, image, rng):
    flip = augmenters.Fliplr(1.0)
    result, layers = apply_augmentation(flip, image, labels_of(image), rng)
    np.testing.assert_array_equal(result, image[:, ::-1])
    np.testing.assert_array_equal(layers, labels_of(image)[:, ::-1])
    assert layers.dtype == np.int32


def test_imgaug_keeps_labels_whole(augmenters, rng):
    """Numbers beyond 255 and several layers survive; no label is mixed from two others."""
    layers = np.zeros((40, 40, 2), np.int32)
    layers[5:20, 5:20, 0], layers[25:35, 25:35, 0], layers[10:30, 10:30, 1] = 300, 70000, 2
    image = np.zeros((40, 40, 3), np.uint8)
    turn = augmenters.Sequential([augmenters.Affine(rotate=20), augmenters.Multiply(1.5)])
    _, result = apply_augmentation(turn, image, layers, rng)
    assert set(np.unique(result)) == {0, 2, 300, 70000}
    assert not np.array_equal(result, layers)


def test_imgaug_colour_changes_leave_labels_alone(augmenters, image, rng):
    result, layers = apply_augmentation(augmenters.Add(40), image, labels_of(image), rng)
    np.testing.assert_array_equal(result, np.minimum(image.astype(int) + 40, 255))
    np.testing.assert_array_equal(layers, labels_of(image))


def test_imgaug_is_drawn_from_the_generator_alone(augmenters, image):
    changes = augmenters.SomeOf(
        (1, 2), [augmenters.Fliplr(0.5), augmenters.Flipud(0.5), augmenters.Add((-50, 50))]
    )
    one, two, other = (
        apply_augmentation(changes, image, labels_of(image), np.random.default_rng(seed))[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_imgaug_must_keep_the_size(augmenters, image, rng):
    crop = augmenters.Crop(px=2, keep_size=False)
    with pytest.raises(UserError, match="keep_size"):
        apply_augmentation(crop, image, labels_of(image), rng)


def test_missing_imgaug_is_explained(image, rng, monkeypatch):
    class Flip:
        def to_deterministic(self):
            return self

    monkeypatch.setitem(sys.modules, "imgaug.augmentables.segmaps", None)
    with pytest.raises(UserError, match=r'imgaug cannot .*; pip install "mrcnn-keras\[imgaug\]"'):
        apply_augmentation(Flip(), image, labels_of(image), rng)


def test_the_reports_only_augmentation(rng):
    image = rng.integers(0, 255, (4, 6, 3)).astype("uint8")
    layers = rng.integers(0, 3, (4, 6, 1)).astype("int32")
    mirrored = 0
    for _ in range(200):
        new_image, new_layers = augment.flip_left_right(image, layers, rng)
        flipped = not np.array_equal(new_image, image)
        mirrored += flipped
        np.testing.assert_array_equal(new_image, image[:, ::-1] if flipped else image)
        np.testing.assert_array_equal(new_layers, layers[:, ::-1] if flipped else layers)
    assert 70 < mirrored < 130
