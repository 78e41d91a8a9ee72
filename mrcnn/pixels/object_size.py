"""The scale that brings the objects of an image to the size that the network was trained on.

With `Config.OBJECT_SIZE` set, training takes the size of the objects from the ground truth, and
detection from a first forward pass (see `detector`). So one network serves images of all
magnifications, and learns one size of objects instead of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mrcnn.config import Config


def median_side(boxes: np.ndarray) -> float | None:
    """Median over objects of the side of a square with the area of the box, in pixels.

    Args:
        boxes: [N, 4] pixels (y1, x1, y2, x2); boxes without area do not count.

    Returns:
        None when there is no object.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    areas = areas[areas > 0]
    return float(np.sqrt(np.median(areas))) if len(areas) else None


def object_scale(boxes: np.ndarray, config: Config) -> float | None:
    """The scale at which the median object has the side OBJECT_SIZE, within SCALE_LIMITS.

    Args:
        boxes: as for `median_side`, in pixels of the image.

    Returns:
        None when there is no object, or no OBJECT_SIZE.
    """
    side = median_side(boxes) if config.OBJECT_SIZE else None
    return None if side is None else float(np.clip(config.OBJECT_SIZE / side, *config.SCALE_LIMITS))
