"""Nikon ND2 files (those since 2010), with the package nd2.

One frame, all channels of one place, is read at a time: from the mapped file where it is not
compressed, so that a window reads no more than its own bytes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.errors import UserError, one_line
from mrcnn.files import require_regular
from mrcnn.images.arrays import NOTHING_KNOWN, planes_of_array
from mrcnn.images.planes import PixelSize, Plane, pixel_size, plane_suffix

MAGIC = b"\xda\xce\xbe\x0a"
_POSITION = "P"
_COLOURS = 3  # components of a channel


def is_image(start: bytes) -> bool:
    """Whether a file that starts with these bytes is an ND2."""
    return start.startswith(MAGIC)


def planes(path: Path) -> list[Plane]:
    """The planes of a file, position by position; only the metadata are read.

    Raises UserError (a reason without the file's name), and whatever nd2 raises for broken files.
    """
    try:
        import nd2
    except ImportError:
        raise UserError('is a Nikon ND2: pip install "mrcnn-keras[formats]"') from None
    with nd2.ND2File(require_regular(path)) as file:
        frames = _Frames.of(file, path)
        names, size = _about(file)
        positions = _position_names(file)
        recorded = int(file.attributes.sequenceCount)
    stored, found = os.path.getsize(path), []
    notes = ("its three components are taken as red, green and blue",) if frames.samples > 1 else ()
    for number, name in enumerate(positions):
        prefix = ""
        if len(positions) > 1:
            prefix = "_".join(filter(None, (plane_suffix("S", number + 1, len(positions)), name)))
        array = replace(frames, position=number)
        planes = planes_of_array(array, array.axes, stored, names, size, prefix, notes=notes)
        # A recording that was stopped has fewer frames than were planned.
        places = np.ndindex(*array.places)
        found += [
            plane
            for plane, place in zip(planes, places, strict=True)
            if array.number(place) < recorded
        ]
    planned = len(positions) * math.prod(frames.places)
    absent = planned - len(found)
    if not found:
        raise UserError("has no image in it")
    left_out = (f"{absent} of {planned} planned planes are missing",) if absent else ()
    return [replace(plane, left_out=left_out) for plane in found]


@dataclass(frozen=True, eq=False)
class _Frames:
    """The frames of one position as an array of axes; no file is open."""

    path: str
    loops: tuple[tuple[str, int], ...]  # axes along which frames follow each other, and their sizes
    height: int
    width: int
    channels: int
    samples: int
    dtype: np.dtype
    position: int = 0

    @classmethod
    def of(cls, file: Any, path: Path) -> _Frames:
        sizes = dict(file.sizes)  # axes of size 1 are left out
        samples = int(file.components_per_channel)
        if samples != _COLOURS:
            samples = 1  # nd2 treats all components as channels
        loops = tuple((axis, int(n)) for axis, n in sizes.items() if axis not in "CYXS")
        if any(len(axis) != 1 for axis, _ in loops):
            raise UserError(f"has axes {', '.join(sizes)}, which are not supported")
        channels = int(sizes.get("C", 1))
        attributes = file.attributes
        height, width = int(attributes.heightPx), int(attributes.widthPx or 0)
        if channels > 1 and samples > 1:
            raise UserError(f"has {channels} channels of {samples} samples each")
        return cls(str(path), loops, height, width, channels, samples, np.dtype(file.dtype))

    @property
    def places(self) -> tuple[int, ...]:
        """Sizes of the axes other than position, rows, columns and channels."""
        return tuple(size for axis, size in self.loops if axis != _POSITION)

    @property
    def axes(self) -> str:
        letters = "".join(axis for axis, _ in self.loops if axis != _POSITION)
        return letters + ("YXS" if self.samples > 1 else "CYX")

    @property
    def shape(self) -> tuple[int, ...]:
        frame = (self.height, self.width)
        return (
            *self.places,
            *((*frame, self.samples) if self.samples > 1 else (self.channels, *frame)),
        )

    def number(self, place: tuple[int, ...]) -> int:
        """The frame's number at a place along the axes before rows, columns and channels."""
        along = iter(place)
        number = 0
        for axis, size in self.loops:
            number = number * size + (self.position if axis == _POSITION else next(along))
        return number

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        import nd2

        count = len(self.places)
        with nd2.ND2File(require_regular(self.path)) as file:
            frame = file.read_frame(self.number(index[:count]))
            if not _is_of_file(frame) and not frame.any():
                raise UserError("has no pixels for this plane")  # nd2 returns zeros
            frame = frame.reshape(self.shape[count:])
            # A copy, so that the file need not stay open.
            return np.array(frame[index[count:]])


def _is_of_file(frame: np.ndarray) -> bool:
    """Whether an array is a view of memory that is not an array's: a file, or bytes of it."""
    base: Any = frame
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return not isinstance(base, np.ndarray)


# --- metadata -----------------------------------------------------------------------------------


def _about(file: Any) -> tuple[tuple[str, ...], PixelSize]:
    """Names of the channels and the pixel size, where they are known."""
    try:
        channels = file.metadata.channels or []
        names = tuple(channel.channel.name or "" for channel in channels)
        volume = channels[0].volume
    except Exception:  # wrong metadata is no reason to refuse the pixels
        return (), NOTHING_KNOWN
    if not all(volume.axesCalibrated[:2]):
        return names, NOTHING_KNOWN
    return names, pixel_size(*map(float, volume.axesCalibration[:2]), "ND2")


def _position_names(file: Any) -> list[str]:
    """The name of every position, or ""; a single "" where there are no positions."""
    count = int(dict(file.sizes).get(_POSITION, 1))
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            names = [one_line(point.name or "", 60) for point in loop.parameters.points]
            if len(names) == count:
                return names
    return [""] * count
