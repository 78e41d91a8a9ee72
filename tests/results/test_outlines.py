"""Outlines: exact areas, the same pixels back, valid rings."""

import numpy as np
import pytest
from scipy import ndimage

from mrcnn.results.outlines import polygons, signed_area

shapely = pytest.importorskip("shapely")


def masks(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        mask = rng.random((9, 11)) < rng.uniform(0.2, 0.9)
        if number % 3 == 0:  # smoother ones
            mask = ndimage.binary_opening(np.kron(mask, np.ones((2, 2), bool)))
        yield mask


def test_polygons_cover_just_the_pixels():
    for mask in masks(150):
        shapes = [shapely.Polygon(outer, holes) for outer, holes in polygons(mask)]
        assert all(shape.is_valid for shape in shapes)
        assert sum(shape.area for shape in shapes) == mask.sum()
        assert len(shapes) == ndimage.label(mask)[1]
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        np.testing.assert_array_equal(shapely.contains_xy(shapely.union_all(shapes), x, y), mask)


def test_rings_turn_at_every_corner_and_run_in_their_direction():
    for mask in masks(60):
        for outer, holes in polygons(mask):
            assert signed_area(outer) > 0 and all(signed_area(hole) < 0 for hole in holes)
            for ring in (outer, *holes):
                steps = np.roll(ring, -1, axis=0) - ring
                assert ((steps == 0).sum(axis=1) == 1).all()
                assert ((steps * np.roll(steps, -1, axis=0)).sum(axis=1) == 0).all()
                assert len(np.unique(ring, axis=0)) == len(ring)


def test_known_shapes():
    assert polygons(np.zeros((3, 3), bool)) == []
    [(square, holes)] = polygons(np.ones((2, 3), bool))
    assert {tuple(p) for p in square.tolist()} == {(0, 0), (3, 0), (3, 2), (0, 2)} and not holes
    frame = np.ones((3, 3), bool)
    frame[1, 1] = False
    [(outer, [hole])] = polygons(frame)
    assert signed_area(outer) == 9 and signed_area(hole) == -1
    # Two pixels that touch at a corner only are two pieces.
    assert len(polygons(np.eye(2, dtype=bool))) == 2
