"""Arrays with any number of axes, as planes: Zarr, LIF and ND2 store their pixels in such arrays.

Axes have letters: Y, X; C for channels or S for colours (the last of four is alpha). Along all
other axes, planes follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mrcnn.errors import UserError
from mrcnn.images.planes import Level, PixelSize, Plane, plane_suffix, refuse_claims

NOTHING_KNOWN = PixelSize()


class Array(Protocol):
    """What is used of an array: parts, by a number or a slice with start and stop for each axis."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray: ...


def planes_of_array(
    array: Array,
    axes: str,
    stored: int,
    names: tuple[str, ...] = (),
    size: PixelSize = NOTHING_KNOWN,
    prefix: str = "",
    levels: Sequence[Array] = (),
    notes: Sequence[str] = (),
) -> list[Plane]:
    """The planes of an array; no pixels are read.

    axes: a letter per axis; stored: bytes of the file; names: of the channels; prefix: of the
    planes' suffixes; levels: smaller copies, which have the same axes.
    Raises UserError (a reason without the file's name) where the axes are not those of an image,
    and where the file cannot hold what it claims.
    """
    if any(axes.count(letter) != 1 for letter in "YX") or axes.count("C") + axes.count("S") > 1:
        raise UserError(
            f"has axes {axes} of shape {array.shape}; it needs one Y, one X and at most one C"
        )
    sizes = dict(zip(axes, array.shape, strict=True))
    channels = sizes.get("C", sizes.get("S", 1))
    shape = (sizes["Y"], sizes["X"], channels)
    beyond = [
        (axis, size) for axis, size in zip(axes, array.shape, strict=True) if axis not in "YXCS"
    ]
    dtype = np.dtype(array.dtype)
    count = math.prod(length for _, length in beyond)
    refuse_claims(count, math.prod(shape) * dtype.itemsize, stored)
    return [
        Plane(
            shape,
            dtype.newbyteorder("="),
            _PlaneReader(array, axes, place),
            channels=names if len(names) == channels else (),
            is_rgb="S" in axes,
            has_alpha=sizes.get("S") == 4,
            mpp=size.mpp,
            mpp_from=size.source,
            notes=tuple(filter(None, (size.note, *notes))),
            suffix="_".join(filter(None, (prefix, *_suffixes(beyond, place)))),
            levels=tuple(
                Level(
                    (one.shape[axes.index("Y")], one.shape[axes.index("X")]),
                    _PlaneReader(one, axes, place),
                )
                for one in levels
            ),
        )
        for place in np.ndindex(*(length for _, length in beyond))
    ]


def _suffixes(beyond: Sequence[tuple[str, int]], place: Sequence[int]) -> list[str]:
    return [
        plane_suffix(axis, index + 1, size)
        for (axis, size), index in zip(beyond, place, strict=True)
        if size > 1
    ]


@dataclass(frozen=True, eq=False)
class _PlaneReader:
    """One place along all axes other than Y, X and channels."""

    array: Array
    axes: str
    place: tuple[int, ...]

    def __call__(self, rows: slice, columns: slice, channels: slice) -> np.ndarray:
        wanted: dict[str, Any] = {"Y": rows, "X": columns, "C": channels, "S": channels}
        places = iter(self.place)
        index = tuple(wanted[axis] if axis in wanted else next(places) for axis in self.axes)
        pixels = np.asarray(self.array[index])
        kept = [axis.replace("S", "C") for axis in self.axes if axis in wanted]
        if "C" not in kept:
            pixels, kept = pixels[..., np.newaxis], [*kept, "C"]
        pixels = pixels.transpose([kept.index(axis) for axis in "YXC"])
        return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
