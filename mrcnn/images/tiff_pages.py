"""Windows of the pages of TIFF files.

Only the tiles and strips that a window touches are read and decoded; pixels that are stored as they
are in memory are mapped.

Shapes: H, W pixels of a page; S samples stored apart, C samples side by side (one of S, C is 1).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile

from mrcnn.errors import UserError
from mrcnn.files import open_regular
from mrcnn.images.planes import FileVersion, LastDecoded, file_version, refuse_expansion

# Values. Larger tiles and strips are kept for the next window.
LARGE_SEGMENT = 2**22

_last = LastDecoded()


class Segment(NamedTuple):
    """A tile or strip; top and left in pixels of the page."""

    index: int
    sample: int  # along S
    top: int
    left: int


@dataclass(frozen=True, eq=False)
class PageReader:
    """Where the pixels of a page are. It keeps no file open and may be shared by threads."""

    path: str
    shape: tuple[int, int, int, int]  # S, H, W, C
    dtype: np.dtype  # in the file's byte order
    is_final: bool  # in one piece, and as they are in memory
    offsets: np.ndarray  # uint64, of all segments; 0 bytes where one is left out
    counts: np.ndarray
    decoder: int  # offset of the directory that says how to decode
    jpeg_tables: bytes | None = None

    @classmethod
    def of(cls, page: tifffile.TiffPage | tifffile.TiffFrame) -> PageReader:
        """The reader of a page whose file is open."""
        keyframe = page.keyframe
        separate, _, height, width, contiguous = keyframe.shaped
        offsets = np.array(page.dataoffsets, np.uint64)
        counts = np.array(page.databytecounts, np.uint64)
        whole = len(offsets) > 0 and offsets[0] > 0 and counts.sum() >= keyframe.nbytes
        return cls(
            page.parent.filehandle.path,
            (separate, height, width, contiguous),
            np.dtype(keyframe.dtype).newbyteorder(page.parent.byteorder),
            bool(whole and keyframe.is_final),
            offsets,
            counts,
            keyframe.offset,
            page.jpegtables,
        )

    def read(self, rows: slice, columns: slice, samples: slice) -> np.ndarray:
        """Pixels [h, w, number of samples]. Raises UserError (a reason without the file's name)
        where the file ends too early, and whatever tifffile raises for broken data."""
        if self.is_final:
            return self._from_memory_map(rows, columns, samples)
        return self._from_segments(rows, columns, samples)

    def _from_memory_map(self, rows: slice, columns: slice, samples: slice) -> np.ndarray:
        needed = int(self.offsets[0]) + int(np.prod(self.shape)) * self.dtype.itemsize
        if file_version(self.path).size < needed:
            raise UserError("ends before its pixels do")
        pixels = np.memmap(self.path, self.dtype, "r", int(self.offsets[0]), self.shape)
        if self.shape[0] > 1:
            part = np.moveaxis(pixels[samples, rows, columns, 0], 0, -1)
        else:
            part = pixels[0, rows, columns, samples]
        # A copy, so that no file stays open.
        return np.array(part, self.dtype.newbyteorder("="), order="C", subok=False)

    def _from_segments(self, rows: slice, columns: slice, samples: slice) -> np.ndarray:
        page = _decoding_page(file_version(self.path), self.decoder)
        shape = (rows.stop - rows.start, columns.stop - columns.start, samples.stop - samples.start)
        if min(shape) == 0:
            return np.empty(shape, self.dtype.newbyteorder("="))
        # Checked before memory is allocated for what the header claims.
        last = (
            slice(rows.stop - 1, rows.stop),
            slice(columns.stop - 1, columns.stop),
            slice(samples.stop - 1, samples.stop),
        )
        for segment in self._touched(_segment_size(page), *last):
            if segment.index >= min(len(self.offsets), len(self.counts)):
                raise UserError("lacks some of its tiles or strips")
        out = np.full(shape, page.nodata, self.dtype.newbyteorder("="))
        with open_regular(self.path) as file:
            for segment in self._touched(_segment_size(page), rows, columns, samples):
                pixels = self._decoded(page, file, segment, rows, columns)
                if pixels is not None:
                    self._paste(pixels, segment, out, rows, columns, samples)
        return out

    def _touched(
        self, size: tuple[int, int], rows: slice, columns: slice, samples: slice
    ) -> Iterator[Segment]:
        """The segments, of size (height, width), that a window touches, in order."""
        separate, height, width, _ = self.shape
        down, across = -(-height // size[0]), -(-width // size[1])
        apart = range(samples.start, samples.stop) if separate > 1 else range(1)
        for sample, row, column in itertools.product(
            apart,
            range(rows.start // size[0], -(-rows.stop // size[0])),
            range(columns.start // size[1], -(-columns.stop // size[1])),
        ):
            yield Segment(
                (sample * down + row) * across + column, sample, row * size[0], column * size[1]
            )

    def _decoded(
        self, page: tifffile.TiffPage, file: BinaryIO, segment: Segment, rows: slice, columns: slice
    ) -> np.ndarray | None:
        """Pixels of a segment; None where the file leaves it out."""
        offset, count = int(self.offsets[segment.index]), int(self.counts[segment.index])
        if not offset or not count:
            return None

        height, width = _segment_size(page)
        claimed = height * width * self.shape[3] * self.dtype.itemsize
        refuse_expansion(claimed, count)

        def decode() -> np.ndarray:
            # Python allocates memory for all that is requested.
            if offset + count > os.fstat(file.fileno()).st_size:
                raise UserError("ends before its pixels do")
            file.seek(offset)
            data = file.read(count)
            return page.decode(
                data, segment.index, jpegtables=self.jpeg_tables, jpegheader=page.jpegheader
            )[0][0]

        inside = (
            rows.start <= segment.top
            and segment.top + height <= rows.stop
            and columns.start <= segment.left
            and segment.left + width <= columns.stop
        )
        if inside or height * width * self.shape[3] < LARGE_SEGMENT:
            return decode()
        return _last.get((file_version(self.path), offset), decode)

    def _paste(
        self,
        pixels: np.ndarray,
        segment: Segment,
        out: np.ndarray,
        rows: slice,
        columns: slice,
        samples: slice,
    ) -> None:
        """Copy what a window and a segment share."""
        _, height, width, _ = self.shape
        top, left = max(rows.start, segment.top), max(columns.start, segment.left)
        bottom = min(rows.stop, segment.top + pixels.shape[0], height)
        right = min(columns.stop, segment.left + pixels.shape[1], width)
        part = pixels[
            top - segment.top : bottom - segment.top, left - segment.left : right - segment.left
        ]
        there = out[
            top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
        ]
        if self.shape[0] > 1:
            there[..., segment.sample - samples.start] = part[..., 0]
        else:
            there[...] = part[..., samples]


def _segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return max(1, min(page.rowsperstrip, page.imagelength)), page.imagewidth


@functools.lru_cache(maxsize=16)
def _decoding_page(version: FileVersion, offset: int) -> tifffile.TiffPage:
    """The page at an offset, with all that decoding needs; the file is closed again.

    Cached for a few files only: thousands of these would fill the memory.
    """
    with tifffile.TiffFile(version.path) as tiff:
        tiff.filehandle.seek(offset)
        page = tifffile.TiffPage(tiff, 0)
        page.decode(None, 0)  # builds the decoder
        return page
