"""Truth that says only where objects are, not which: crowds, with negative class ids.

As in COCO's evaluation they are neither to be found nor wrong to be found.

Shapes: H, W pixels, L label layers, N instances.
"""

from __future__ import annotations

import numpy as np


def split_crowds(layers: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Truth int [H, W, L] with class ids [N] -> the objects' layers alone, and where crowds are,
    bool [H, W]."""
    crowd = np.concatenate([[False], np.asarray(class_ids) < 0])[layers]
    return np.where(crowd, 0, layers), crowd.any(axis=-1)


def outside_crowds(
    labels: np.ndarray, scores: np.ndarray | None, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """The detections that do not lie for more than half in crowds.

    labels: map int [H, W]; scores: of its instances by ascending label, or None; crowd: bool
    [H, W]. Returns the map without the others, its labels as they were, and their scores.
    """
    areas = np.bincount(labels.ravel())
    hidden = np.bincount(labels[crowd], minlength=len(areas))
    dropped = 2 * hidden > areas
    dropped[0] = False
    present = areas > 0
    present[0] = False
    kept = None if scores is None else np.asarray(scores)[~dropped[present]]
    return np.where(dropped[labels], 0, labels), kept
