"""TIFF files: their pages as planes. `tiff_metadata` reads what they say about themselves,
`tiff_series` decides which of their series count, `tiff_pages` reads pixels.

Shapes: H, W pixels of a page.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from mrcnn.errors import UserError
from mrcnn.files import BoundedReader, require_regular
from mrcnn.images.planes import (
    Level,
    PixelSize,
    Plane,
    oriented,
    plane_suffix,
    refuse_claims,
    refuse_odd_order,
)
from mrcnn.images.tiff_claims import companion_of, stored_bytes
from mrcnn.images.tiff_metadata import names_and_size
from mrcnn.images.tiff_pages import PageReader
from mrcnn.images.tiff_series import choose_series, forgotten_pages, levels_of, position

# Errors say what is wrong; tifffile would also print its own lines.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_GREY = ("MINISWHITE", "MINISBLACK", "PALETTE", "LINEAR_RAW")
_JPEG = (6, 7, 34892, 33007)  # numbers of compressions that decode YCbCr to RGB
_ALPHA = (1, 2)  # of ExtraSamples
# Formats of tifffile that are read page by page, or as OME if they are that too: for these it
# would open whatever files their index or name tells it to.
_NOT_TAKEN_FOR = {"is_mmstack": False, "is_ndtiff": False}


def is_image(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def planes(path: Path) -> list[Plane]:
    """The planes of a file, one for each of its places, times and depths; no pixels are read.

    Of pyramids the full resolution, of several series all that are not smaller copies;
    `Plane.left_out` lists what is left out. Raises UserError (a reason without the file's name),
    and whatever tifffile raises for broken files.
    """
    try:
        with _opened(path) as tiff:
            described, absent = companion_of(tiff, path)
        options = {"omexml": described} if described else {}
        notes = [absent] if absent else []
        return _planes_of_file(path, notes, **options)
    except UserError:
        raise
    except Exception:  # often of outdated descriptions left by programs: then page by page
        return _planes_of_file(path, [], is_ome=False, is_imagej=False, is_shaped=False)


@contextlib.contextmanager
def _opened(path: Path, **options: Any) -> Iterator[tifffile.TiffFile]:
    """options: for tifffile, such as what not to read the file as."""
    with (
        BoundedReader(io.FileIO(require_regular(path))) as file,
        tifffile.TiffFile(file, **_NOT_TAKEN_FOR, **options) as tiff,
    ):
        yield tiff


def _planes_of_file(path: Path, said: Sequence[str], **options: Any) -> list[Plane]:
    """said: notes of all planes; options: for tifffile, such as what not to read the file as."""
    with _opened(path, **options) as tiff:
        stored = stored_bytes(tiff, path)
        series, notes, left_out = choose_series(tiff)
        found: list[Plane] = []
        for number, one in enumerate(series, 1):
            prefix = plane_suffix("S", number, len(series)) if len(series) > 1 else ""
            try:
                planes, absent = _planes_of_series(tiff, one, prefix, stored)
                found += planes
                left_out += absent
            except UserError as error:
                if len(series) == 1:
                    raise
                left_out.append(f"{position(one)} {error}")
        left_out += forgotten_pages(tiff)
    if not found:
        raise UserError("; ".join(left_out) or "has no image in it")
    if series[0].kind == "generic" and len(series) > 1:
        found.sort(key=lambda plane: plane.suffix)
    return [
        replace(plane, notes=(*plane.notes, *notes, *said), left_out=tuple(left_out))
        for plane in found
    ]


@dataclass(frozen=True, eq=False)
class _PlaneReader:
    """Channels from the samples of one page, or from one page each."""

    pages: list[PageReader]
    palette: np.ndarray | None  # uint8 [values, 3]

    def __call__(self, rows: slice, columns: slice, channels: slice) -> np.ndarray:
        if self.palette is not None:
            indices = self.pages[0].read(rows, columns, slice(0, 1))
            return self.palette[:, channels][indices[..., 0]]
        if len(self.pages) == 1:
            return self.pages[0].read(rows, columns, channels)
        return np.concatenate(
            [page.read(rows, columns, slice(0, 1)) for page in self.pages[channels]], axis=-1
        )


def _planes_of_series(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, prefix: str, stored: int
) -> tuple[list[Plane], list[str]]:
    """The planes that are there, and in words how many are missing; stored: bytes of the file."""
    page = series.keyframe
    _refuse(page)
    axes, sizes = _axes_beyond_pages(series)
    refuse_claims(math.prod(sizes), page.nbytes, stored)
    if set(axes) <= set("QI"):
        refuse_odd_order(math.prod(sizes), page.imagelength, page.imagewidth)
    plane, palette = _plane_of_page(tiff, series, math.prod(_sizes_of("C", axes, sizes)))
    orientation = page.tags.valueof(274, default=1)
    readers = _page_readers(series, math.prod(sizes))
    levels = _levels(series, sizes)
    by_page = series.kind == "generic" and bool(prefix)
    found, absent = [], 0
    for suffix, numbers in _groups(axes, sizes):
        pages = [readers[number] for number in numbers]
        if None in pages:
            absent += 1
            continue
        if by_page:  # in a file of unlike pages, each is named by its position in the file
            prefix, suffix = plane_suffix("I", series[numbers[0]].index + 1, len(tiff.pages)), ""
        one = replace(
            plane,
            read=_PlaneReader(pages, palette),
            indices=None if palette is None else _PlaneReader(pages, None),
            levels=tuple(
                Level(shape, _PlaneReader([smaller[number] for number in numbers], palette))
                for shape, smaller in levels
            ),
            suffix="_".join(filter(None, (prefix, suffix))),
            files=tuple({Path(page.path): None for page in pages}),
        )
        found.append(oriented(one, orientation))
    said = f"{absent} of {absent + len(found)} planes are missing, as is their file or its end"
    return found, [said] if absent else []


def _plane_of_page(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, channels: int
) -> tuple[Plane, np.ndarray | None]:
    """What all planes of a series have in common, except their readers; and the palette."""
    page = series.keyframe
    samples = page.shaped[0] * page.shaped[4]
    if channels > 1 and samples > 1:
        raise UserError(f"has {channels} channels of {samples} samples each; one of them must be 1")
    palette = _palette(tiff, page) if channels * samples == 1 else None
    try:
        names, size = names_and_size(tiff, series)
    except Exception:  # wrong metadata is no reason to refuse the pixels
        names, size = (), PixelSize()
    notes = [
        size.note,
        "its palette's colours are used" if palette is not None else "",
        "0 is shown as white by other viewers; the values are used as they are"
        if page.photometric == 0
        else "",
    ]
    plane = Plane(
        shape=(page.imagelength, page.imagewidth, 3 if palette is not None else channels * samples),
        dtype=np.dtype(page.dtype if palette is None else np.uint8).newbyteorder("="),
        read=_PlaneReader([], None),
        mpp=size.mpp,
        mpp_from=size.source,
        channels=names if samples == 1 and len(names) == channels else (),
        is_rgb=palette is not None or page.photometric in (2, 6),
        has_alpha=_has_alpha(page, samples),
        notes=tuple(filter(None, notes)),
    )
    return plane, palette


def _refuse(page: tifffile.TiffPage) -> None:
    """Raises UserError for pages that cannot be read or whose colours would be wrong."""
    if page.imagedepth > 1:
        raise UserError("has pages with a depth; save it with one page per plane")
    try:
        page.decode(None, 0)
    except Exception as error:
        if "imagecodecs" in str(error):
            name = tifffile.COMPRESSION(page.compression).name
            raise UserError(
                f'is compressed with {name}: pip install "mrcnn-keras[formats]"'
            ) from None
        raise UserError(f"cannot be decoded ({str(error)[:200]})") from None
    colours = tifffile.PHOTOMETRIC(page.photometric).name
    if not (
        colours in _GREY
        or (colours == "RGB" and page.samplesperpixel >= 3)
        or (colours == "YCBCR" and page.compression in _JPEG)
    ):
        raise UserError(f"has colours stored as {colours}; save it as RGB or grey")


def _axes_beyond_pages(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """The axes along which pages follow each other, and their sizes."""
    pages = math.prod(series.shape) // series.keyframe.size
    for count in range(len(series.shape)):
        if math.prod(series.shape[:count]) == pages:
            axes = series.axes[:count]
            if {"Y", "X"} & set(axes):
                break
            return axes, tuple(series.shape[:count])
    raise UserError(
        f"has axes {series.axes} of {series.shape} in pages of "
        f"{series.keyframe.shape}, which is not supported"
    )


def _sizes_of(letter: str, axes: str, sizes: Sequence[int]) -> list[int]:
    return [size for axis, size in zip(axes, sizes, strict=True) if axis == letter]


def _groups(axes: str, sizes: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """For every plane its suffix and the numbers of its channels' pages."""
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    if "C" in axes:
        numbers = np.moveaxis(numbers, axes.index("C"), -1)
    else:
        numbers = numbers[..., np.newaxis]
    letters = axes.replace("C", "", 1)
    for place in np.ndindex(numbers.shape[:-1]):
        parts = [
            plane_suffix(letter, index + 1, size)
            for letter, index, size in zip(letters, place, numbers.shape, strict=False)
        ]
        yield "_".join(parts), numbers[place].tolist()


def _page_readers(series: tifffile.TiffPageSeries, count: int) -> list[PageReader | None]:
    """Readers of all pages in the order of the axes; None where the file or its end is missing."""
    pages = list(series)
    if len(pages) == count:
        return [None if page is None else PageReader.of(page) for page in pages]
    # ImageJ and MetaMorph describe only the first page of a file; the others follow it.
    if series.dataoffset is None or pages[0] is None:
        raise UserError(f"has {len(pages)} pages, but its description announces {count}")
    first, size = PageReader.of(pages[0]), pages[0].nbytes
    # Of a truncated file, the planes that are whole; and the first, since reading it says so.
    there = max(1, (pages[0].parent.filehandle.size - series.dataoffset) // max(1, size))
    readers = [
        replace(
            first,
            is_final=True,
            counts=np.array([size]),
            offsets=np.array([series.dataoffset + number * size]),
        )
        for number in range(min(count, there))
    ]
    return readers + [None] * (count - len(readers))


def _levels(
    series: tifffile.TiffPageSeries, sizes: Sequence[int]
) -> list[tuple[tuple[int, int], list[PageReader]]]:
    """Shape (H, W) and pages, in the order of the axes, of the smaller levels of a pyramid.

    Those that do not have all planes, or have them in another form, are left out.
    """
    found = []
    for one in levels_of(series):
        page, full = one.keyframe, series.keyframe
        try:
            readers = _page_readers(one, math.prod(sizes))
        except UserError:
            continue
        alike = all(
            getattr(page, name) == getattr(full, name)
            for name in ("dtype", "photometric", "samplesperpixel", "planarconfig")
        )
        if alike and None not in readers:
            found.append(((page.imagelength, page.imagewidth), readers))
    return found


def _has_alpha(page: tifffile.TiffPage, samples: int) -> bool:
    if page.photometric == 2 and samples == 4:
        return True
    return bool(samples > 1 and page.extrasamples and page.extrasamples[-1] in _ALPHA)


def _palette(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> np.ndarray | None:
    """Uint8 [values, 3] where values stand for colours.

    None where the palette merely shows grey values in colour, as ImageJ's lookup tables do.
    """
    if page.photometric != 3 or page.colormap is None or tiff.is_imagej:
        return None
    colours = np.asarray(page.colormap).astype(np.int64).T
    if len(colours) < 2**page.bitspersample or np.all(np.diff(colours, axis=0) >= 0):
        return None
    return (colours >> (8 if colours.max() > 255 else 0)).astype(np.uint8)
