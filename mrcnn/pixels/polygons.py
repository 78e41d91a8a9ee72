"""Outlines and run lengths to pixels.

Coordinates are (x, y) in pixels, and pixel (0, 0) reaches from 0 to 1. An outline encloses the
pixels whose centres lie in it.

Shapes: H, W pixels of the image, V corners of an outline, L label layers, N instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mrcnn.pixels.masks import add_to_layers, join_layers

Size = tuple[int, int]
# Some pixels of the image: the cut-out they are in (rows, columns), and which of its pixels.
Cutout = tuple[tuple[slice, slice], np.ndarray]

# Far beyond any image, and far from where sums of coordinates overflow.
MAX_COORDINATE = 1e9
# Rows that the edges of an outline may cross in all: ten seconds of work, and five times the height
# of the largest images for an outline of 1,000 corners. How many are processed at a time.
MAX_PASSES, PASSES_AT_ONCE = 100_000_000, 1_000_000
# Bits of a run length in COCO's strings: far more than the pixels of any image need.
MAX_BITS = 50
# Property of ImageJ's ROIs that are further pieces of an instance: the name of its first one.
PIECE_OF = "mrcnn.piece_of"


def fill(rings: Sequence[np.ndarray], size: Size) -> Cutout | None:
    """The pixels whose centres lie inside an odd number of rings, so that a ring in a ring is a
    hole; None where there are none.

    rings: at least one, [V, 2], closed from the last corner to the first; what lies outside the
    image is cut off. Outlines that share an edge share no pixel: a centre on an edge belongs to
    what is right of it or below. Memory grows only with the box and the number of corners.
    Raises ValueError for coordinates that are not finite or absurd, and above MAX_PASSES.
    """
    height, width = size
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings]
    start, end = np.concatenate(rings), np.concatenate([np.roll(r, -1, axis=0) for r in rings])
    if not (np.abs(start) < MAX_COORDINATE).all():
        raise ValueError("it has coordinates that are not numbers, or are far outside the image")
    # All edges go downwards: neighbours then compute the same for an edge that they share.
    upwards = (start[:, 1] > end[:, 1])[:, np.newaxis]
    (x1, y1), (x2, y2) = np.where(upwards, end, start).T, np.where(upwards, start, end).T
    # The rows whose centres an edge crosses.
    first, stop = (np.ceil(y - 0.5).clip(0, height).astype(int) for y in (y1, y2))
    edges = np.flatnonzero(stop > first)
    if not len(edges):
        return None
    if (stop - first).sum() > MAX_PASSES:
        raise ValueError(
            f"its {len(start)} corners go up and down the image too often; simplify the outline"
        )
    top, bottom = int(first[edges].min()), int(stop[edges].max())
    left, right = (
        int(np.ceil(x - 0.5).clip(0, width)) for x in (start[:, 0].min(), start[:, 0].max())
    )
    # All that counts is whether edges cross a pixel's row left of it an odd number of times: bytes
    # suffice.
    passes = np.zeros((bottom - top, right - left + 1), np.uint8)
    ends = np.cumsum((stop - first)[edges])
    for part in np.split(
        edges, np.searchsorted(ends, range(PASSES_AT_ONCE, ends[-1], PASSES_AT_ONCE))
    ):
        counts = (stop - first)[part]
        edge = np.repeat(part, counts)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first[part], counts)
        x = x1[edge] + (row + 0.5 - y1[edge]) * ((x2 - x1)[edge] / (y2 - y1)[edge])
        # The first column whose centre is not left of the edge.
        column = np.ceil(x - 0.5).clip(left, right).astype(int)
        np.add.at(passes, (row - top, column - left), np.uint8(1))
    inside = np.cumsum(passes, axis=1, dtype=np.uint8)[:, :-1] % 2 == 1
    window = slice(top, bottom), slice(left, right)
    return (window, inside) if inside.any() else None


def union(patches: Iterable[Cutout | None]) -> Cutout | None:
    """One patch with the pixels of all."""
    patches = [patch for patch in patches if patch is not None]
    if len(patches) < 2:
        return patches[0] if patches else None
    top, left = (min(window[axis].start for window, _ in patches) for axis in (0, 1))
    bottom, right = (max(window[axis].stop for window, _ in patches) for axis in (0, 1))
    inside = np.zeros((bottom - top, right - left), bool)
    for (rows, columns), part in patches:
        inside[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= (
            part
        )
    return (slice(top, bottom), slice(left, right)), inside


def pack(patches: Iterable[Cutout | None], size: Size) -> tuple[np.ndarray, int, int]:
    """Instances to label layers int32 [H, W, L], as few as a greedy search finds.

    Returns (layers, N, number of patches that are None). Those get no label.
    """
    layers = [np.zeros(size, np.int32)]
    count = empty = 0
    for patch in patches:
        if patch is None:
            empty += 1
        else:
            count += 1
            add_to_layers(layers, size, *patch, count)
    return join_layers(layers), count, empty


def decode_run_lengths(text: str) -> list[int]:
    """COCO's compressed run lengths, a string, as numbers. Raises ValueError for other strings.

    A number is a sequence of characters with 5 bits each above "0", the lowest bits first; 32 means
    that more follow, and the highest bit of the last is the sign. From the fourth number on they
    are differences from the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for code in (ord(character) - ord("0") for character in text):
        if not 0 <= code < 64:
            raise ValueError("its run lengths have an invalid character")
        value |= (code & 31) << shift
        shift += 5
        if shift > MAX_BITS:
            raise ValueError("its run lengths have a number with too many digits")
        if not code & 32:
            value -= (code & 16) << shift - 4  # the sign bit, moved to just above the others
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut short")
    return counts


def fill_runs(counts: Sequence[int], size: Size) -> Cutout | None:
    """The pixels of runs of 0, 1, 0, ... that go down the columns; None where there is no 1.

    Raises ValueError where they do not add up to the image.
    """
    height, width = size
    if not all(type(count) is int for count in counts):
        raise ValueError("its run lengths are not all whole numbers")
    lengths = np.asarray(counts, np.int64).reshape(-1)
    pixels = height * width
    if ((lengths < 0) | (lengths > pixels)).any() or lengths.sum() != pixels:
        raise ValueError(f"its run lengths do not add up to {height} x {width} pixels")
    ends = np.cumsum(lengths)
    starts, stops = ends[0:-1:2], ends[1::2]
    starts, stops = starts[starts < stops], stops[starts < stops]
    if not len(starts):
        return None
    left, right = int(starts[0]) // height, (int(stops[-1]) - 1) // height + 1
    changes = np.zeros((right - left) * height + 1, np.int8)
    changes[starts - left * height] += 1
    changes[stops - left * height] -= 1
    columns = np.cumsum(changes[:-1], dtype=np.int8).reshape(right - left, height)
    return (slice(0, height), slice(left, right)), columns.T.astype(bool)
