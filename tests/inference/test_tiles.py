"""Tiles: every pixel decided once, and objects neither cut nor doubled nor lost at the seams."""

import numpy as np
import pytest
from scipy import ndimage

from mrcnn.inference.postprocess import PostProcessing
from mrcnn.inference.tiles import HALO, Mosaic, tiles_of

KEEP_ALL = PostProcessing(min_typical_area=None, min_area=None)


@pytest.mark.parametrize("shape", [(1, 1), (50, 700), (768, 768), (769, 768), (3000, 1100)])
@pytest.mark.parametrize("scale", [0.25, 1.0, 1.7, 4.0])
def test_cores_divide_the_image_and_windows_surround_them(shape, scale):
    decided = np.zeros(shape, int)
    found = tiles_of(shape, scale)
    for tile in found:
        (y1, x1, y2, x2), (top, left, bottom, right) = tile
        decided[top:bottom, left:right] += 1
        for start, stop, core_start, core_stop, size in (
            (y1, y2, top, bottom, shape[0]),
            (x1, x2, left, right, shape[1]),
        ):
            assert 0 <= start <= core_start < core_stop <= stop <= size
            assert start == 0 or core_start - start >= HALO / scale - 1
            assert stop == size or stop - core_stop >= HALO / scale - 1
    assert (decided == 1).all()
    assert len({tile.shape for tile in found}) == 1
    assert max(found[0].shape) * scale <= 768


def discs(rng, shape, count, radii):
    """A label map of discs that do not touch, as many of `count` as find a place."""
    labels = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    number = 0
    for _ in range(count):
        cy, cx, radius = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(*radii)
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        if disc.any() and not labels[ndimage.binary_dilation(disc, iterations=2)].any():
            number += 1
            labels[disc] = number
    return labels


def scores_of(truth):
    """A score for every label, the same wherever it is seen."""
    return np.random.default_rng(1).permutation(np.linspace(0.5, 1, truth.max() + 1))


def stitched(truth, tiles, margin, change=None, settings=KEEP_ALL):
    """What a network that sees every tile's part of the truth would give."""
    scores = scores_of(truth)
    mosaic = Mosaic(truth.shape, settings, margin)
    for tile in tiles:
        y1, x1, y2, x2 = tile.window
        part = truth[y1:y2, x1:x2].copy()
        if change:
            part = change(part)
        numbers = np.unique(part[part > 0])
        # In a tile the numbers are those of the tile, by falling score.
        numbers = numbers[np.argsort(-scores[numbers])]
        local = np.zeros_like(part)
        for i, number in enumerate(numbers, 1):
            local[part == number] = i
        mosaic.add(tile, local, scores[numbers], np.ones(len(numbers), int))
    return mosaic.finish()


def assert_same_objects(labels, truth):
    pairs = np.unique(np.stack([labels.ravel(), truth.ravel()]), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1])), pairs


@pytest.mark.parametrize("seed", range(6))
def test_objects_are_neither_cut_nor_doubled_nor_lost(seed):
    rng = np.random.default_rng(seed)
    truth = discs(rng, (300, 420), 250, (2, 14))
    tiles = tiles_of(truth.shape, 1, tile=100, halo=30)
    assert len(tiles) > 12
    labels, scores, class_ids = stitched(truth, tiles, 30)
    assert_same_objects(labels, truth)
    assert labels.max() == truth.max() == len(scores) == len(class_ids)
    assert (np.diff(scores) <= 0).all()
    by_label = scores_of(truth)
    for label in range(1, labels.max() + 1):
        assert scores[label - 1] == by_label[truth[labels == label][0]]


@pytest.mark.parametrize("seed", range(6))
def test_objects_larger_than_tiles_are_joined(seed):
    rng = np.random.default_rng(seed)
    truth = discs(rng, (300, 420), 60, (2, 90))
    assert np.bincount(truth.ravel())[1:].max() > 60 * 60
    labels, _, _ = stitched(truth, tiles_of(truth.shape, 1, tile=90, halo=20), 20)
    assert_same_objects(labels, truth)


def test_a_ring_around_many_tiles_is_one_object():
    y, x = np.mgrid[:260, :260] - 130
    radius = np.hypot(y, x)
    truth = ((radius > 80) & (radius < 110)).astype(np.int32)
    truth[radius < 12] = 2
    labels, _, _ = stitched(truth, tiles_of(truth.shape, 1, tile=80, halo=16), 16)
    assert_same_objects(labels, truth)


@pytest.mark.parametrize("seed", range(4))
def test_tiles_that_disagree_by_a_pixel_double_nothing(seed):
    """Every tile sees its objects somewhat larger or smaller, as a network would."""
    rng = np.random.default_rng(seed)
    truth = discs(rng, (300, 420), 200, (4, 14))
    large = discs(rng, (300, 420), 40, (40, 60))
    truth[np.isin(truth, truth[ndimage.binary_dilation(large > 0, iterations=3)])] = 0
    truth = np.where(large > 0, large + truth.max(), truth).astype(np.int32)

    def change(part):
        if rng.random() < 0.5:
            return np.where(ndimage.minimum_filter(part, 3) == part, part, 0)
        grown = ndimage.maximum_filter(part, 3)
        return np.where(part == 0, grown, part)

    labels, _, _ = stitched(truth, tiles_of(truth.shape, 1, tile=100, halo=24), 24, change)
    numbers = np.unique(truth[truth > 0])
    for number in numbers:
        found = np.bincount(labels[truth == number])
        found[0] = 0
        assert found.max() > 0.4 * (truth == number).sum()
    assert labels.max() == len(numbers)


def test_touching_objects_stay_apart():
    truth = np.zeros((120, 200), np.int32)
    for number, left in enumerate(range(0, 200, 10), 1):
        truth[20:100, left : left + 10] = number
    labels, _, _ = stitched(truth, tiles_of(truth.shape, 1, tile=80, halo=20), 20)
    assert_same_objects(labels, truth)


def test_specks_are_judged_by_the_whole_image():
    truth = np.zeros((100, 300), np.int32)
    for number, left in enumerate(range(5, 280, 30), 1):
        truth[30:50, left : left + 20] = number
    truth[80:83, 270:273] = 20  # alone with one other in its tile
    settings = PostProcessing(min_typical_area=0.1, min_area=None)
    labels, scores, _ = stitched(
        truth, tiles_of(truth.shape, 1, tile=90, halo=20), 20, settings=settings
    )
    assert labels.max() == len(scores) == 10 and not labels[80:83, 270:273].any()


def test_many_labels_are_a_file(monkeypatch):
    monkeypatch.setattr("mrcnn.inference.tiles.PIXELS_IN_MEMORY", 0)
    truth = discs(np.random.default_rng(0), (100, 150), 30, (3, 9))
    tiles = tiles_of(truth.shape, 1, tile=64, halo=20)
    mosaic = Mosaic(truth.shape, KEEP_ALL, 20)
    for tile in tiles:
        y1, x1, y2, x2 = tile.window
        part = np.unique(truth[y1:y2, x1:x2], return_inverse=True)[1].reshape(tile.shape)
        if truth[y1:y2, x1:x2].all():
            part += 1
        mosaic.add(tile, part, np.ones(part.max()), np.ones(part.max(), int))
    labels, _, _ = mosaic.finish()
    assert isinstance(labels, np.memmap)
    assert_same_objects(np.asarray(labels), truth)


def test_an_image_without_objects():
    mosaic = Mosaic((100, 100), KEEP_ALL, 16)
    for tile in tiles_of((100, 100), 1, tile=64, halo=16):
        mosaic.add(tile, np.zeros(tile.shape, np.int32), np.zeros(0), np.zeros(0, int))
    labels, scores, class_ids = mosaic.finish()
    assert not labels.any() and len(scores) == len(class_ids) == 0
