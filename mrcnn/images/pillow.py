"""PNG, JPEG and BMP files. They are decoded whole, whatever part is wanted."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, ExifTags, Image, JpegImagePlugin, PngImagePlugin

from mrcnn.errors import UserError
from mrcnn.files import open_regular
from mrcnn.images.planes import LastDecoded, Plane, file_version, oriented

# The classes rather than Image.open, which warns of sizes that are common in microscopy.
OPENERS = {
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
}
# A small file can claim to be a huge image, and all of it has to be decoded.
MAX_PIXELS = 400_000_000
# Bytes of pixels per byte of the file (PNG reaches 1,032), and bytes that are never refused.
MOST_EXPANSION, ALWAYS_ALLOWED = 2_000, 2**26

# Modes of Pillow that are kept, with their channels; all others become RGB.
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGB": 3, "RGBA": 4}
# Raw modes of 16-bit colours in files, and Pillow's modes, which keep only their high bytes.
_DEEP = {"LA;16B": "LA", "RGB;16B": "RGB", "RGBA;16B": "RGBA"}

_last = LastDecoded()


def is_image(start: bytes) -> bool:
    """Whether a file that starts with these bytes is read by this module."""
    return start.startswith(tuple(OPENERS))


def planes(path: Path) -> list[Plane]:
    """The only plane of a file; just the header is read.

    Grey of 1, 8 and 16 bits, RGB and alpha stay as they are; palettes and other colours become
    RGB. Raises UserError, and whatever Pillow raises for broken files.
    """
    return [_plane(lambda: open_regular(path), lambda: file_version(path))]


def plane_of_bytes(data: bytes) -> Plane:
    """As `planes`, for a file in memory."""
    return _plane(lambda: io.BytesIO(data), lambda: id(data))


def _plane(open_file: Callable[[], BinaryIO], state: Callable[[], Hashable]) -> Plane:
    """state: a key that changes with the file."""
    with open_file() as file:
        image = _open(file)
        width, height = image.size
        mode, dtype = _form(image)
        orientation, notes = _orientation(image), _notes(image)
        has_palette = image.mode == "P"
        _refuse_size(height, width, _CHANNELS[mode] * dtype.itemsize, file.seek(0, os.SEEK_END))

    def whole() -> np.ndarray:
        with open_file() as file:
            return _decode(file)

    def read(rows: slice, columns: slice, channels: slice) -> np.ndarray:
        if (rows.stop - rows.start, columns.stop - columns.start) == (height, width):
            pixels = whole()
        else:
            pixels = _last.get(state(), whole)
        return pixels[rows, columns, channels].copy()

    def read_indices(rows: slice, columns: slice, channels: slice) -> np.ndarray:
        with open_file() as file:
            return np.asarray(_open(file))[rows, columns, np.newaxis]

    plane = Plane(
        (height, width, _CHANNELS[mode]),
        dtype,
        read,
        is_rgb=mode.startswith("RGB"),
        has_alpha=mode.endswith("A"),
        notes=notes,
        indices=read_indices if has_palette else None,
    )
    return oriented(plane, orientation)


def _refuse_size(height: int, width: int, pixel_bytes: int, file_bytes: int) -> None:
    """Raise UserError (a reason without the file's name) before anything is decoded."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"has {height} x {width} pixels and can only be read whole: save it as a tiled TIFF"
        )
    if height * width * pixel_bytes > max(ALWAYS_ALLOWED, MOST_EXPANSION * file_bytes):
        raise UserError(f"claims {height} x {width} pixels in {file_bytes} bytes")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 where there is none. No pixels are read."""
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif") or b"")
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many types for damaged tags, which nothing depends on
        return 1


def _notes(image: Image.Image) -> tuple[str, ...]:
    """How an image that is neither grey nor RGB was converted."""
    if image.mode in _CHANNELS:
        return ()
    return (
        "its palette's colours are used" if image.mode == "P" else f"{image.mode} taken as RGB",
    )


def _open(file: BinaryIO) -> Image.Image:
    start = file.read(4)
    file.seek(0)
    return next(opener for magic, opener in OPENERS.items() if start.startswith(magic))(file)


def _rawmode(image: Image.Image) -> str:
    """How the file stores its pixels."""
    rawmode = image.tile[0][3] if image.tile else ""
    return rawmode if isinstance(rawmode, str) else ""


def _form(image: Image.Image) -> tuple[str, np.dtype]:
    """The mode and dtype of what `_decode` returns."""
    deep = _DEEP.get(_rawmode(image))
    if deep:
        return deep, np.dtype(np.uint16)
    mode = image.mode if image.mode in _CHANNELS else "RGB"
    if mode == "1":
        return mode, np.dtype(bool)
    return mode, np.dtype(np.uint16 if mode.startswith("I") else np.uint8)


def _decode(file: BinaryIO) -> np.ndarray:
    """All pixels [H, W, C]."""
    image = _open(file)
    mode, dtype = _form(image)
    if _rawmode(image) in _DEEP:
        pixels = _deep_colours(image, file)
    else:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.astype(dtype, copy=False).reshape(*pixels.shape[:2], -1)


def _deep_colours(image: Image.Image, file: BinaryIO) -> np.ndarray:
    """16-bit colours [H, W, C], uint16. Pillow keeps only the high byte of each value.

    Read again with a raw mode of the other byte order, it keeps the low byte: together they are the
    whole value. Grey with alpha has no such mode: it is read as four channels of 8 bits.
    """
    mode = _DEEP[_rawmode(image)]
    if mode == "LA":
        return _read_as(image, "RGBA").view(">u2")
    high = np.asarray(image).astype(np.uint16)
    file.seek(0)
    return high * 256 + _read_as(_open(file), f"{mode};16L")


def _read_as(image: Image.Image, rawmode: str) -> np.ndarray:
    image.tile = [(*tile[:3], rawmode) for tile in image.tile]
    return np.asarray(image)
