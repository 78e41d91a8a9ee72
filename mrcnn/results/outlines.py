"""Outlines of instances along the edges of their pixels: exact, with holes, in several pieces.

Such a polygon covers exactly the pixels of its instance: its area is their number, and filling it
gives them back. Coordinates are (x, y) in pixels, as in GeoJSON, ImageJ and COCO; pixel (0, 0)
spans 0 to 1.

Shapes: H, W pixels; V corners of a ring.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Ring = np.ndarray  # int [V, 2], (x, y); closed from the last corner to the first
Polygon = tuple[Ring, list[Ring]]  # the outer ring, and its holes

# Steps along the edges of pixels, each a quarter turn to the right of the one before: x, y.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def polygons(mask: np.ndarray) -> list[Polygon]:
    """The polygons of a mask bool [H, W]; one for every piece of pixels that share edges.

    Rings do not cross or touch themselves. Outer rings run clockwise as seen on the screen, holes
    the other way round.
    """
    pieces, count = ndimage.label(mask)
    found = []
    for number, window in enumerate(ndimage.find_objects(pieces, count), 1):
        origin = np.array([window[1].start, window[0].start])
        rings = [ring + origin for ring in _rings(pieces[window] == number)]
        areas = [signed_area(ring) for ring in rings]
        outer = int(np.argmax(areas))
        found.append((rings[outer], [ring for i, ring in enumerate(rings) if i != outer]))
    return found


def signed_area(ring: Ring) -> float:
    """Area in pixels; negative for rings that run counter-clockwise as seen on the screen."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def _rings(mask: np.ndarray) -> list[Ring]:
    """All rings around a piece, the piece being on the right of each step."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # Starts of the unit steps in the four directions: along the top, right, bottom, left of pixels.
    sides = [
        (padded[:-2, 1:-1], 0, 0),
        (padded[1:-1, 2:], 1, 0),
        (padded[2:, 1:-1], 1, 1),
        (padded[1:-1, :-2], 0, 1),
    ]
    steps: dict[tuple[int, int], list[int]] = {}
    for direction, (beyond, dx, dy) in enumerate(sides):
        ys, xs = np.nonzero(inside & ~beyond)
        for start in zip((xs + dx).tolist(), (ys + dy).tolist(), strict=True):
            steps.setdefault(start, []).append(direction)
    rings = []
    while steps:
        start = next(iter(steps))
        place, direction, corners = start, steps[start][0], []
        while True:
            options = steps[place]
            # Where two pixels touch at a corner, two steps begin: the one to the left crosses to
            # the other pixel, so that a ring passes the corner only once.
            turn = min(options, key=lambda d: (d - direction + 1) % 4)
            options.remove(turn)
            if not options:
                del steps[place]
            if turn != direction or not corners:
                corners.append(place)
            direction = turn
            place = place[0] + _STEPS[turn][0], place[1] + _STEPS[turn][1]
            if place == start:
                break
        rings.append(_without_straight_corners(np.array(corners)))
    return rings


def _without_straight_corners(ring: Ring) -> Ring:
    """Drop the first corner if the ring runs straight through it."""
    before, after = ring[0] - ring[-1], ring[1] - ring[0]
    straight = before[0] * after[1] == before[1] * after[0]
    return ring[1:] if straight else ring
