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
from mrcnn.images.planes import Plane, microns, plane_suffix, square_pixel
from mrcnn.images.tiff_pages import PageReader

# Microns. What TIFF says in inches or centimetres is of prints and screens unless a pixel's side
# lies between these.
PLAUSIBLE = (0.05, 50)

# What is wrong is told by the errors; tifffile would print its own lines beside them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_GREY = ("MINISWHITE", "MINISBLACK", "PALETTE", "LINEAR_RAW")
_JPEG = (6, 7, 34892, 33007)  # numbers of compressions that give RGB for YCbCr
_ALPHA = (1, 2)  # of ExtraSamples
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


def is_picture(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def planes(path: Path) -> list[Plane]:
    """The planes of a file, one for each of its places, times and depths; no pixels are read.

    Of pyramids the full resolution, of several series the largest. Raises UserError (a reason
    without the file's name), and whatever tifffile raises for broken files.
    """
    try:
        return _planes_of_file(path)
    except UserError:
        raise
    except Exception:  # often of descriptions that programs have left behind: page by page, then
        return _planes_of_file(path, is_ome=False, is_imagej=False, is_shaped=False)


def _planes_of_file(path: Path, **kinds: bool) -> list[Plane]:
    """kinds: what tifffile shall not take the file for."""
    with tifffile.TiffFile(path, **kinds) as tiff:
        series = _wanted_series(tiff)
        found = []
        for number, one in enumerate(series, 1):
            prefix = plane_suffix("S", number, len(series)) if len(series) > 1 else ""
            found += _planes_of_series(tiff, one, prefix)
    if not found:
        raise UserError("has no image in it")
    return found


def _wanted_series(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The largest, neither thumbnail nor label. OME has a series for each place of a sample: all
    that are like the largest."""
    images = [one for one in tiff.series if {"Y", "X"} <= set(one.axes)]
    if not images:
        raise UserError("has no image in it")
    largest = max(images, key=lambda one: one.keyframe.imagelength * one.keyframe.imagewidth)
    if not tiff.is_ome:
        return [largest]
    return [one for one in images if _kind(one) == _kind(largest)]


def _kind(series: tifffile.TiffPageSeries) -> tuple:
    page = series.keyframe
    return page.imagelength, page.imagewidth, page.dtype, page.photometric


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
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, prefix: str
) -> list[Plane]:
    page = series.keyframe
    _refuse(page)
    axes, sizes = _axes_beyond_pages(series)
    samples, channels = page.shaped[0] * page.shaped[4], math.prod(_sizes_of("C", axes, sizes))
    if channels > 1 and samples > 1:
        raise UserError(f"has {channels} channels of {samples} samples each; one of them must be 1")
    palette = _palette(tiff, page) if channels * samples == 1 else None
    try:
        names, mpp = _metadata(tiff, series)
    except Exception:  # wrong metadata is no reason not to look at the pixels
        names, mpp = (), None
    plane = Plane(
        shape=(page.imagelength, page.imagewidth, 3 if palette is not None else channels * samples),
        dtype=np.dtype(page.dtype if palette is None else np.uint8).newbyteorder("="),
        read=_PlaneReader([], None),
        mpp=mpp,
        channels=names if samples == 1 and len(names) == channels else (),
        is_rgb=palette is not None or page.photometric in (2, 6),
        has_alpha=_has_alpha(page, samples),
    )
    readers = _page_readers(series, math.prod(sizes))
    found = []
    for suffix, numbers in _groups(axes, sizes):
        pages = [readers[number] for number in numbers]
        if None not in pages:  # otherwise it is in a file of the set that is not there
            found.append(
                replace(
                    plane,
                    read=_PlaneReader(pages, palette),
                    indices=None if palette is None else _PlaneReader(pages, None),
                    suffix="_".join(filter(None, (prefix, suffix))),
                    files=tuple({Path(page.path): None for page in pages}),
                )
            )
    return found


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
    return [
        replace(
            first,
            is_final=True,
            counts=np.array([size]),
            offsets=np.array([series.dataoffset + number * size]),
        )
        for number in range(count)
    ]


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
) -> tuple[tuple[str, ...], float | None]:
    """Names of the channels as far as they are known, and microns per pixel."""
    page, names, mpp = series.keyframe, (), None
    unit = _RESOLUTION_UNITS.get(page.tags.valueof(296, default=2))
    if tiff.is_ome:
        names, mpp = _from_ome(tiff, series)
    elif tiff.is_imagej:
        found = tiff.imagej_metadata or {}
        names = _from_labels(found.get("Labels"), int(found.get("channels", 1)))
        unit = found.get("unit") or unit
    elif tiff.is_svs:
        match = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description)
        mpp = microns(match[1], "um") if match else None
    return names, mpp or _from_resolution(page, str(unit))


def _from_ome(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[tuple[str, ...], float | None]:
    images = [
        element for element in ElementTree.fromstring(tiff.ome_metadata) if _tag(element) == "Image"
    ]
    described = [pixels for image in images for pixels in image if _tag(pixels) == "Pixels"]
    wanted = str(series.keyframe.imagewidth), str(series.keyframe.imagelength)
    fitting = [
        pixels for pixels in described if (pixels.get("SizeX"), pixels.get("SizeY")) == wanted
    ]
    if not fitting:
        return (), None
    number = list(tiff.series).index(series)
    pixels = fitting[0]
    if number < len(described) and described[number] in fitting:
        pixels = described[number]
    names = tuple(channel.get("Name", "") for channel in pixels if _tag(channel) == "Channel")
    width, unit = pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "µm")
    height = pixels.get("PhysicalSizeY", width)
    return names, square_pixel(
        microns(width, unit), microns(height, pixels.get("PhysicalSizeYUnit", unit))
    )


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


def _from_resolution(page: tifffile.TiffPage, unit: str) -> float | None:
    sides = []
    for tag in (282, 283):
        pixels, units = page.tags.valueof(tag, default=(0, 0))
        sides.append(microns(units / pixels if pixels else None, unit))
    side = square_pixel(*sides)
    if unit in ("inch", "in", "cm") and side and not PLAUSIBLE[0] <= side <= PLAUSIBLE[1]:
        return None
    return side
