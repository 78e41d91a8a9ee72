"""What was found in an image, in formats that other programs read.

    label image   TIFF, one number per instance: Fiji, napari, CellProfiler, scikit-image
    ROI zip       ImageJ and Fiji (needs the package `roifile`)
    GeoJSON       QuPath, GIS programs
    COCO          JSON with run lengths: pycocotools and the tools of computer vision
    measurements  one row per instance, for pandas, R or a spreadsheet

All start from a label map and give the same instances. They are written whole or not at all.

Shapes: H, W pixels of the image, C channels, N instances, by ascending label.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError
from mrcnn.pixels.exposure import bands
from mrcnn.pixels.polygons import PIECE_OF
from mrcnn.results.outlines import polygons

if TYPE_CHECKING:
    import pandas as pd

# Instances whose outlines are at most this many pixels apart are neighbours.
NEIGHBOUR_GAP = 2
# Columns of measurements in microns: the column in pixels, and the power of the pixel size.
IN_MICRONS = {
    "perimeter_um": ("perimeter", 1),
    "major_axis_um": ("major_axis", 1),
    "minor_axis_um": ("minor_axis", 1),
    "area_um2": ("area", 2),
}
# Label images of more pixels are written in strips of this many rows: ImageJ cannot read tiles.
STRIPS_ABOVE, STRIP_ROWS = 2**24, 64


def write_label_image(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Write a label map [H, W] as a compressed TIFF of 16 bits, or 32 if there are more labels; in
    strips, which all programs can read."""
    import tifffile

    kind = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    with atomic_path(path) as temporary:
        if labels.size <= STRIPS_ABOVE:
            tifffile.imwrite(temporary, labels.astype(kind), compression="zlib")
            return
        strips = (
            zlib.compress(labels[y : y + STRIP_ROWS].astype(kind).tobytes())
            for y in range(0, len(labels), STRIP_ROWS)
        )
        tifffile.imwrite(
            temporary,
            strips,
            shape=labels.shape,
            dtype=kind,
            compression="zlib",
            rowsperstrip=STRIP_ROWS,
        )


def write_imagej_rois(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Outlines as a zip file of ImageJ ROIs, named 0001, 0002, ... by label.

    An instance in several pieces gives one ROI per piece, all but the first with the property
    PIECE_OF; ImageJ's polygons have no holes, so holes are left out. A map without instances gives
    an empty zip file.
    Raises UserError if the package roifile is not installed.
    """
    try:
        from roifile import ROI_TYPE, ImagejRoi
    except ImportError:
        raise UserError("ImageJ ROIs need the package roifile: pip install roifile") from None
    import zipfile

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for label, pieces in instance_polygons(labels):
            for number, (ring, _) in enumerate(pieces):
                name = f"{label:04d}" + (f"-{number + 1}" if number else "")
                roi = ImagejRoi.frompoints(ring, name=name)
                roi.roitype = ROI_TYPE.TRACED
                if number:
                    roi.props = f"{PIECE_OF}: {label:04d}\n"
                # This ZipInfo has no time: the same outlines give the same file.
                archive.writestr(zipfile.ZipInfo(f"{name}.roi"), roi.tobytes())


def instance_polygons(labels: np.ndarray):
    """Yields (label, polygons) of every instance, see `outlines.polygons`."""
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        origin = np.array([window[1].start, window[0].start])
        pieces = polygons(labels[window] == label)
        yield (
            label,
            [(outer + origin, [hole + origin for hole in holes]) for outer, holes in pieces],
        )


def geojson(
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: str | Sequence[str],
    reduction: float = 1.0,
) -> dict[str, Any]:
    """A FeatureCollection that QuPath imports: detections with a class and a score.

    labels [H, W]; scores [N]; class_names: one for all, or [N]. Coordinates are pixels times
    `reduction`, x before y; rings are closed.
    """
    return {
        "type": "FeatureCollection",
        "features": list(_features(labels, scores, class_names, reduction)),
    }


def _features(
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: str | Sequence[str],
    reduction: float,
) -> Iterator[dict[str, Any]]:
    for index, (label, pieces) in enumerate(instance_polygons(labels)):
        rings = [[_closed(ring, reduction) for ring in (outer, *holes)] for outer, holes in pieces]
        single = len(rings) == 1
        name = class_names if isinstance(class_names, str) else class_names[index]
        measured = {} if scores is None else {"score": round(float(scores[index]), 6)}
        yield {
            "type": "Feature",
            "id": str(label),
            "geometry": {
                "type": "Polygon" if single else "MultiPolygon",
                "coordinates": rings[0] if single else rings,
            },
            "properties": {
                "objectType": "detection",
                "name": str(label),
                "classification": {"name": name},
                "measurements": measured,
            },
        }


def _closed(ring: np.ndarray, reduction: float) -> list[list[float]]:
    if reduction != 1:
        ring = np.round(ring * reduction, 2)
    return [*ring.tolist(), ring[0].tolist()]


def write_geojson(
    path: str | os.PathLike,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: str | Sequence[str],
    reduction: float = 1.0,
) -> None:
    """`geojson` as a file: one feature per line, streamed because there can be many."""
    with atomic_path(path) as temporary, open(temporary, "w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for index, feature in enumerate(_features(labels, scores, class_names, reduction)):
            file.write((",\n" if index else "\n") + json.dumps(feature))
        file.write("\n]}\n")


def coco_annotations(
    labels: np.ndarray,
    scores: np.ndarray | None,
    image_number: int,
    first: int,
    class_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """COCO's annotations of an image, with uncompressed run lengths (iscrowd 0).

    image_number: of the image in the file; first: the number of the first annotation; class_ids:
    [N], the categories, by default all 1.
    """
    height, width = labels.shape
    found = []
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        (rows, columns), index = window, len(found)
        mask = labels[window] == label
        counts = _run_lengths(mask, (rows.start, columns.start), labels.shape)
        category = 1 if class_ids is None else int(class_ids[index])
        found.append(
            {
                "id": first + index,
                "image_id": image_number,
                "category_id": category,
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": counts},
                "bbox": [
                    columns.start,
                    rows.start,
                    columns.stop - columns.start,
                    rows.stop - rows.start,
                ],
                "area": int(mask.sum()),
                **({} if scores is None else {"score": round(float(scores[index]), 6)}),
            }
        )
    return found


def _run_lengths(mask: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns of an image of shape (H, W) whose
    only ones are those of a non-empty mask [h, w] at a corner (y, x). The first may be 0."""
    columns, rows = np.nonzero(mask.T)
    places = (columns + corner[1]) * shape[0] + rows + corner[0]  # ascending
    gaps = np.flatnonzero(np.diff(places) > 1)
    starts, stops = places[np.r_[0, gaps + 1]], places[np.r_[gaps, -1]] + 1
    borders = np.stack([starts, stops], axis=1).ravel()
    total = shape[0] * shape[1]
    ends = borders if borders[-1] == total else np.append(borders, total)
    return np.diff(ends, prepend=0).tolist()


def measurements(
    labels: np.ndarray,
    scores: np.ndarray | None,
    image: Any,
    microns: float | None = None,
) -> pd.DataFrame:
    """A table with one row per instance.

    labels [H, W]; scores [N]; image [H, W] or [H, W, C], an array or anything that gives one when
    sliced, such as a file: intensities are its own values, for colours the mean over the channels.
    microns: pixel size in microns; lengths and areas are then also given in microns (_um, _um2).
    Columns: label, score, centroid_y, centroid_x, area, perimeter (Crofton's), major_axis,
    minor_axis, eccentricity, solidity, mean_intensity, min_intensity, max_intensity, neighbours
    (instances at most NEIGHBOUR_GAP pixels away), touches_edge.
    """
    import pandas as pd
    from skimage.measure import regionprops_table

    names = {
        "label": "label",
        "centroid-0": "centroid_y",
        "centroid-1": "centroid_x",
        "area": "area",
        "perimeter_crofton": "perimeter",
        "axis_major_length": "major_axis",
        "axis_minor_length": "minor_axis",
        "eccentricity": "eccentricity",
        "solidity": "solidity",
    }
    properties = tuple(dict.fromkeys(name.partition("-")[0] for name in names))
    table = pd.DataFrame(regionprops_table(labels, properties=properties))
    table = table.rename(columns=names).astype({"label": int, "area": int})
    table.insert(1, "score", np.nan if scores is None else np.asarray(scores, np.float64))
    found = table["label"].to_numpy()
    for name, values in intensities(labels, image).items():
        table[name] = values[found]
    table["neighbours"] = [len(n) for n in neighbours(labels, found)]
    edge = (
        np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        if labels.size
        else labels.ravel()
    )
    table["touches_edge"] = np.isin(found, edge)
    if microns is not None:
        for name, (column, power) in IN_MICRONS.items():
            table[name] = table[column] * microns**power
    return table


def enlarged(table: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Measurements in pixels `factor` times smaller, such as those of the full size if a level of a
    pyramid was measured. Columns in microns stay."""
    if factor == 1:
        return table
    powers = {"centroid_y": 1, "centroid_x": 1, **dict(IN_MICRONS.values())}
    return table.assign(**{column: table[column] * factor**n for column, n in powers.items()})


def intensities(labels: np.ndarray, image: Any) -> dict[str, np.ndarray]:
    """Mean, smallest and largest grey level of every label: float64 [largest label + 1] each.

    The image is read once, in bands of rows; arguments as for `measurements`. Only finite values
    count; NaN where a label has none.
    """
    size = int(labels.max(initial=0)) + 1
    counts, sums = np.zeros(size), np.zeros(size)
    lowest, highest = np.full(size, np.inf), np.full(size, -np.inf)
    for start, band in bands(image):
        part = labels[start : start + len(band)]
        inside = part > 0
        numbers, values = part[inside], band[inside].astype(np.float64)
        values = values.mean(axis=1) if values.ndim == 2 else values
        finite = np.isfinite(values)
        numbers, values = numbers[finite], values[finite]
        counts += np.bincount(numbers, minlength=size)
        sums += np.bincount(numbers, values, minlength=size)
        np.minimum.at(lowest, numbers, values)
        np.maximum.at(highest, numbers, values)
    found = {
        "mean_intensity": sums / np.maximum(counts, 1),
        "min_intensity": lowest,
        "max_intensity": highest,
    }
    return {name: np.where(counts > 0, values, np.nan) for name, values in found.items()}


def neighbours(labels: np.ndarray, wanted: Sequence[int]) -> list[set[int]]:
    """For each label, those of the instances at most NEIGHBOUR_GAP pixels away."""
    windows = ndimage.find_objects(labels)
    reach = NEIGHBOUR_GAP + 1
    found = []
    for label in wanted:
        window = tuple(
            slice(max(0, side.start - reach), side.stop + reach) for side in windows[label - 1]
        )
        part = labels[window]
        near = ndimage.distance_transform_edt(part != label) <= reach
        found.append(set(np.unique(part[near]).tolist()) - {0, label})
    return found


_HARMLESS = re.compile(r"[+-][^\W\d][\w .]*")  # a word after a sign calls nothing


def guarded(text: str) -> str:
    """A cell of a table for people: one that a spreadsheet would run as a formula gets an
    apostrophe, which marks it as text. Names such as -dash stay as they are."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")) or _HARMLESS.fullmatch(text):
        return text
    return f"'{text}"
