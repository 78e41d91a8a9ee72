"""What OME, ImageJ, slide scanners and the tags of a TIFF file say about it: channel names and the
pixel size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import tifffile

from mrcnn.images.planes import MICRONS, PLAUSIBLE, PixelSize, microns, pixel_size

# A TIFF resolution in inches or centimetres is mostly that of a print, screen or scanner: one in
# dots per inch up to MOST_DPI that is a multiple of 100 (in inches) or, within a share of
# PRINT_TOLERANCE, a multiple of PRINT_STEP; so are pixels smaller than SMALLEST_TAGGED microns.
MOST_DPI, PRINT_STEP, PRINT_TOLERANCE = 10_000, 400, 0.002
SMALLEST_TAGGED = 0.05

_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


def names_and_size(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[tuple[str, ...], PixelSize]:
    """Names of the channels where they are known, and the pixel size."""
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
    elif tiff.is_scn:
        side = scn_microns(tiff)[list(tiff.series).index(series)]
        size = pixel_size(side, side, "slide scanner")
    elif tiff.is_qpi:
        names, source = _from_qptiff(series), "slide scanner"
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


def scn_microns(tiff: tifffile.TiffFile) -> list[float | None]:
    """The side of a pixel, in microns, of every image in a Leica SCN, in the order of the series:
    the width of the view, which is in nanometres, over that of the image."""
    found = []
    for collection in ElementTree.fromstring(tiff.scn_metadata or "<scn/>"):
        for image in (one for one in collection if _tag(one) == "image"):
            view = next((one for one in image if _tag(one) == "view"), None)
            for pixels in (one for one in image if _tag(one) == "pixels"):
                width = microns(view.get("sizeX") if view is not None else None, "nm")
                columns = microns(pixels.get("sizeX"), "um")
                found.append(width / columns if width and columns else None)
    return found


def _from_qptiff(series: tifffile.TiffPageSeries) -> tuple[str, ...]:
    """Names of the channels of an Akoya QPTIFF; every page states its own."""
    names = []
    for page in series:
        try:
            root = ElementTree.fromstring(page.description.encode())
            names.append(root.findtext("Name") or root.findtext("Biomarker") or "")
        except (AttributeError, ElementTree.ParseError):
            names.append("")
    return tuple(names) if any(names) else ()


def _from_labels(labels: Sequence[str] | None, channels: int) -> tuple[str, ...]:
    """Names of channels from ImageJ's slice labels, the first of which belong to the channels."""
    if not isinstance(labels, (list, tuple)) or channels < 2:
        return ()
    first = [
        re.sub(r"^([czt]:\d+/\d+ ?)+(- )?", "", str(label)).strip() for label in labels[:channels]
    ]
    return tuple(first) if len(set(filter(None, first))) == channels else ()


def _from_resolution(page: tifffile.TiffPage, unit: str, source: str) -> PixelSize:
    """What the resolution tags say, where that is not the resolution of prints and screens."""
    sides = []
    for tag in (282, 283):
        pixels, units = page.tags.valueof(tag, default=(0, 0))
        sides.append(microns(units / pixels if pixels else None, unit))
    size = pixel_size(*sides, source)
    if unit.strip().lower() in ("inch", "in", "cm") and sides[0] and sides[1]:
        dpi = MICRONS["inch"] / max(sides)
        if _is_of_print(dpi, unit != "cm") or min(sides) < SMALLEST_TAGGED:
            return PixelSize(note=f"{dpi:.5g} dpi is a print resolution: not used as pixel size")
    return size


def _is_of_print(dpi: float, in_inches: bool) -> bool:
    if dpi > MOST_DPI:
        return False
    if dpi <= MICRONS["inch"] / PLAUSIBLE[1] or (in_inches and dpi % 100 == 0):
        return True
    return abs(dpi - round(dpi / PRINT_STEP) * PRINT_STEP) <= PRINT_TOLERANCE * dpi
