"""What the description of a TIFF file claims, checked before tifffile acts on it.

tifffile makes lists as long as a description says, and opens the files that it names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from mrcnn.errors import UserError, quoted
from mrcnn.files import other_kind, read_bytes, require_regular

# Attributes of OME-XML that count planes.
_COUNTS = ("PlaneCount", "NumPlanes")


def stored_bytes(tiff: tifffile.TiffFile, path: Path) -> int:
    """Bytes of the file, and of the others that it names as parts of its set.

    Raises UserError (a reason without the file's name) where OME's description claims more planes
    than bytes, or names a file elsewhere or one that is not a regular file.
    """
    stored = os.path.getsize(path)
    root = _ome_root(tiff)
    if root is None:
        return stored
    named = {one.get("FileName", "") for one in _elements(root, "UUID")} - {"", path.name}
    stored += sum(_size_of(name, path) for name in sorted(named))
    for pixels in _elements(root, "Pixels"):
        count = 1
        for letter in "ZCT":
            count *= _whole(pixels.get(f"Size{letter}"))
        _refuse_planes(count, stored)
        for data in _elements(pixels, "TiffData"):
            _refuse_planes(max(_whole(data.get(name)) for name in _COUNTS), stored)
    for letter in "ZCT":
        for along in _elements(root, f"ModuloAlong{letter}"):
            _refuse_planes(_steps(along), stored)
    return stored


def companion_of(tiff: tifffile.TiffFile, path: Path) -> tuple[str | None, str]:
    """OME's description where the file says that another one next to it has it: a companion, or
    the first TIFF of a set; and, where that one is missing, a note saying so.

    Raises UserError (a reason without the file's name) where it lies elsewhere, or is not a
    regular file.
    """
    root = _ome_root(tiff)
    only = None if root is None else next(_elements(root, "BinaryOnly"), None)
    name = "" if only is None else only.get("MetadataFile", "")
    if not name:
        return None, ""
    if not _size_of(name, path):
        return (
            None,
            f"{quoted(name)}, which describes it, is missing: its pages are read as they are",
        )
    other = path.parent / name
    if not name.casefold().endswith((".tif", ".tiff")):
        return read_bytes(other).decode("utf-8", errors="replace"), ""
    with tifffile.TiffFile(require_regular(other)) as master:
        return (None if _is_binary_only(master) else master.ome_metadata), ""


def _is_binary_only(tiff: tifffile.TiffFile) -> bool:
    root = _ome_root(tiff)
    return root is not None and any(_elements(root, "BinaryOnly"))


def _ome_root(tiff: tifffile.TiffFile) -> ElementTree.Element | None:
    """OME's description; None where there is none, or it is broken and tifffile ignores it."""
    try:
        return ElementTree.fromstring(tiff.ome_metadata) if tiff.is_ome else None
    except (ElementTree.ParseError, ValueError):
        return None


def _elements(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (one for one in root.iter() if str(one.tag).rpartition("}")[2] == name)


def _whole(text: str | None) -> int:
    try:
        return max(1, int(text or 1))
    except ValueError:  # tifffile complains about it
        return 1


def _steps(along: ElementTree.Element) -> float:
    """How many places a ModuloAlong with start, end and step has."""
    try:
        start, end, step = (
            float(along.get(key, otherwise))
            for key, otherwise in (("Start", 0), ("End", 0), ("Step", 1))
        )
        return abs(end - start) / abs(step)
    except (ValueError, ZeroDivisionError):
        return float("inf")


def _refuse_planes(count: float, stored: int) -> None:
    if not count <= stored:
        raise UserError(f"claims {count:g} planes in {stored} bytes: its description is wrong")


def _size_of(name: str, path: Path) -> int:
    """Bytes of a file that `path` names; 0 where it does not exist."""
    other = path.parent / name
    homes = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
    target = os.path.realpath(other)
    if not any(os.path.commonpath([home, target]) == home for home in homes):
        raise UserError(
            f"names the file {name[:80]!r} outside its own folder, which is not opened: put both "
            "into one folder"
        )
    try:
        kind, size = other_kind(other), os.path.getsize(other)
    except (OSError, ValueError):
        return 0
    if kind is not None:
        raise UserError(f"names {name[:80]!r}, which is not a regular file, but {kind}")
    return size
