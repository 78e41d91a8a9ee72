"""Ground truth that says only where objects are, not which: crowds, with negative class ids.

As in COCO's evaluation, neither missing nor detecting them counts as an error.

Shapes: H, W pixels, L label layers, N instances, D detections, C crowds.
"""

from __future__ import annotations

import numpy as np

from mrcnn.pixels.overlaps import intersections


def split_crowds(layers: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth int [H, W, L] with class ids [N] -> the layers of the objects alone, and those
    of the crowds alone."""
    crowd = np.concatenate([[False], np.asarray(class_ids) < 0])[layers]
    return np.where(crowd, 0, layers), np.where(crowd, layers, 0)


def shares_in_crowds(crowds: np.ndarray, detections: np.ndarray) -> np.ndarray:
    """The share of every detection's pixels that lies in each crowd, float64 [C, D].

    crowds, detections: instances in any form that `mrcnn.pixels.overlaps` takes.
    """
    shared, _, areas = intersections(crowds, detections)
    return shared / np.maximum(areas, 1)


def outside_crowds(iou: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Which detections count where all IoU thresholds are judged together, bool [D]: those with no
    more than half of their area in a crowd, and those that have an IoU above .5 with an object.

    iou: [N, D], with the objects; shares: [C, D], as `shares_in_crowds` returns them.
    """
    return (shares.max(axis=0, initial=0.0) <= 0.5) | (iou.max(axis=0, initial=0.0) > 0.5)


def only(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A label map int [H, W] with only the instances that are `kept`, bool [D] by ascending label;
    their labels stay as they are."""
    if kept.all():
        return labels
    values = np.unique(labels[labels != 0])
    return np.where(np.isin(labels, values[kept]), labels, 0)
