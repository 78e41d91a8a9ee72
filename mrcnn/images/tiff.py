"""TIFF files, with what OME, ImageJ and slide scanners put into them.

Shapes: H, W pixels of a page.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from mrcnn.errors import UserError
from mrcnn.files import require_regular
from mrcnn.images.planes import (
    MICRONS,
    PLAUSIBLE,
    PixelSize,
    Plane,
    microns,
    oriented,
    pixel_size,
    plane_suffix,
    refuse_claims,
    refuse_odd_order,
)
from mrcnn.images.tiff_claims import stored_bytes
from mrcnn.images.tiff_pages import PageReader

# What TIFF says in inches or centimetres is mostly of prints, screens and scanners. That is a
# resolution in dots per inch up to MOST_DPI that is whole hundreds (in inches), or within a share
# of PRINT_TOLERANCE a multiple of PRINT_STEP; or pixels smaller than SMALLEST_TAGGED microns.
MOST_DPI, PRINT_STEP, PRINT_TOLERANCE = 10_000, 400, 0.002
SMALLEST_TAGGED = 0.05

# What is wrong is told by the errors; tifffile would print its own lines beside them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_GREY = ("MINISWHITE", "MINISBLACK", "PALETTE", "LINEAR_RAW")
_JPEG = (6, 7, 34892, 33007)  # numbers of compressions that give RGB for YCbCr
_ALPHA = (1, 2)  # of ExtraSamples
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}
# Formats of tifffile that are read page by page, or as OME if they are that too: it opens
# whatever files the index or the name of these tells it to.
_NOT_TAKEN_FOR = {"is_mmstack": False, "is_ndtiff": False}
# Of these formats, all but the largest series are smaller copies, labels and overviews.
_SCANNERS = ("svs", "scn", "qpi", "ndpi", "bif", "avs", "philips", "eer", "lsm")
_EXTRAS = ("label", "macro", "thumbnail", "overview")
# Formats whose series have to account for every page.
_COMPLETE = ("ome", "imagej", "shaped", "uniform")


def is_picture(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def planes(path: Path) -> list[Plane]:
    """The planes of a file, one for each of its places, times and depths; no pixels are read.

    Of pyramids the full resolution, of several series all that are no smaller copies; what is left
    out stands in `Plane.left_out`. Raises UserError (a reason without the file's name), and
    whatever tifffile raises for broken files.
    """
    try:
        return _planes_of_file(path)
    except UserError:
        raise
    except Exception:  # often of descriptions that programs have left behind: page by page, then
        return _planes_of_file(path, is_ome=False, is_imagej=False, is_shaped=False)


def _planes_of_file(path: Path, **kinds: bool) -> list[Plane]:
    """kinds: what tifffile shall not take the file for."""
    with tifffile.TiffFile(require_regular(path), **_NOT_TAKEN_FOR, **kinds) as tiff:
        stored = stored_bytes(tiff, path)
        series, notes, left_out = _choose_series(tiff)
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
                left_out.append(f"{_place(one)} {error}")
        left_out += _forgotten_pages(tiff)
    if not found:
        raise UserError("; ".join(left_out) or "has no image in it")
    if series[0].kind == "generic" and len(series) > 1:
        found.sort(key=lambda plane: plane.suffix)
    return [
        replace(plane, notes=(*plane.notes, *notes), left_out=tuple(left_out)) for plane in found
    ]


def _choose_series(
    tiff: tifffile.TiffFile,
) -> tuple[list[tifffile.TiffPageSeries], list[str], list[str]]:
    """The series that are images of their own; notes about those that are known to be copies; and
    what is left out, with the reasons."""
    images = [one for one in tiff.series if {"Y", "X"} <= set(one.axes)]
    if not images:
        raise UserError("has no image in it")
    left_out = [
        f"{_place(one)} left out: no rows and columns, but axes {one.axes}"
        for one in tiff.series
        if one not in images
    ]
    largest = max(images, key=lambda one: one.keyframe.imagelength * one.keyframe.imagewidth)
    chosen, copies = [], 0
    # tifffile takes pages for levels of a pyramid by their sizes alone, too.
    levels = [level for one in images for level in one.levels[1:]]
    for one in images + levels:
        if one is largest:
            chosen.append(one)
        elif _is_known_copy(one):
            copies += 1
        elif one in levels or _is_fraction(one.keyframe, largest.keyframe):
            left_out.append(
                f"{_place(one)} left out: by its size a smaller copy of {_place(largest)}; if it "
                "is none, save it as a file of its own"
            )
        else:
            chosen.append(one)
    notes = [f"{copies} smaller copies, labels or overviews in the file left out"] if copies else []
    return chosen, notes, left_out


def _is_known_copy(series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself says that a series is no image of its own."""
    return bool(
        series.keyframe.is_reduced
        or series.keyframe.is_subifd
        or series.kind in _SCANNERS
        or str(series.name).strip().lower() in _EXTRAS
    )


def _place(series: tifffile.TiffPageSeries) -> str:
    page = series.keyframe
    return f"page {page.index + 1} ({page.imagelength} x {page.imagewidth})"


def _is_fraction(page: tifffile.TiffPage, of: tifffile.TiffPage) -> bool:
    """Whether a page is a half, a third, ... of another on both sides, and of the same kind."""
    if (page.dtype, page.photometric) != (of.dtype, of.photometric):
        return False
    factor = round(of.imagelength / page.imagelength)
    return factor > 1 and all(
        abs(whole / factor - part) < 1
        for whole, part in (
            (of.imagelength, page.imagelength),
            (of.imagewidth, page.imagewidth),
        )
    )


def _forgotten_pages(tiff: tifffile.TiffFile) -> list[str]:
    """Pages that belong to no series, in words."""
    if any(one.kind not in _COMPLETE for one in tiff.series):
        return []
    known: set[int] = set()
    for one in (level for series in tiff.series for level in series.levels):
        pages = [page.index for page in one if page is not None]
        if len(pages) == 1:  # stands for all that follow it
            count = min(math.prod(one.shape) // max(1, one.keyframe.size), len(tiff.pages))
            pages = range(pages[0], pages[0] + count)
        known.update(pages)
    forgotten = [
        number
        for number in range(len(tiff.pages))
        if number not in known and not _is_small_copy(tiff, number)
    ]
    if not forgotten:
        return []
    numbers = ", ".join(str(number + 1) for number in forgotten[:5])
    more = ", ..." if len(forgotten) > 5 else ""
    return [f"pages {numbers}{more} left out: its description does not mention them"]


def _is_small_copy(tiff: tifffile.TiffFile, number: int) -> bool:
    page = tiff.pages[number]
    return bool(page.keyframe.is_reduced)


@dataclass(frozen=True, eq=False)
class _PlaneReader:
    """Channels from samples of one page, or from a page each."""

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
    """The planes that are there, and in words how many are not; stored: bytes of the file."""
    page = series.keyframe
    _refuse(page)
    axes, sizes = _axes_beyond_pages(series)
    refuse_claims(math.prod(sizes), page.nbytes, stored)
    if set(axes) <= set("QI"):
        refuse_odd_order(math.prod(sizes), page.imagelength, page.imagewidth)
    plane, palette = _plane_of_page(tiff, series, math.prod(_sizes_of("C", axes, sizes)))
    orientation = page.tags.valueof(274, default=1)
    readers = _page_readers(series, math.prod(sizes))
    by_page = series.kind == "generic" and bool(prefix)
    found, absent = [], 0
    for suffix, numbers in _groups(axes, sizes):
        pages = [readers[number] for number in numbers]
        if None in pages:
            absent += 1
            continue
        if by_page:  # of a file of unlike pages, each by its place in the file
            prefix, suffix = plane_suffix("I", series[numbers[0]].index + 1, len(tiff.pages)), ""
        one = replace(
            plane,
            read=_PlaneReader(pages, palette),
            indices=None if palette is None else _PlaneReader(pages, None),
            suffix="_".join(filter(None, (prefix, suffix))),
            files=tuple({Path(page.path): None for page in pages}),
        )
        found.append(oriented(one, orientation))
    said = f"{absent} of {absent + len(found)} planes are absent: so is their file, or its end"
    return found, [said] if absent else []


def _plane_of_page(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, channels: int
) -> tuple[Plane, np.ndarray | None]:
    """What all planes of a series have in common, without what reads them; and the palette."""
    page = series.keyframe
    samples = page.shaped[0] * page.shaped[4]
    if channels > 1 and samples > 1:
        raise UserError(f"has {channels} channels of {samples} samples each; one of them must be 1")
    palette = _palette(tiff, page) if channels * samples == 1 else None
    try:
        names, size = _metadata(tiff, series)
    except Exception:  # wrong metadata is no reason not to look at the pixels
        names, size = (), PixelSize()
    notes = [
        size.note,
        "its palette's colours are taken" if palette is not None else "",
        "0 is shown as white by other viewers; the values are taken as they are"
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
        raise UserError("has pages with a depth; save it with one page a plane")
    try:
        page.decode(None, 0)
    except Exception as error:
        if "imagecodecs" in str(error):
            name = tifffile.COMPRESSION(page.compression).name
            raise UserError(f"is compressed with {name}: pip install imagecodecs") from None
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
        f"{series.keyframe.shape}, which is not understood"
    )


def _sizes_of(letter: str, axes: str, sizes: Sequence[int]) -> list[int]:
    return [size for axis, size in zip(axes, sizes, strict=True) if axis == letter]


def _groups(axes: str, sizes: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Of every plane its suffix and the numbers of the pages of its channels."""
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
    """Of all pages in the order of the axes; None for those in files that are absent."""
    pages = list(series)
    if len(pages) == count:
        return [None if page is None else PageReader.of(page) for page in pages]
    # ImageJ and MetaMorph describe only the first page of a file; the others follow it.
    if series.dataoffset is None or pages[0] is None:
        raise UserError(f"has {len(pages)} pages where {count} are announced")
    first, size = PageReader.of(pages[0]), pages[0].nbytes
    # Of a file that was cut off, the planes that are whole; and the first, which says so itself.
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


def _has_alpha(page: tifffile.TiffPage, samples: int) -> bool:
    if page.photometric == 2 and samples == 4:
        return True
    return bool(samples > 1 and page.extrasamples and page.extrasamples[-1] in _ALPHA)


def _palette(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> np.ndarray | None:
    """Uint8 [values, 3] where values stand for colours.

    Not where the palette merely shows grey values in colour, as ImageJ's lookup tables do.
    """
    if page.photometric != 3 or page.colormap is None or tiff.is_imagej:
        return None
    colours = np.asarray(page.colormap).astype(np.int64).T
    if len(colours) < 2**page.bitspersample or np.all(np.diff(colours, axis=0) >= 0):
        return None
    return (colours >> (8 if colours.max() > 255 else 0)).astype(np.uint8)


# --- metadata -----------------------------------------------------------------------------------


def _metadata(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[tuple[str, ...], PixelSize]:
    """Names of the channels as far as they are known, and the size of pixels."""
    page, names, size, source = series.keyframe, (), PixelSize(), "TIFF resolution"
    unit = _RESOLUTION_UNITS.get(page.tags.valueof(296, default=2))
    if tiff.is_ome:
        names, size = _from_ome(tiff, series)
    elif tiff.is_imagej:
        found = tiff.imagej_metadata or {}
        names = _from_labels(found.get("Labels"), int(found.get("channels", 1)))
        unit, source = found.get("unit") or unit, "ImageJ"
    elif tiff.is_svs:
        match = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description)
        side = microns(match[1], "um") if match else None
        size = pixel_size(side, side, "slide scanner")
    if size != PixelSize():
        return names, size
    return names, _from_resolution(page, str(unit), source)


def _from_ome(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[tuple[str, ...], PixelSize]:
    images = [
        element for element in ElementTree.fromstring(tiff.ome_metadata) if _tag(element) == "Image"
    ]
    described = [pixels for image in images for pixels in image if _tag(pixels) == "Pixels"]
    wanted = str(series.keyframe.imagewidth), str(series.keyframe.imagelength)
    fitting = [
        pixels for pixels in described if (pixels.get("SizeX"), pixels.get("SizeY")) == wanted
    ]
    if not fitting:
        return (), PixelSize()
    number = list(tiff.series).index(series)
    pixels = fitting[0]
    if number < len(described) and described[number] in fitting:
        pixels = described[number]
    names = tuple(channel.get("Name", "") for channel in pixels if _tag(channel) == "Channel")
    width, unit = pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "µm")
    height = pixels.get("PhysicalSizeY", width)
    sides = microns(width, unit), microns(height, pixels.get("PhysicalSizeYUnit", unit))
    return names, pixel_size(*sides, "OME")


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _from_labels(labels: Sequence[str] | None, channels: int) -> tuple[str, ...]:
    """Names of channels from ImageJ's labels of slices, the first of which are of the channels."""
    if not isinstance(labels, (list, tuple)) or channels < 2:
        return ()
    first = [
        re.sub(r"^([czt]:\d+/\d+ ?)+(- )?", "", str(label)).strip() for label in labels[:channels]
    ]
    return tuple(first) if len(set(filter(None, first))) == channels else ()


def _from_resolution(page: tifffile.TiffPage, unit: str, source: str) -> PixelSize:
    """What the tags of resolution say, where that is not of prints and screens."""
    sides = []
    for tag in (282, 283):
        pixels, units = page.tags.valueof(tag, default=(0, 0))
        sides.append(microns(units / pixels if pixels else None, unit))
    size = pixel_size(*sides, source)
    if unit.strip().lower() in ("inch", "in", "cm") and sides[0] and sides[1]:
        dpi = MICRONS["inch"] / max(sides)
        if _is_of_print(dpi, unit != "cm") or min(sides) < SMALLEST_TAGGED:
            return PixelSize(note=f"{dpi:.5g} dpi is a resolution of print: no size of pixels")
    return size


def _is_of_print(dpi: float, in_inches: bool) -> bool:
    if dpi > MOST_DPI:
        return False
    if dpi <= MICRONS["inch"] / PLAUSIBLE[1] or (in_inches and dpi % 100 == 0):
        return True
    return abs(dpi - round(dpi / PRINT_STEP) * PRINT_STEP) <= PRINT_TOLERANCE * dpi
