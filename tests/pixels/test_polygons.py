"""Outlines and run lengths: the pixels inside, against counting."""

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.pixels.masks import layers_to_masks
from mrcnn.pixels.polygons import decode_run_lengths, fill, fill_runs, pack, union


def even_odd(rings, size):
    """Pixel by pixel: how many edges does a ray from its centre to the left meet?"""
    found = np.zeros(size, bool)
    for row, column in np.ndindex(*size):
        x, y = column + 0.5, row + 0.5
        for ring in rings:
            for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x:
                    found[row, column] ^= True
    return found


def whole(patch, size):
    mask = np.zeros(size, bool)
    if patch is not None:
        window, inside = patch
        mask[window] = inside
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_outlines_against_counting(seed):
    """Any corners: concave, crossing itself, a ring in a ring, beyond the image."""
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-6, 22, (rng.integers(3, 9), 2)).tolist() for _ in range(1 + seed % 3)]
    found = whole(fill(rings, (14, 17)), (14, 17))
    np.testing.assert_array_equal(found, even_odd(rings, (14, 17)))
    assert found.any()


def test_outlines_that_share_edges_share_no_pixel():
    """A fan of triangles around a pixel's centre, with edges along rows and through centres."""
    corners = [(0, 0), (5.5, 0), (9, 0), (9, 5.5), (9, 9), (3, 9), (0, 9), (0, 5.5)]
    middle = (4.5, 5.5)
    covered = sum(
        whole(fill([[middle, one, other]], (9, 9)), (9, 9)).astype(int)
        for one, other in zip(corners, corners[1:] + corners[:1], strict=True)
    )
    assert (covered == 1).all()


def test_outlines_without_pixels():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    for ring in (square * 0.4, square + [20, 0], square - [9, 9], square[:2], square[:0]):
        assert fill([ring], (8, 8)) is None
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="not numbers"):
            fill([square, [[0, 0], [1, bad], [1, 1]]], (8, 8))


def test_masks_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr("mrcnn.pixels.masks.MAX_LAYER_PIXELS", 10 * 48)
    patch = (slice(0, 2), slice(0, 2)), np.ones((2, 2), bool)
    assert pack([patch] * 10, (6, 8))[0].shape == (6, 8, 10)
    with pytest.raises(UserError, match="masks overlap each other more than 10 times .* 6 x 8"):
        pack([patch] * 11, (6, 8))


def test_union_and_layers():
    square = np.array([[0, 0], [3, 0], [3, 3], [0, 3]])
    one, two, apart = (fill([square + offset], (9, 9)) for offset in (0, 2, 6))
    np.testing.assert_array_equal(
        whole(union([two, None, one]), (9, 9)), whole(one, (9, 9)) | whole(two, (9, 9))
    )
    assert union([None]) is None
    corner, opposite = ([[0, 0], [9, 0], [0, 9]], [[9, 9], [9, 0], [0, 9]])
    for pair in ((corner, opposite), (opposite, corner)):  # each in the box of the other
        assert whole(union(fill([ring], (9, 9)) for ring in pair), (9, 9)).all()
    layers, count, empty = pack([one, two, None, apart], (9, 9))
    assert layers.shape == (9, 9, 2) and (count, empty) == (3, 1)
    masks = layers_to_masks(layers, count)
    for number, patch in enumerate((one, two, apart)):
        np.testing.assert_array_equal(masks[..., number], whole(patch, (9, 9)))


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_run_lengths_of_coco(share):
    mask_api = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(3)
    for size in ((1, 1), (7, 5), (90, 80)):
        mask = rng.random(size) < share
        packed = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = decode_run_lengths(packed["counts"].decode())
        np.testing.assert_array_equal(whole(fill_runs(counts, size), size), mask)


def test_run_lengths_by_hand():
    assert decode_run_lengths("") == []
    assert decode_run_lengths("T3") == [4 + 3 * 32]
    assert decode_run_lengths("592J") == [5, 9, 2, 9 - 6]


def test_wrong_run_lengths():
    for text in ("6 1", "6\x7f", "P", "é"):
        with pytest.raises(ValueError, match="run lengths"):
            decode_run_lengths(text)
    for counts in ([3, 4], [-3, 9], [2**62, 6], []):
        with pytest.raises(ValueError, match="do not add up"):
            fill_runs(counts, (2, 3))
    assert fill_runs([6], (2, 3)) is None and fill_runs([6, 0], (2, 3)) is None
    assert whole(fill_runs([0, 2, 0, 1, 3], (2, 3)), (2, 3)).tolist() == [
        [True, True, False],
        [True, False, False],
    ]
