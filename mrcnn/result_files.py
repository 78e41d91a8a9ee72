"""What was found in a picture, in the forms that other programs read.

    label image   TIFF, every instance a number: Fiji, napari, CellProfiler, scikit-image
    ROI zip       ImageJ and Fiji (needs the package `roifile`)
    GeoJSON       QuPath, GIS programs
    COCO          JSON with run lengths: pycocotools and the tools of computer vision
    measurements  one row an instance, for pandas, R or a spreadsheet

All start from a label map and give the same instances. They are written whole or not at all.

Shapes: H, W pixels of the picture, C channels, N instances, by ascending label.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError
from mrcnn.outlines import polygons

if TYPE_CHECKING:
    import pandas as pd

# Instances whose outlines are at most this many pixels apart are neighbours.
NEIGHBOUR_GAP = 2


def write_label_image(path: str | os.PathLike, labels: np.ndarray) -> None:
    """A label map [H, W] as a compressed TIFF of 16 bits, or 32 where there are more labels."""
    import tifffile

    kind = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(kind), compression="zlib")


def write_imagej_rois(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Outlines as a zip file of ImageJ ROIs, named 0001, 0002, ... by label.

    An instance in several pieces gives one ROI a piece; ImageJ's polygons have no holes, so those
    are left out. A map without instances gives an empty zip file.
    Raises UserError where the package roifile is not installed.
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
                archive.writestr(f"{name}.roi", roi.tobytes())


def instance_polygons(labels: np.ndarray):
    """Yields (label, polygons) of every instance, see `outlines.polygons`."""
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        origin = np.array([window[1].start, window[0].start])
        pieces = polygons(labels[window] == label)
        yield label, [(outer + origin, [hole + origin for hole in holes])
                      for outer, holes in pieces]


def geojson(labels: np.ndarray, scores: np.ndarray | None, class_name: str) -> dict[str, Any]:
    """A FeatureCollection as QuPath imports it: detections with a class and a score.

    labels [H, W]; scores [N]. Coordinates are pixels, x before y; rings are closed.
    """
    features = []
    for index, (label, pieces) in enumerate(instance_polygons(labels)):
        rings = [[_closed(ring) for ring in (outer, *holes)] for outer, holes in pieces]
        single = len(rings) == 1
        measurements = {} if scores is None else {"score": round(float(scores[index]), 6)}
        features.append({
            "type": "Feature",
            "id": str(label),
            "geometry": {"type": "Polygon" if single else "MultiPolygon",
                         "coordinates": rings[0] if single else rings},
            "properties": {"objectType": "detection", "name": str(label),
                           "classification": {"name": class_name},
                           "measurements": measurements},
        })
    return {"type": "FeatureCollection", "features": features}


def _closed(ring: np.ndarray) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]


def write_geojson(
    path: str | os.PathLike, labels: np.ndarray, scores: np.ndarray | None, class_name: str
) -> None:
    """`geojson` as a file."""
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(geojson(labels, scores, class_name)))


def coco_annotations(
    labels: np.ndarray, scores: np.ndarray | None, image_number: int, first: int
) -> list[dict[str, Any]]:
    """COCO's annotations of a picture, with uncompressed run lengths (iscrowd 0, category 1).

    image_number: of the picture in the file; first: the number of the first annotation.
    """
    height, width = labels.shape
    found = []
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        (rows, columns), index = window, len(found)
        mask = labels[:, columns] == label
        counts = _run_lengths(mask, columns.start * height, (width - columns.stop) * height)
        found.append({
            "id": first + index, "image_id": image_number, "category_id": 1, "iscrowd": 0,
            "segmentation": {"size": [height, width], "counts": counts},
            "bbox": [columns.start, rows.start, columns.stop - columns.start,
                     rows.stop - rows.start],
            "area": int(mask.sum()),
            **({} if scores is None else {"score": round(float(scores[index]), 6)}),
        })
    return found


def _run_lengths(mask: np.ndarray, before: int, after: int) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns of a mask [H, W] that has so many zeros
    before and after it. The first may be 0."""
    flat = mask.T.ravel()
    starts = before + np.flatnonzero(np.diff(flat, prepend=False))
    ends = [before + flat.size + after]
    if flat[-1]:
        ends.insert(0, before + flat.size)
    if ends[-1] == ends[0]:
        ends = ends[:1]
    return np.diff(np.concatenate([[0], starts, ends])).astype(int).tolist()


def measurements(
    labels: np.ndarray, scores: np.ndarray | None, image: np.ndarray,
    microns: float | None = None,
) -> pd.DataFrame:
    """A table with one row an instance.

    labels [H, W]; scores [N]; image [H, W] or [H, W, C]: intensities are the mean over channels.
    microns: side of a pixel; lengths and areas then also come in microns (_um, _um2).
    Columns: label, score, centroid_y, centroid_x, area, perimeter (Crofton's), major_axis,
    minor_axis, eccentricity, solidity, mean_intensity, min_intensity, max_intensity, neighbours
    (instances at most NEIGHBOUR_GAP pixels away), touches_edge.
    """
    import pandas as pd
    from skimage.measure import regionprops_table

    grey = np.asarray(image, np.float64)
    grey = grey.mean(axis=-1) if grey.ndim == 3 else grey
    names = {"label": "label", "centroid-0": "centroid_y", "centroid-1": "centroid_x",
             "area": "area", "perimeter_crofton": "perimeter", "axis_major_length": "major_axis",
             "axis_minor_length": "minor_axis", "eccentricity": "eccentricity",
             "solidity": "solidity", "intensity_mean": "mean_intensity",
             "intensity_min": "min_intensity", "intensity_max": "max_intensity"}
    properties = tuple(dict.fromkeys(name.partition("-")[0] for name in names))
    table = pd.DataFrame(regionprops_table(labels, grey, properties=properties))
    table = table.rename(columns=names).astype({"label": int, "area": int})
    table.insert(1, "score", np.nan if scores is None else np.asarray(scores, np.float64))
    found = table["label"].to_numpy()
    table["neighbours"] = [len(n) for n in neighbours(labels, found)]
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]) if labels.size \
        else labels.ravel()
    table["touches_edge"] = np.isin(found, edge)
    if microns is not None:
        for name in ("perimeter", "major_axis", "minor_axis"):
            table[f"{name}_um"] = table[name] * microns
        table["area_um2"] = table["area"] * microns**2
    return table


def neighbours(labels: np.ndarray, wanted: Sequence[int]) -> list[set[int]]:
    """For each label, those of the instances at most NEIGHBOUR_GAP pixels away."""
    windows = ndimage.find_objects(labels)
    reach = NEIGHBOUR_GAP + 1
    found = []
    for label in wanted:
        window = tuple(slice(max(0, side.start - reach), side.stop + reach)
                       for side in windows[label - 1])
        part = labels[window]
        near = ndimage.distance_transform_edt(part != label) <= reach
        found.append(set(np.unique(part[near]).tolist()) - {0, label})
    return found
