"""Synthetic data sets: the layout on disk, reproducibility, and masks that fit the images."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import ndimage
from skimage.io import imread

from mrcnn.errors import UserError
from samples.nucleus.synthesize import KINDS, draw_image, synthesize
from samples.nucleus.synthetic_optics import absorb, blend, coverage, noise_field
from samples.nucleus.synthetic_shapes import (
    MIN_VISIBLE_PIXELS,
    Nucleus,
    Scene,
    random_nucleus,
    scatter,
)


def _digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _circle(y, x, radius):
    return Nucleus(y=y, x=x, major=radius, minor=radius, angle=0.0)


# --- shapes -------------------------------------------------------------------------------------


def test_a_pixel_belongs_to_a_circle_when_its_centre_lies_inside():
    circle = _circle(10.3, 12.8, 5.0)
    expected = np.zeros((24, 26), bool)
    for i in range(24):
        for j in range(26):
            expected[i, j] = (i + 0.5 - 10.3) ** 2 + (j + 0.5 - 12.8) ** 2 <= 25
    np.testing.assert_array_equal(circle.depth((slice(0, 24), slice(0, 26))) >= 0, expected)


@pytest.mark.parametrize("dy", [0.0, 0.25, 0.5, 0.9])
def test_mask_and_drawing_stay_at_a_sub_pixel_position(dy):
    circle = _circle(30.0 + dy, 31.0, 12.0)
    window = (slice(0, 64), slice(0, 64))
    canvas = np.zeros((64, 64))
    blend(canvas, coverage(circle.depth(window)), 1.0, "max")
    centres = np.arange(64) + 0.5
    centre_of_light = (canvas.sum(1) * centres).sum() / canvas.sum()
    assert centre_of_light == pytest.approx(30.0 + dy, abs=0.02)
    assert canvas.sum() == pytest.approx(np.pi * 12**2, rel=0.01)
    mask = circle.depth(window) >= 0
    assert (mask.sum(1) * centres).sum() / mask.sum() == pytest.approx(30.0 + dy, abs=0.15)


def test_a_turned_ellipse_is_long_along_its_angle():
    nucleus = Nucleus(y=32, x=32, major=15, minor=6, angle=np.pi / 2)  # long axis upright
    ys, xs = np.nonzero(nucleus.depth((slice(0, 64), slice(0, 64))) >= 0)
    assert np.ptp(ys) + 1 == 30
    assert np.ptp(xs) + 1 == 12


def test_the_window_holds_the_whole_outline():
    rng = np.random.default_rng(0)
    for _ in range(50):
        nucleus = random_nucleus(rng, (40.0, 40.0), 10.0, (1.0, 2.0), 0.1)
        full = nucleus.depth((slice(0, 80), slice(0, 80))) >= 0
        assert full.sum() == (nucleus.depth(nucleus.cut((80, 80))) >= 0).sum()


def test_touching_nuclei_share_a_border_and_no_pixel():
    scene = Scene((64, 64))
    assert scene.place(_circle(32, 22, 10))
    assert not scene.place(_circle(32, 40, 10))  # overlaps, and nothing may
    assert scene.place(_circle(32, 40, 10), crowd=0.2)
    assert set(np.unique(scene.labels)) == {0, 1, 2}
    # equal circles are divided half way, at x = 31
    row = scene.labels[32]
    assert row[30] == 1 and row[31] == 2


def test_a_refused_nucleus_leaves_no_trace():
    scene = Scene((64, 64))
    scene.place(_circle(32, 32, 10))
    before = scene.labels.copy()
    assert not scene.place(_circle(32, 33, 9), crowd=0.1)
    assert not scene.place(_circle(-30, -30, 9))
    np.testing.assert_array_equal(scene.labels, before)
    assert len(scene.nuclei) == 1


def test_scatter_always_places_something_and_makes_clusters():
    rng = np.random.default_rng(3)
    scene = Scene((128, 128))
    scatter(scene, rng, 30, lambda at: random_nucleus(rng, at, 6.0), touching=0.8)
    assert 10 <= len(scene.nuclei) <= 30
    right, left = scene.labels[:, 1:], scene.labels[:, :-1]
    assert np.any((right > 0) & (left > 0) & (right != left))


# --- optics -------------------------------------------------------------------------------------


def test_noise_field_has_zero_mean_and_unit_deviation():
    field = noise_field((100, 120), 3.0, np.random.default_rng(0))
    assert field.mean() == pytest.approx(0, abs=1e-9)
    assert field.std() == pytest.approx(1)


def test_stain_absorbs_by_beer_lambert():
    amount = np.array([[0.0, 1.0, 2.0]])
    light = absorb([(amount, (0.5, 1.0, 0.0))], (200.0, 100.0, 50.0))
    np.testing.assert_allclose(light[0, :, 0], 200 * np.exp([0, -0.5, -1.0]))
    np.testing.assert_allclose(light[0, :, 1], 100 * np.exp([0, -1.0, -2.0]))
    np.testing.assert_allclose(light[0, :, 2], 50)


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(3))
def test_masks_are_whole_disjoint_and_numbered_without_gaps(kind, number):
    image, labels = draw_image(kind, 160, ("masks", number))
    assert image.shape == (160, 160, 3) and image.dtype == np.uint8
    count = int(labels.max())
    assert count >= 1
    for n in range(1, count + 1):
        mask = labels == n
        assert mask.sum() >= MIN_VISIBLE_PIXELS
        assert ndimage.label(mask)[1] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_nuclei_are_bright_in_fluorescence_and_dark_in_stains(kind):
    for number in range(3):
        image, labels = draw_image(kind, 160, ("contrast", number))
        grey = image.mean(axis=2)
        inside, around = labels > 0, ndimage.binary_dilation(labels > 0, iterations=6)
        difference = grey[inside].mean() - grey[around & ~inside].mean()
        assert difference > 8 if "fluorescence" in kind else difference < -15


@pytest.mark.parametrize("kind", KINDS)
def test_masks_lie_on_the_image_without_a_shift(kind):
    """The contrast between both sides of the outlines is best where the masks are."""

    def contrast(dy, dx):
        total = 0.0
        for number in range(4):
            image, labels = draw_image(kind, 160, ("shift", number))
            grey = image.mean(axis=2)
            mask = np.roll(labels > 0, (dy, dx), (0, 1))
            inner = mask & ~ndimage.binary_erosion(mask, iterations=2)
            outer = ndimage.binary_dilation(mask, iterations=2) & ~mask
            total += abs(grey[inner].mean() - grey[outer].mean())
        return total

    steps = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    here, right, left, down, up = (contrast(*step) for step in steps)
    assert here > max(right, left, down, up)
    # and it falls off alike on both sides: no systematic part of a pixel
    assert right == pytest.approx(left, rel=0.1)
    assert down == pytest.approx(up, rel=0.1)


# --- files --------------------------------------------------------------------------------------


def test_layout_is_that_of_the_competition(tmp_path):
    calls = []
    ids = synthesize(tmp_path, 4, 96, seed=5, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    folder = tmp_path / "stage1_train"
    assert sorted(p.name for p in folder.iterdir()) == sorted(ids)
    for number, image_id in enumerate(ids):
        assert len(image_id) == 64 and set(image_id) <= set("0123456789abcdef")
        image = imread(folder / image_id / "images" / f"{image_id}.png")
        assert image.shape == (96, 96, 4) and image.dtype == np.uint8
        assert np.all(image[..., 3] == 255)
        expected, labels = draw_image(list(KINDS)[number], 96, (5, "stage1_train", number))
        np.testing.assert_array_equal(image[..., :3], expected)
        masks = [imread(p) for p in sorted((folder / image_id / "masks").glob("*.png"))]
        assert len(masks) == labels.max()
        assert all(set(np.unique(m)) == {0, 255} and m.shape == (96, 96) for m in masks)
        cover = np.sum([m > 0 for m in masks], axis=0)
        np.testing.assert_array_equal(cover, labels > 0)


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(tmp_path):
    synthesize(tmp_path / "a", 3, 64, seed=1)
    synthesize(tmp_path / "b", 3, 64, seed=1)
    synthesize(tmp_path / "longer", 5, 64, seed=1)
    synthesize(tmp_path / "other", 3, 64, seed=2)
    first = _digests(tmp_path / "a")
    assert first == _digests(tmp_path / "b")
    assert first.items() <= _digests(tmp_path / "longer").items()
    assert not set(first) & set(_digests(tmp_path / "other"))


def test_subsets_of_one_seed_differ(tmp_path):
    train = synthesize(tmp_path, 2, 64, seed=1)
    test = synthesize(tmp_path, 2, 64, seed=1, subset="stage1_test")
    assert not set(train) & set(test)


def test_kinds_are_taken_in_turn(tmp_path):
    ids = synthesize(tmp_path, 3, 96, seed=0, kinds=["tissue", "fluorescence-small"])
    colour = []
    for image_id in ids:
        path = tmp_path / "stage1_train" / image_id / "images" / f"{image_id}.png"
        image = imread(path)[..., :3]
        colour.append(bool(np.any(image.max(axis=2) != image.min(axis=2))))
    assert colour == [True, False, True]


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    synthesize(tmp_path, 1, 64)
    before = _digests(tmp_path)
    with pytest.raises(UserError, match="not an empty folder"):
        synthesize(tmp_path, 1, 64)
    assert _digests(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert len(synthesize(tmp_path, 1, 64, subset="empty")) == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"count": 0}, "--count 0"),
        ({"size": 20}, "--size 20"),
        ({"size": 100000}, "--size 100000"),
        ({"seed": -1}, "--seed -1"),
        ({"subset": "../out"}, "--subset"),
        ({"subset": ".."}, "--subset"),
        ({"kinds": ["xray"]}, "xray"),
        ({"kinds": []}, "kinds"),
    ],
)
def test_values_that_are_not_allowed_are_named_in_one_line(tmp_path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        synthesize(tmp_path, **values)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
