"""Which series of a TIFF file are images of their own, and which are smaller copies, labels and
overviews of others."""

from __future__ import annotations

import math

import tifffile

from mrcnn.errors import UserError
from mrcnn.images.tiff_metadata import scn_microns

# In these formats, all but the largest series are smaller copies, labels and overviews.
_SCANNERS = ("svs", "scn", "qpi", "ndpi", "bif", "avs", "philips", "eer", "lsm")
_EXTRAS = ("label", "macro", "thumbnail", "overview")
# Areas of a Leica SCN with pixels more than this many times as large as the finest are overviews.
COARSER = 1.5
# Formats whose series have to account for every page.
_COMPLETE = ("ome", "imagej", "shaped", "uniform")


def choose_series(
    tiff: tifffile.TiffFile,
) -> tuple[list[tifffile.TiffPageSeries], list[str], list[str]]:
    """The series that are images of their own; notes about those that are known to be copies; and
    what is left out, with the reasons."""
    images = [one for one in tiff.series if {"Y", "X"} <= set(one.axes)]
    if not images:
        raise UserError("has no image in it")
    left_out = [
        f"{position(one)} left out: no rows and columns, but axes {one.axes}"
        for one in tiff.series
        if one not in images
    ]
    largest = max(images, key=lambda one: one.keyframe.imagelength * one.keyframe.imagewidth)
    areas = _scanned_areas(tiff)
    chosen, copies = [], 0
    # tifffile also treats pages as levels of a pyramid by their sizes alone.
    levels = [level for one in images for level in one.levels[1:]]
    known = [level for one in images for level in levels_of(one)]
    for one in images + levels:
        if one is largest or one in areas:
            chosen.append(one)
        elif one in known:
            continue  # read where the scale needs no finer one
        elif _is_known_copy(one):
            copies += 1
        elif one in levels or _is_fraction(one.keyframe, largest.keyframe):
            left_out.append(
                f"{position(one)} left out: by its size a smaller copy of {position(largest)}; "
                "if it is not, save it as a separate file"
            )
        else:
            chosen.append(one)
    notes = [f"labels, overviews and other copies in the file left out: {copies}"] if copies else []
    return chosen, notes, left_out


def _scanned_areas(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The areas of a Leica SCN that were scanned as finely as the finest: the others are overviews
    of the slide."""
    if not tiff.is_scn:
        return []
    sides = [side or math.inf for side in scn_microns(tiff)]
    finest = min(sides, default=math.inf)
    return [
        one
        for one, side in zip(tiff.series, sides, strict=False)
        if side <= finest * COARSER < math.inf
    ]


def levels_of(series: tifffile.TiffPageSeries) -> list[tifffile.TiffPageSeries]:
    """The smaller levels of a series, from the largest, that the file itself marks as such."""
    levels = [
        level for level in series.levels[1:] if series.kind in _SCANNERS or _is_known_copy(level)
    ]
    return sorted(levels, key=lambda level: -level.keyframe.imagelength)


def _is_known_copy(series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself says that a series is not an image of its own."""
    return bool(
        series.keyframe.is_reduced
        or series.keyframe.is_subifd
        or series.kind in _SCANNERS
        or str(series.name).strip().lower() in _EXTRAS
    )


def position(series: tifffile.TiffPageSeries) -> str:
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


def forgotten_pages(tiff: tifffile.TiffFile) -> list[str]:
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
