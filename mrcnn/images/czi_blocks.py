"""The blocks of Zeiss CZI files: where they are, and their pixels, decoded by imagecodecs.

Why not by czifile: its last version for Python 3.11, 2019.7.2.3, supports neither Zstandard, which
ZEN writes, nor blocks whose directory claims one row too many; those of 2026, which need Python
3.12, have `CziSubBlockSegmentData.data` for this, and `CziImage` for windows, scenes and levels.
Once Python 3.12 is the oldest that is supported, most of this module and of `czi` can go.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn.errors import UserError
from mrcnn.files import open_regular
from mrcnn.images.planes import FileVersion, refuse_expansion

# Time, depth, rotation, illumination, phase, view, block: planes follow each other along these.
PLACES = "TZRIHVB"
_BLOCK = b"ZISRAWSUBBLOCK"
# Bytes before the sizes of a block and before its directory entry, and the least that entry takes.
_SIZES_AT, _ENTRY_AT, _LEAST_ENTRY = 32, 48, 240
_RAW, _JPEG, _LZW, _JPEG_XR, _ZSTD, _ZSTD_WITH_HEADER = 0, 1, 2, 4, 5, 6
_DECODED_TO_RGB = (_JPEG, _JPEG_XR)  # the others have blue first


@dataclass(frozen=True)
class Block:
    """A rectangle of pixels, and where in the file it is."""

    scene: int
    channel: int
    place: tuple[int, ...]  # along PLACES
    order: int  # later ones lie on top
    top: int
    left: int
    height: int
    width: int
    stored: tuple[int, int, int]  # h, w, samples: smaller than height, width in a pyramid
    dtype: np.dtype
    compression: int
    position: int  # bytes
    entry_bytes: int

    @property
    def reduction(self) -> int:
        """How many pixels at full size one pixel of this block stands for, along each side."""
        return max(1, round(max(self.height / self.stored[0], self.width / self.stored[1])))


def block_of(entry: Any, number: int) -> Block:
    """From an entry of czifile, whose classes differ before 2026 (such as for Python 3.11)."""
    if hasattr(entry, "dimension_entries"):
        sides = {d.dimension: (d.start, d.size, d.stored_size) for d in entry.dimension_entries}
        entry_bytes = 32 + 20 * len(entry.dimension_entries)
    else:
        sizes = zip(entry.start, entry.shape, entry.stored_shape, strict=True)
        sides = dict(zip(entry.dims[:-1], sizes, strict=False))
        sides |= {"S": (max(0, entry.scene_index), 1, 1), "M": (entry.mosaic_index, 1, 1)}
        entry_bytes = entry.storage_size
    (top, height, rows), (left, width, columns) = sides["Y"], sides["X"]

    def start(axis: str) -> int:
        return int(sides.get(axis, (0, 1, 1))[0])

    if any(sides.get(axis, (0, 1, 1))[1] > 1 for axis in f"C{PLACES}"):
        raise UserError("has blocks of several planes, which is not supported: save it as OME-TIFF")
    stored = (int(rows) or int(height), int(columns) or int(width), int(entry.shape[-1]))
    if min(height, width, *stored) <= 0:
        raise UserError("has blocks without pixels: its directory is damaged")
    return Block(
        start("S"),
        start("C"),
        tuple(map(start, PLACES)),
        start("M") * 2**32 + number,
        int(top),
        int(left),
        int(height),
        int(width),
        stored,
        np.dtype(entry.dtype).base,
        int(entry.compression),
        int(entry.file_position),
        int(entry_bytes),
    )


@functools.lru_cache(maxsize=8)
def decoded(version: FileVersion, block: Block) -> np.ndarray:
    """Pixels [h, w, samples] of a block; the latest ones are cached, since windows overlap."""
    with open_regular(version.path) as file:
        file.seek(block.position)
        head = file.read(_ENTRY_AT)
        if len(head) < _ENTRY_AT or not head.startswith(_BLOCK):
            raise UserError("ends before its pixels do, or its directory is damaged")
        metadata, _, count = struct.unpack_from("<iiq", head, _SIZES_AT)
        start = _ENTRY_AT + max(_LEAST_ENTRY, block.entry_bytes) + max(0, metadata)
        file.seek(block.position + start)
        claimed = math.prod(block.stored) * block.dtype.itemsize
        refuse_expansion(claimed, count)
        data = file.read(max(0, min(count, version.size)))
    if len(data) < count:
        raise UserError("ends before its pixels do")
    # ZEN writes blocks uncompressed where compressing them would not pay off.
    compression = _RAW if len(data) == claimed else block.compression
    pixels = _decompressed(data, compression, block, claimed)
    if block.stored[2] >= 3 and compression not in _DECODED_TO_RGB:
        pixels = pixels[..., [2, 1, 0, *range(3, block.stored[2])]]
    pixels.setflags(write=False)
    return pixels


def _decompressed(data: bytes, compression: int, block: Block, claimed: int) -> np.ndarray:
    """Pixels [h, w, samples]; claimed: bytes that they should have."""
    import imagecodecs

    height, width, samples = block.stored
    if compression in _DECODED_TO_RGB:
        decode = imagecodecs.jpeg_decode if compression == _JPEG else imagecodecs.jpegxr_decode
        return decode(data).reshape(height, -1, samples).astype(block.dtype, copy=False)
    if compression == _LZW:
        data = imagecodecs.lzw_decode(data, out=claimed)
    elif compression == _ZSTD:
        data = imagecodecs.zstd_decode(data, out=claimed)
    elif compression == _ZSTD_WITH_HEADER:
        data = _zstd_with_header(data, block.dtype.itemsize, claimed)
    elif compression != _RAW:
        raise UserError(f"has blocks compressed with method {compression}, which is not supported")
    # For reduced blocks at an edge, some writers claim one row more than there is.
    values = np.frombuffer(data, block.dtype)
    return values[: values.size // (width * samples) * width * samples].reshape(-1, width, samples)


def _zstd_with_header(data: bytes, item: int, claimed: int) -> bytes:
    """The data of method zstd1, which has a header of 1 byte, or of 3, the last of which says
    whether all low bytes of 16-bit values come before all high ones."""
    import imagecodecs

    header = data[0]
    decoded = bytes(imagecodecs.zstd_decode(data[header:], out=claimed))
    if header == 3 and data[1] == 1 and data[2] & 1 and item == 2:
        halves = np.frombuffer(decoded, np.uint8).reshape(2, -1)
        return halves.T.tobytes()
    return decoded
