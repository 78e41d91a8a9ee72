"""Images of any size: cut into overlapping tiles, whose detections are put together again.

Every tile is a window of the image that the network processes as a whole, and has a core. The cores
divide the image among the tiles; around its core a tile has a margin, the halo, of 64 pixels of the
scaled image, in which a typical object has 24. So an object whose centre lies in a tile's core is,
as a rule, complete in that tile, and `Mosaic` takes it from there:

- An object whose centre lies near the border of two cores may be found in both tiles or, where each
  of them puts its centre in the other's core, in neither: objects slightly outside the core are
  taken too, unless their pixels already belong to another. So no object is counted twice or missed.
- An object larger than the halo is cut off at the edge of some tile. Its parts in the two tiles
  agree where the tiles overlap, and are joined there.

Memory: one tile, the label map (which may be a file), and a few numbers per object.

Shapes: H, W pixels of the image, h, w of a tile, N objects. Boxes are y1, x1, y2, x2 in pixels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mrcnn.inference.postprocess import Instances, PostProcessing, large_enough

# Sides in pixels of the scaled image, in which a typical object has OBJECT_SIZE, 24.
TILE = 768
HALO = 64
# Fraction of the halo by which a centre may lie outside the core.
TOLERANCE = 0.25
# Two masks are of one object where they share more than this fraction of the smaller one; two parts
# of a large object, where they share more than this fraction of each in the overlap of their tiles.
SAME = 0.5
# Label maps of more pixels are kept in a file.
PIXELS_IN_MEMORY = 2**27
# Rows of the label map that are renumbered together.
BAND = 1024

Box = tuple[int, int, int, int]


class Tile(NamedTuple):
    """Pixels of the image, y1, x1, y2, x2."""

    window: Box  # what the network processes
    core: Box  # the part that this tile is responsible for

    @property
    def shape(self) -> tuple[int, int]:
        return self.window[2] - self.window[0], self.window[3] - self.window[1]


def tiles_of(shape: Sequence[int], scale: float, tile: int = TILE, halo: int = HALO) -> list[Tile]:
    """The tiles of an image, row by row.

    shape: (H, W) or longer. scale: of the image. tile, halo: in pixels of the scaled image; tile
    must be more than twice the halo. All tiles have the same size, that of the image where it is
    smaller, so that the network gets few shapes.
    """
    side, margin = max(1, int(tile / scale)), math.ceil(halo / scale)
    rows, columns = (_intervals(int(size), side, margin) for size in shape[:2])
    return [
        Tile((y1, x1, y2, x2), (top, left, bottom, right))
        for y1, y2, top, bottom in rows
        for x1, x2, left, right in columns
    ]


def _intervals(size: int, side: int, margin: int) -> list[tuple[int, int, int, int]]:
    """Start and stop of the tiles along one axis, and of their cores."""
    if size <= side:
        return [(0, size, 0, size)]
    count = math.ceil((size - 2 * margin) / (side - 2 * margin))
    starts = [round(i * (size - side) / (count - 1)) for i in range(count)]
    # The border between two cores lies in the middle of the overlap of their tiles.
    borders = [(one + side + other) // 2 for one, other in zip(starts, starts[1:], strict=False)]
    cores = zip([0, *borders], [*borders, size], strict=True)
    return [(start, start + side, *core) for start, core in zip(starts, cores, strict=True)]


class Mosaic:
    """The label map of a whole image, made from the label maps of its tiles in order."""

    def __init__(self, shape: Sequence[int], settings: PostProcessing, margin: float):
        """
        Args:
            shape: (H, W) or longer, of the image.
            settings: how small an object may be.
            margin: the halo, in pixels of the image.
        """
        self.labels = _zeros((int(shape[0]), int(shape[1])))
        self.settings = settings
        self.tolerance = margin * TOLERANCE
        self._scores: list[float] = []
        self._class_ids: list[int] = []
        self._areas: list[int] = []
        self._boxes: list[Box] = []
        self._cut: set[int] = set()  # those that continue beyond the tile they were found in
        # Bottom of the row of tiles above, and of this one; right side of the tile to the left.
        self._above = self._bottom = self._right = 0

    def add(
        self, tile: Tile, labels: np.ndarray, scores: np.ndarray, class_ids: np.ndarray
    ) -> None:
        """Add the objects of a tile: labels int [h, w] of 1 to n; scores and classes [n]."""
        seen = self._seen(tile)
        y, x = tile.window[:2]
        finds = []
        for label, window in enumerate(ndimage.find_objects(labels), 1):
            if window is None:
                continue
            mask = labels[window] == label
            rows, columns = np.nonzero(mask)
            top, left = y + window[0].start, x + window[1].start
            centre = top + rows.mean() + 0.5, left + columns.mean() + 0.5
            outside = _distance(centre, tile.core)
            cut = self._is_cut(window, tile)
            if outside <= self.tolerance or (cut and self._reaches_core(window, tile)):
                finds.append((outside > 0, label, top, left, mask, cut))
        for _, label, top, left, mask, cut in sorted(finds, key=lambda find: find[:2]):
            part = seen[top - y : top - y + mask.shape[0], left - x : left - x + mask.shape[1]]
            self._place(
                top,
                left,
                mask,
                part,
                tile,
                cut,
                float(scores[label - 1]),
                int(class_ids[label - 1]),
            )

    def _seen(self, tile: Tile) -> np.ndarray:
        """Which pixels of a tile were in an earlier one, bool [h, w]."""
        y1, x1, y2, x2 = tile.window
        if x1 == 0:  # a new row
            self._above, self._bottom, self._right = self._bottom, y2, 0
        seen = np.zeros(tile.shape, bool)
        seen[: max(0, self._above - y1)] = True
        seen[:, : max(0, self._right - x1)] = True
        self._right = x2
        return seen

    def _is_cut(self, window: tuple[slice, slice], tile: Tile) -> bool:
        """Whether an object touches an edge of the tile beyond which the image continues."""
        rows, columns = window
        (y1, x1, y2, x2), (height, width) = tile.window, self.labels.shape
        return bool(
            (rows.start == 0 and y1 > 0)
            or (rows.stop == y2 - y1 and y2 < height)
            or (columns.start == 0 and x1 > 0)
            or (columns.stop == x2 - x1 and x2 < width)
        )

    @staticmethod
    def _reaches_core(window: tuple[slice, slice], tile: Tile) -> bool:
        y, x = tile.window[:2]
        top, left, bottom, right = tile.core
        rows, columns = window
        return (
            rows.start + y < bottom
            and rows.stop + y > top
            and columns.start + x < right
            and columns.stop + x > left
        )

    def _place(
        self,
        top: int,
        left: int,
        mask: np.ndarray,
        seen: np.ndarray,
        tile: Tile,
        cut: bool,
        score: float,
        class_id: int,
    ) -> None:
        """Write one mask into the map: as a new object, part of an existing one, or not at all."""
        there = self.labels[top : top + mask.shape[0], left : left + mask.shape[1]]
        shared = np.bincount(there[mask])
        shared[0] = 0
        area, others = int(mask.sum()), np.flatnonzero(shared).tolist()
        joined = [
            other
            for other in others
            if other in self._cut and shared[other] > SAME * self._area_within(other, tile)
        ]
        if joined and shared[joined].sum() > SAME * np.count_nonzero(mask & seen):
            target = joined[0]
            for other in joined[1:]:
                self._join(target, other)
            self._scores[target - 1] = max(self._scores[target - 1], score)
        elif any(shared[other] > SAME * min(area, self._areas[other - 1]) for other in others):
            return  # found before
        else:
            self._scores.append(score)
            self._class_ids.append(class_id)
            self._areas.append(0)
            self._boxes.append((top, left, top, left))
            target = len(self._scores)
        new = mask & (there == 0)
        there[new] = target
        self._areas[target - 1] += int(new.sum())
        box = (top, left, top + mask.shape[0], left + mask.shape[1])
        self._boxes[target - 1] = _around(self._boxes[target - 1], box)
        if cut:
            self._cut.add(target)

    def _area_within(self, label: int, tile: Tile) -> int:
        """The number of an object's pixels in a tile's window."""
        y1, x1, y2, x2 = tile.window
        top, left, bottom, right = self._boxes[label - 1]
        part = self.labels[max(y1, top) : min(y2, bottom), max(x1, left) : min(x2, right)]
        return int(np.count_nonzero(part == label))

    def _join(self, label: int, other: int) -> None:
        """Make the object `other` part of the object `label`."""
        top, left, bottom, right = self._boxes[other - 1]
        part = self.labels[top:bottom, left:right]
        part[part == other] = label
        self._boxes[label - 1] = _around(self._boxes[label - 1], self._boxes[other - 1])
        self._areas[label - 1] += self._areas[other - 1]
        self._scores[label - 1] = max(self._scores[label - 1], self._scores[other - 1])
        self._areas[other - 1] = 0

    def finish(self) -> Instances:
        """Drop specks and number the objects by descending score."""
        areas = np.array(self._areas, np.int64)
        scores, class_ids = np.array(self._scores, np.float64), np.array(self._class_ids, np.int32)
        present = np.flatnonzero((areas > 0) & large_enough(areas, self.settings))
        present = present[np.argsort(-scores[present], kind="stable")]
        numbers = np.zeros(len(areas) + 1, np.int32)
        numbers[1 + present] = np.arange(1, len(present) + 1)
        for start in range(0, self.labels.shape[0], BAND):
            band = self.labels[start : start + BAND]
            band[:] = numbers[band]
        return Instances(self.labels, scores[present], class_ids[present])


def _zeros(shape: tuple[int, int]) -> np.ndarray:
    """int32 zeros; very many are kept in a file that disappears with the array."""
    if math.prod(shape) <= PIXELS_IN_MEMORY:
        return np.zeros(shape, np.int32)
    with tempfile.TemporaryFile(prefix="mrcnn_labels_") as file:
        return np.memmap(file, np.int32, "w+", shape=shape)


def _distance(point: tuple[float, float], box: Box) -> float:
    """How far a point lies outside a box, along the axis where it is farther."""
    return max(0.0, *(max(box[axis] - point[axis], point[axis] - box[axis + 2]) for axis in (0, 1)))


def _around(one: Box, other: Box) -> Box:
    """The box around two boxes; one without area does not count."""
    if one[0] == one[2]:
        return other
    return (
        min(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        max(one[3], other[3]),
    )
