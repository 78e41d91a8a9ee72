"""Leica LIF files: the package liffile reads the directory; pixels are mapped from the file.

A LIF file holds any number of images in folders; each has its pixels in one piece, not compressed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.errors import UserError, one_line
from mrcnn.files import require_regular
from mrcnn.images.arrays import planes_of_array
from mrcnn.images.planes import (
    PixelSize,
    Plane,
    file_version,
    microns,
    pixel_size,
    plane_suffix,
)

# Letters of planes for the axes of liffile whose own are Greek: emission, excitation wavelengths.
_LETTERS = {"λ": "W", "Λ": "E"}
_ALONG_X, _ALONG_Y = "1", "2"  # DimID
_BLUE, _GREEN = "3", "2"  # ChannelTag


def is_image(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a LIF."""
    return start[:4] == b"\x70\0\0\0" and start[8:9] == b"\x2a"


def planes(path: Path) -> list[Plane]:
    """The planes of a file, image by image; only the directory is read.

    Raises UserError (a reason without the file's name), and whatever liffile raises for broken
    files.
    """
    try:
        import liffile
    except ImportError:
        raise UserError('is a Leica LIF: pip install "mrcnn-keras[formats]"') from None
    stored = os.path.getsize(path)
    found: list[Plane] = []
    left_out: list[str] = []
    with open(require_regular(path), "rb") as file, liffile.LifFile(file, squeeze=False) as lif:
        left_out += _without_references(lif.xml_element)
        images = list(lif.images)
        for number, image in enumerate(images, 1):
            name = one_line(image.path, 100)
            prefix = ""
            if len(images) > 1:
                prefix = f"{plane_suffix('S', number, len(images))}_{name}"
            try:
                found += _planes_of_image(path, image, prefix, stored)
            except UserError as error:
                if len(images) == 1:
                    raise
                left_out.append(f"{name} {error}")
    if not found:
        raise UserError("; ".join(left_out) or "has no image in it")
    return [replace(plane, left_out=tuple(left_out)) for plane in found]


def _without_references(root: Any) -> list[str]:
    """Remove the references to other files, which liffile would open wherever they are, from a
    file's XML. Returns a note of that, in a list, or []."""
    count = 0
    for children in root.iterfind("./Element/Children"):
        for reference in children.findall("Reference"):
            children.remove(reference)
            count += 1
    return [f"other files that it refers to are not opened: {count}"] if count else []


def _planes_of_image(path: Path, image: Any, prefix: str, stored: int) -> list[Plane]:
    if image.is_flim:
        raise UserError("is a lifetime measurement (FLIM), which is not supported")
    block, sizes = image.memory_block, image.sizes
    axes = "".join(_LETTERS.get(axis, axis) for axis in sizes)
    if len(axes) != len(sizes) or "?" in axes or not {"Y", "X"} <= set(axes):
        raise UserError(f"has axes {', '.join(sizes)}: rows or columns missing, or unknown axes")
    shape = tuple(sizes.values())
    # liffile states where rows are padded, that is longer in the file than in the image.
    padded = getattr(image, "_shape_stored", None) or shape
    if math.prod(padded) * image.dtype.itemsize > block.size:
        raise UserError(f"claims {shape} pixels in {block.size} bytes")
    pixels = _Pixels(str(path), block.offset, image.dtype, shape, padded, _is_bgr(image, axes))
    tiles = "its tiles are not stitched: each is an image" if sizes.get("M", 1) > 1 else ""
    return planes_of_array(
        pixels, axes, stored, _channel_names(image), _pixel_size(image), prefix, notes=(tiles,)
    )


@dataclass(frozen=True, eq=False)
class _Pixels:
    """An array in a file; nothing of it is in memory and no file is open."""

    path: str
    offset: int  # bytes
    dtype: np.dtype
    shape: tuple[int, ...]
    padded: tuple[int, ...]  # shape in the file, at least as large
    is_bgr: bool

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        end = self.offset + math.prod(self.padded) * self.dtype.itemsize
        if file_version(self.path).size < end:
            raise UserError("ends before its pixels do")
        pixels = np.memmap(self.path, self.dtype, "r", self.offset, self.padded)
        pixels = pixels[tuple(slice(size) for size in self.shape)]
        if self.is_bgr:
            pixels = pixels[..., ::-1]
        # A copy, so that no file stays open.
        return np.array(pixels[index], subok=False)


# --- metadata -----------------------------------------------------------------------------------


def _described(image: Any, what: str) -> Sequence[Any]:
    """Elements of the image's XML, such as Channels/ChannelDescription."""
    return image.xml_element.findall(f"./Data/Image/ImageDescription/{what}")


def _channels(image: Any) -> list[Any]:
    """Descriptions of the channels in the order of the pixels."""
    found = _described(image, "Channels/ChannelDescription")
    return sorted(found, key=lambda one: int(one.get("BytesInc") or 0))


def _is_bgr(image: Any, axes: str) -> bool:
    tags = [one.get("ChannelTag") for one in _channels(image)]
    return axes.endswith("S") and tags[:2] == [_BLUE, _GREEN]


def _channel_names(image: Any) -> tuple[str, ...]:
    """The dyes where they are known, or else the colours that the channels are shown in."""
    if "S" in image.sizes:
        return ()
    names = []
    for one in _channels(image):
        dyes = [
            value.findtext("Value")
            for value in one.iterfind("ChannelProperty")
            if value.findtext("Key") == "DyeName"
        ]
        names.append(next(filter(None, dyes), None) or one.get("LUTName") or "")
    return tuple(names) if any(names) else ()


def _pixel_size(image: Any) -> PixelSize:
    """From the lengths of the axes, which are measured between the outermost pixels' centres."""
    sides: dict[str | None, float | None] = {}
    for one in _described(image, "Dimensions/DimensionDescription"):
        steps = int(one.get("NumberOfElements") or 0) - 1
        length = microns(one.get("Length"), one.get("Unit"))
        sides[one.get("DimID")] = length / steps if length and steps > 0 else None
    return pixel_size(sides.get(_ALONG_X), sides.get(_ALONG_Y), "LIF")
