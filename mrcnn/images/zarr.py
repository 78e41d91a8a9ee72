"""Zarr arrays (formats 2 and 3) and OME-Zarr (to version 0.5), with the package zarr.

Only the chunks that a window touches are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrcnn.errors import UserError
from mrcnn.files import require_regular
from mrcnn.images.arrays import planes_of_array
from mrcnn.images.planes import PixelSize, Plane, microns, pixel_size, refuse_odd_order

if TYPE_CHECKING:
    import zarr

MARKS = ("zarr.json", ".zarray", ".zgroup")
# Groups inside groups, down to the fields of a plate: row, well, field.
DEEPEST_GROUP = 3
# Bytes. A chunk is decoded whole, however small the window.
LARGEST_CHUNK = 2**31

_BY_NAME = {
    "y": "Y",
    "x": "X",
    "z": "Z",
    "t": "T",
    "time": "T",
    "c": "C",
    "channel": "C",
    "channels": "C",
}
_BY_TYPE = {"channel": "C", "time": "T"}


def is_image(folder: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return folder.name.casefold().endswith(".zarr") or _has_mark(folder)


def _has_mark(folder: Path) -> bool:
    # os.path returns False where the user has no access to a folder; pathlib would raise.
    return any(os.path.isfile(folder / mark) for mark in MARKS)


def planes(path: Path) -> list[Plane]:
    """The planes of an array or of an OME-Zarr group, at full resolution; no pixels are read.

    Groups of images, such as plates, give the planes of all of them. Raises UserError (a reason
    without the folder's name), and whatever zarr raises for broken ones.
    """
    try:
        import zarr
    except ImportError:
        raise UserError('is a Zarr: pip install "mrcnn-keras[formats]"') from None
    if not _has_mark(path):
        raise UserError("is not a Zarr array or group (it has no zarr.json, .zarray or .zgroup)")
    node = zarr.open(_own_files(path), mode="r")
    stored = _bytes_below(path)
    if isinstance(node, zarr.Array):
        axes, guessed = _axes_of_array(node)
        return _planes_of_array(node, axes, stored, guessed)
    missing: list[str] = []
    found = [
        plane
        for name, group in _images(node, "", 0, missing)
        for plane in _planes_of_image(group, name, stored)
    ]
    if not found:
        raise UserError("is a Zarr group without multiscales: name one of its arrays")
    if not missing:
        return found
    more = ", ..." if len(missing) > 5 else ""
    said = f"{len(missing)} wells or fields of the plate are missing: {', '.join(missing[:5])}"
    return [replace(plane, left_out=(said + more,)) for plane in found]


def _own_files(path: Path) -> Any:
    """The store of a folder that reads only regular files inside it."""
    from zarr.storage import LocalStore

    root = os.path.realpath(path)

    def check(key: str) -> None:
        name = os.path.join(root, key)
        if os.path.commonpath([root, os.path.realpath(name)]) != root:
            raise UserError(f"has {key[:80]!r} outside its own folder, which is not opened")
        if os.path.exists(name) and not os.path.isdir(name):
            require_regular(name)

    class OwnFiles(LocalStore):
        async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
            check(key)
            return await super().get(key, *arguments, **options)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
            key_ranges = list(key_ranges)
            for key, _ in key_ranges:
                check(key)
            return await super().get_partial_values(prototype, key_ranges)

    return OwnFiles(root, read_only=True)


def _bytes_below(folder: Path) -> int:
    """Bytes of all files; links to folders are not followed."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(folder)
        for name in names
    )


def _images(
    group: zarr.Group, name: str, depth: int, missing: list[str]
) -> Iterator[tuple[str, zarr.Group]]:
    """The groups that are OME's images, with what distinguishes them: in a plate B_2_0 for row B,
    column 2, field 0. missing: takes the names of those that a plate lists but does not have."""
    import zarr

    ome = _ome(group)
    if ome.get("multiscales"):
        yield name, group
        return
    if depth == DEEPEST_GROUP:
        return
    listed = (ome.get("plate") or {}).get("wells") or (ome.get("well") or {}).get("images") or []
    names = [str(one["path"]) for one in listed]
    for key in sorted(names or group.group_keys(), key=_number_first):
        inner = group.get(key)
        inner_name = f"{name}_{key.replace('/', '_')}".strip("_")
        if isinstance(inner, zarr.Group):
            levels = 2 if "/" in key else 1  # a well's path is row/column
            yield from _images(inner, inner_name, depth + levels, missing)
        elif names:
            missing.append(inner_name[:80])


def _number_first(key: str) -> tuple[tuple[int, str], ...]:
    """Sorts B/2 before B/10."""
    return tuple((int(part), "") if part.isdecimal() else (0, part) for part in key.split("/"))


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    """OME's metadata, which version 0.5 keeps under a key of its own."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _planes_of_image(group: zarr.Group, name: str, stored: int) -> list[Plane]:
    """The planes of the first level of an OME-Zarr image."""
    ome = _ome(group)
    multiscale = ome["multiscales"][0]
    level = multiscale["datasets"][0]
    array = group[level["path"]]
    described = multiscale.get("axes") or list("tczyx")  # versions before 0.3 had just these
    if len(described) != array.ndim:
        raise UserError(f"has {array.ndim} dimensions but {len(described)} axes")
    described = [axis if isinstance(axis, dict) else {"name": axis} for axis in described]
    axes = "".join(
        _BY_TYPE.get(axis.get("type", ""), "") or _axis(axis["name"]) for axis in described
    )
    names = [
        str(channel.get("label") or "")
        for channel in (ome.get("omero") or {}).get("channels") or []
    ]
    scale = _scale(level, array.ndim) * _scale(multiscale, array.ndim)
    sides = [
        microns(scale[axes.index(letter)], described[axes.index(letter)].get("unit"))
        for letter in "XY"
        if letter in axes
    ]
    size = pixel_size(*sides, "OME-Zarr") if len(sides) == 2 else PixelSize()
    smaller = _smaller_levels(group, multiscale["datasets"][1:], array, axes)
    return _planes_of_array(
        array, axes, stored, names=tuple(names), size=size, prefix=name, levels=smaller
    )


def _smaller_levels(
    group: zarr.Group, described: Sequence[Mapping[str, Any]], full: zarr.Array, axes: str
) -> list[zarr.Array]:
    """The other levels of a pyramid that exist, have all planes and are smaller on both sides.

    A faulty level is no reason to refuse the image.
    """
    import zarr

    found = []
    for level in described:
        array = group.get(level["path"])
        if (
            not isinstance(array, zarr.Array)
            or array.ndim != full.ndim
            or array.dtype != full.dtype
        ):
            continue
        if all(
            size < whole if axis in "YX" else size == whole
            for axis, size, whole in zip(axes, array.shape, full.shape, strict=True)
        ) and not _has_large_chunks(array):
            found.append(array)
    return sorted(found, key=lambda array: -array.shape[axes.index("Y")])


def _scale(described: Mapping[str, Any], dimensions: int) -> np.ndarray:
    """The factors by which the transformations of a level multiply the axes."""
    scale = np.ones(dimensions)
    for step in described.get("coordinateTransformations") or []:
        if step.get("type") == "scale" and "scale" in step:
            scale = scale * np.asarray(step["scale"], np.float64)
    return scale


def _axis(name: str | None) -> str:
    return _BY_NAME.get(str(name).casefold(), "Q")


def _axes_of_array(array: zarr.Array) -> tuple[str, bool]:
    """A letter for every dimension, by its name or else by its size, and whether it was by size."""
    names = getattr(array.metadata, "dimension_names", None) or dict(array.attrs).get(
        "_ARRAY_DIMENSIONS"
    )  # what xarray writes into format 2
    if names and len(names) == array.ndim and any(names):
        return "".join(map(_axis, names)), False
    if array.ndim == 2:
        return "YX", True
    if array.ndim == 3:
        if array.shape[2] in (3, 4):
            return "YXS", True
        return ("CYX" if array.shape[0] <= 4 else "ZYX"), True
    raise UserError(f"has {array.ndim} dimensions without names")


def _planes_of_array(
    array: zarr.Array, axes: str, stored: int, guessed: bool = False, **about: Any
) -> list[Plane]:
    """stored: bytes of the whole Zarr; guessed: whether the axes are guessed; about: see
    `arrays.planes_of_array`."""
    if _has_large_chunks(array):
        raise UserError(f"has chunks of {array.chunks}, each of more than {LARGEST_CHUNK} bytes")
    notes: tuple[str, ...] = ()
    if guessed and len(axes) > 2:
        sides = dict(zip(axes, array.shape, strict=True))
        count = math.prod(size for axis, size in sides.items() if axis not in "YXCS")
        refuse_odd_order(count, sides["Y"], sides["X"])
        notes = (f"its axes have no names: {array.shape} taken as {axes.replace('S', 'C')}",)
    return planes_of_array(array, axes, stored, notes=notes, **about)


def _has_large_chunks(array: zarr.Array) -> bool:
    return math.prod(array.chunks) * np.dtype(array.dtype).itemsize > LARGEST_CHUNK
