"""Box arithmetic in NumPy.

Boxes are (y1, x1, y2, x2) with exclusive ends y2, x2; see mrcnn/pixels/molding.py for the pixel
convention. Functions have the names and results of matterport's ``utils``.

Shapes: N boxes, M other boxes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def extract_bboxes(mask: np.ndarray) -> np.ndarray:
    """Return int32 [N, 4] pixels, the tight boxes of masks [H, W, N]; zeros for empty masks."""
    height, width, count = mask.shape
    boxes = np.zeros((count, 4), np.int32)
    if mask.size == 0:
        return boxes
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    boxes[:, 0] = rows.argmax(axis=0)
    boxes[:, 1] = columns.argmax(axis=0)
    boxes[:, 2] = height - rows[::-1].argmax(axis=0)
    boxes[:, 3] = width - columns[::-1].argmax(axis=0)
    boxes[~rows.any(axis=0)] = 0
    return boxes


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return [N], the areas of boxes [N, 4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def compute_iou(
    box: np.ndarray, boxes: np.ndarray, box_area: float, boxes_area: np.ndarray
) -> np.ndarray:
    """Return [N], the IoU of one box [4] with boxes [N, 4]; 0 where both have no area.

    The areas are arguments so that a caller with many boxes computes them once.
    """
    height = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    width = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    intersection = np.maximum(height, 0) * np.maximum(width, 0)
    union = np.asarray(box_area + boxes_area - intersection, np.float64)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def compute_overlaps(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Return float64 [N, M], the IoU of every pair of boxes [N, 4] and [M, 4].

    One pass per box of the second set: pass the larger set first.
    """
    area1, area2 = box_areas(boxes1), box_areas(boxes2)
    overlaps = np.zeros((len(boxes1), len(boxes2)))
    for j, box in enumerate(boxes2):
        overlaps[:, j] = compute_iou(box, boxes1, area2[j], area1)
    return overlaps


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Keep the best box, drop those with an IoU above threshold with it, and so on.

    Args:
        boxes: [N, 4]; N may be 0.
        scores: [N].
        threshold: IoU.

    Returns:
        int32 indices of the boxes kept, best score first.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    areas = box_areas(boxes)
    candidates = np.argsort(scores)[::-1]
    kept = []
    while len(candidates):
        best, candidates = candidates[0], candidates[1:]
        kept.append(best)
        iou = compute_iou(boxes[best], boxes[candidates], areas[best], areas[candidates])
        candidates = candidates[iou <= threshold]
    return np.array(kept, np.int32)


def _centres_and_sizes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.asarray(boxes, np.float32)
    sizes = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * sizes, sizes


def apply_box_deltas(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Return float32 [N, 4]: boxes [N, 4] moved by deltas [N, (dy, dx, log dh, log dw)].

    dy and dx are in heights and widths of the box (Girshick et al., *R-CNN*, appendix C).
    """
    centres, sizes = _centres_and_sizes(boxes)
    deltas = np.asarray(deltas, np.float32)
    centres = centres + deltas[:, :2] * sizes
    sizes = sizes * np.exp(deltas[:, 2:])
    corner = centres - 0.5 * sizes
    return np.concatenate([corner, corner + sizes], axis=1)


def box_refinement(box: np.ndarray, gt_box: np.ndarray) -> np.ndarray:
    """Return float32 [N, (dy, dx, log dh, log dw)], the deltas that turn box into gt_box."""
    centres, sizes = _centres_and_sizes(box)
    gt_centres, gt_sizes = _centres_and_sizes(gt_box)
    return np.concatenate([(gt_centres - centres) / sizes, np.log(gt_sizes / sizes)], axis=1)


def scale_boxes(boxes: np.ndarray, factor: float) -> np.ndarray:
    """Return [N, 4]: boxes [N, 4] stretched about their centres."""
    more = 0.5 * (factor - 1.0) * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], axis=1)


def norm_boxes(boxes: np.ndarray, shape: Sequence[int], *, exact: bool = False) -> np.ndarray:
    """Convert boxes from pixels to normalised coordinates.

    Args:
        boxes: [N, 4] or [4], pixels.
        shape: (H, W) or longer.
        exact: divide by the size. Otherwise as in matterport: pixel 0 becomes 0 and the last pixel
            1, so the exclusive ends are moved in by one pixel and the size is H - 1, W - 1.

    Returns:
        float32, the shape of boxes.
    """
    scale, shift = _scale_and_shift(shape, exact)
    return np.divide(np.asarray(boxes) - shift, scale).astype(np.float32)


def denorm_boxes(boxes: np.ndarray, shape: Sequence[int], *, exact: bool = False) -> np.ndarray:
    """Undo ``norm_boxes``: int32 pixels rounded to even, or float32 unrounded when exact."""
    scale, shift = _scale_and_shift(shape, exact)
    pixels = np.multiply(boxes, scale) + shift
    return pixels.astype(np.float32) if exact else np.around(pixels).astype(np.int32)


def _scale_and_shift(shape: Sequence[int], exact: bool) -> tuple[np.ndarray, np.ndarray]:
    height, width = int(shape[0]), int(shape[1])
    if exact:
        return np.array([height, width, height, width]), np.array([0, 0, 0, 0])
    return np.array([height, width, height, width]) - 1, np.array([0, 0, 1, 1])
