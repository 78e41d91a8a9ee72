"""What is in files, in words: for users who have to name a channel or wonder what a file holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mrcnn.images.image_files import Unreadable, each_file
from mrcnn.images.listing import image_paths
from mrcnn.images.planes import RGB, Plane


class Contents(NamedTuple):
    """What a file holds."""

    path: Path
    lines: list[str]  # one for each run of planes that are alike
    left_out: list[str]  # parts of it, with the reasons


def contents_of(inputs: Sequence[str | os.PathLike]) -> tuple[list[Contents], list[Unreadable]]:
    """What the files of inputs hold (see `listing.image_paths`), and what cannot be read.

    Only headers are read. Raises UserError where an input does not exist or contains no images.
    """
    paths, closed = image_paths(inputs)
    unreadable = [Unreadable(*one) for one in closed]
    found = [
        Contents(path, lines, list(planes[0].left_out) if planes else [])
        for path, planes, lines in each_file(paths, unreadable, _lines)
    ]
    return found, unreadable


def _lines(planes: Sequence[Plane]) -> list[str]:
    lines = []
    for words, group in groupby(planes, _words):
        alike = list(group)
        first, last = alike[0].suffix, alike[-1].suffix
        if len(alike) > 1:
            lines.append(f"{len(alike)} planes {first} to {last}: {words}")
        else:
            lines.append(f"{first}: {words}" if first else words)
    return lines


def _words(plane: Plane) -> str:
    """Size, channels, pixel size, levels and notes of a plane."""
    height, width, _ = plane.shape
    size = "pixel size unknown"
    if plane.mpp is not None:
        size = f"{plane.mpp:.4g} microns per pixel ({plane.mpp_from})"
    levels = " and ".join(f"{h} x {w}" for h, w in (level.shape for level in plane.levels))
    parts = (
        f"{height} x {width} pixels of {plane.dtype}",
        _channels(plane),
        size,
        f"smaller levels of {levels}" if levels else "",
        "alpha" if plane.has_alpha else "",
        *plane.notes,
    )
    return ", ".join(filter(None, parts))


def _channels(plane: Plane) -> str:
    count = plane.shape[2] - plane.has_alpha
    if plane.is_rgb and count == len(RGB):
        return "RGB"
    names = plane.channels if len(plane.channels) == count and any(plane.channels) else ()
    if count == 1:
        return f"one channel ({names[0]})" if names else "grey"
    listed = ", ".join(f"{number} {name}".strip() for number, name in enumerate(names, 1))
    return f"{count} channels ({listed})" if names else f"{count} channels without names"
