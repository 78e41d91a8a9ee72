"""Whether an image file has as many pixels as it says: labels of half an image are wrong labels.

Readers take what they need of a file that has more, and may fill in zeros for what is missing. With
PNG and JPEG, checksums or decoding reveal it; this module covers the formats that do not.
"""

from __future__ import annotations

import io
import struct

from mrcnn.errors import UserError

# Surplus bytes that files of these formats may have, to end at an even offset.
PADDING = 4
UNCOMPRESSED = 1  # TIFF's number for it


def require_declared_size(data: bytes, name: str) -> None:
    """Raise UserError where a TIFF or BMP file holds more or fewer pixels than its header says.

    data: the whole file. Other formats, and files that cannot be read at all, pass.
    """
    try:
        if data[:4] in (b"II*\0", b"MM\0*"):
            wanted, there = _of_tiff(data)
        elif data[:2] == b"BM":
            wanted, there = _of_bmp(data)
        else:
            return
    except Exception:  # whatever broken files cause: decoding them says what is wrong
        return
    if not wanted <= there <= wanted + PADDING:
        raise UserError(
            f"{name}: damaged: its header claims {wanted} bytes of pixels, but {there} are there"
        )


def _of_tiff(data: bytes) -> tuple[int, int]:
    """Bytes of pixels (wanted, there) of the first page; if it is compressed, of its parts."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        there = sum(max(0, min(count, len(data) - offset)) for offset, count in parts)
        if page.compression != UNCOMPRESSED:
            missing = sum(count == 0 or offset >= len(data) for offset, count in parts)
            return (there + missing * (PADDING + 1), there)
        if page.is_tiled:
            height, width = (
                -(-n // s) * s
                for n, s in zip(
                    (page.imagelength, page.imagewidth),
                    (page.tilelength, page.tilewidth),
                    strict=True,
                )
            )
        else:
            height, width = page.imagelength, page.imagewidth
        planes, samples = page.samplesperpixel, 1
        if page.planarconfig == 1:
            planes, samples = 1, page.samplesperpixel
        return planes * height * -(-width * samples * page.bitspersample // 8), there


def _of_bmp(data: bytes) -> tuple[int, int]:
    start, width, height, bits, compression = struct.unpack("<10xI4xii2xHI", data[:34])
    there = len(data) - start
    if compression not in (0, 3):  # run lengths
        return there, there
    return (width * bits + 31) // 32 * 4 * abs(height), there
