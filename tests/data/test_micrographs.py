import numpy as np
import pytest
from scipy import ndimage

from mrcnn.data import micrographs
from mrcnn.data.augment import RandomAugmentation
from mrcnn.data.micrographs import MicrographAugmentation
from mrcnn.errors import UserError

PHOTOGRAPHIC = ("stain", "colourise", "mix", "objects", "shade", "haze", "defocus", "noise")
ALL = MicrographAugmentation(**dict.fromkeys(PHOTOGRAPHIC, 1.0))


def scene(rng, grey=True):
    """Six bright discs on a dark background: image uint8 [96, 80, 3], layers int32 [96, 80, 1]."""
    seeds = np.zeros((96, 80), int)
    seeds[20:90:25, 15:70:35] = 1
    labels, _ = ndimage.label(ndimage.binary_dilation(seeds, iterations=8))
    image = np.repeat(np.where(labels > 0, 180, 20)[..., None], 3, axis=-1)
    noise = rng.integers(-10, 10, (*labels.shape, 1 if grey else 3))
    return np.clip(image + noise, 0, 255).astype(np.uint8), labels[..., None].astype(np.int32)


def test_density_and_back():
    image = np.arange(255, dtype=np.uint8)[:, None, None].repeat(3, axis=-1)
    np.testing.assert_allclose(
        micrographs.from_density(micrographs.to_density(image)), image, atol=1e-3
    )
    # Twice the stain lets the square of the light through.
    twice = micrographs.from_density(2 * micrographs.to_density(image))
    np.testing.assert_allclose(1 - twice / 255, (1 - image / 255.0) ** 2, atol=1e-4)


def test_stains_are_unit_vectors_that_can_be_told_apart():
    np.testing.assert_allclose(np.linalg.norm(micrographs.STAINS, axis=1), 1, atol=1e-6)
    assert np.linalg.cond(micrographs.STAINS) < 20


def test_restaining_by_nothing_changes_nothing(rng):
    image, _ = scene(rng, grey=False)
    np.testing.assert_allclose(micrographs.restain(image, 0.0, rng), image, atol=0.01)


def test_stretching_is_what_is_done_to_files(rng):
    values = rng.uniform(30, 90, (60, 60, 3))
    low, high = np.percentile(values[::3, ::3], (1, 99.8))
    np.testing.assert_allclose(micrographs.stretch(values), (values - low) * 255 / (high - low))


def test_mixed_channels_are_grey_and_between_the_channels(rng):
    image, _ = scene(rng, grey=False)
    mixed = micrographs.mix_channels(image, rng)
    assert np.ptp(mixed, axis=-1).max() == 0
    assert (mixed[..., 0] >= image.min(axis=-1) - 1e-3).all()
    assert (mixed[..., 0] <= image.max(axis=-1) + 1e-3).all()


def test_haze_adds_light_and_is_smooth(rng):
    image, _ = scene(rng)
    added = micrographs.add_haze(image.astype(np.float32), 16.0, 0.8, rng) - image
    assert added.min() >= 0 and added.max() > 5
    assert np.abs(np.diff(added[..., 0], axis=0)).max() < np.ptp(image) / 8


def test_shade_only_darkens_down_to_its_strength(rng):
    flat = np.full((50, 70, 3), 200.0)
    shaded = micrographs.shade(flat, 0.6, rng)
    assert shaded.max() <= 200 and shaded.min() >= 200 * 0.4 - 1e-6 and np.ptp(shaded) > 1


def test_objects_are_dimmed_one_by_one_and_the_background_stays(rng):
    image, layers = scene(rng)
    values = image.astype(np.float32)
    dimmed = micrographs.vary_objects(values, layers, 0.2, rng)
    far = ndimage.distance_transform_edt(layers[..., 0] == 0) > 5
    np.testing.assert_allclose(dimmed[far], values[far], atol=0.5)
    inside = ndimage.distance_transform_edt(layers[..., 0] > 0) > 4
    means = ndimage.mean(dimmed[..., 0], layers[..., 0] * inside, range(1, layers.max() + 1))
    assert means.max() <= 181 and np.ptp(means) > 10


def test_diameter_is_that_of_the_median_disc():
    layers = np.zeros((60, 60, 1), np.int32)
    assert micrographs.typical_diameter(layers) == micrographs.DEFAULT_DIAMETER
    yy, xx = np.mgrid[:60, :60]
    layers[(yy - 20) ** 2 + (xx - 20) ** 2 < 100, 0] = 1
    assert micrographs.typical_diameter(layers) == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("name", PHOTOGRAPHIC)
@pytest.mark.parametrize("grey", [True, False])
def test_each_keeps_shape_dtype_and_labels(rng, name, grey):
    image, layers = scene(rng, grey)
    only = MicrographAugmentation(**{name: 1.0})
    several = [only.photograph(image, layers, rng) for _ in range(5)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in several)
    differs = any(not np.array_equal(changed, image) for changed in several)
    # Only grey images are coloured, only colours are mixed.
    assert differs == ((name, grey) not in {("colourise", False), ("mix", True)})


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (17, 5, 3), (40, 40, 1)])
def test_any_size_and_images_without_objects(rng, shape):
    image, layers = rng.integers(0, 255, shape, np.uint8), np.zeros((*shape[:2], 1), np.int32)
    for _ in range(5):
        changed, moved = ALL(image, layers, rng)
        assert changed.dtype == np.uint8 and changed.shape[:2] == moved.shape[:2]
        assert sorted(changed.shape[:2]) == sorted(shape[:2]) and not moved.any()


def test_the_same_seed_gives_the_same_and_does_not_touch_the_inherited_changes(rng):
    image, layers = scene(rng)
    one, other = (ALL(image, layers, np.random.default_rng(5))[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    off = MicrographAugmentation()(image, layers, np.random.default_rng(5))
    plain = RandomAugmentation()(image, layers, np.random.default_rng(5))
    np.testing.assert_array_equal(off[0], plain[0])
    np.testing.assert_array_equal(off[1], plain[1])


def test_settings_by_name():
    changed = MicrographAugmentation().changed(["stain=.5", "flips=False", "stain=.25"])
    assert changed.stain == 0.25 and changed.flips is False
    with pytest.raises(UserError, match="did you mean stain"):
        changed.changed(["stian=1"])
    with pytest.raises(UserError, match="expected a number"):
        changed.changed(["stain=purple"])
