"""Training targets in NumPy, with matterport's contracts.

Training itself makes its targets in the graph (`mrcnn.network.targets`). These functions serve
notebooks that look at targets, `data_generator`, and training of the heads on random regions. Each
takes an optional `rng`; without one it draws from NumPy's global state, as matterport's code did.

Boxes are (y1, x1, y2, x2) in pixels, y2 and x2 exclusive.
Shapes: A anchors, N instances, R regions, T = TRAIN_ROIS_PER_IMAGE, K classes, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn.data.random_regions import random_regions
from mrcnn.errors import UserError
from mrcnn.pixels import molding
from mrcnn.pixels.boxes import box_refinement, compute_overlaps

# Thresholds of the RPN (Faster R-CNN, section 3.1.2) and of the heads (Fast R-CNN, section 2.3).
RPN_POSITIVE_IOU = 0.7
RPN_NEGATIVE_IOU = 0.3
HEAD_POSITIVE_IOU = 0.5
# An anchor that touches a crowd is neither an object nor background.
CROWD_IOU = 0.001


def _generator(rng: np.random.Generator | None) -> np.random.Generator:
    """The given generator, or one seeded from NumPy's global state (`np.random.seed` counts)."""
    return np.random.default_rng(np.random.randint(2**31)) if rng is None else rng


def _boxes_4(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def build_rpn_targets(
    image_shape: tuple[int, ...],
    anchors: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    config: Any,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Match anchors with ground-truth boxes (matterport's `build_rpn_targets`).

    image_shape: kept for compatibility, not used. anchors: [A, 4] pixels. gt_class_ids: int [N],
    negative for crowds, whose area gives no negative anchors. gt_boxes: [N, 4] pixels.

    Returns rpn_match int32 [A]: 1 object, -1 background, 0 not used; and rpn_bbox float32
    [RPN_TRAIN_ANCHORS_PER_IMAGE, 4]: (dy, dx, log dh, log dw) / RPN_BBOX_STD_DEV of the positive
    anchors in their order, zero padded. At most half of the anchors used are positive. An image
    without objects gives background only.
    """
    rng = _generator(rng)
    budget = config.RPN_TRAIN_ANCHORS_PER_IMAGE
    gt_class_ids, gt_boxes = np.asarray(gt_class_ids), _boxes_4(gt_boxes)
    crowds, boxes = gt_boxes[gt_class_ids < 0], gt_boxes[gt_class_ids > 0]

    match = np.zeros(len(anchors), np.int32)
    clear = np.ones(len(anchors), bool)
    if len(crowds):
        clear = compute_overlaps(anchors, crowds).max(axis=1) < CROWD_IOU
    nearest = np.zeros(len(anchors), int)
    if len(boxes):
        overlaps = compute_overlaps(anchors, boxes)
        nearest, best = overlaps.argmax(axis=1), overlaps.max(axis=1)
        match[(best < RPN_NEGATIVE_IOU) & clear] = -1
        # Every object gets its best anchors, however poor. Where nothing overlaps it at all,
        # "the best" would be every anchor of the image.
        box_best = overlaps.max(axis=0)
        match[((overlaps == box_best) & (box_best > 0)).any(axis=1)] = 1
        match[best >= RPN_POSITIVE_IOU] = 1
    else:
        match[clear] = -1

    _thin_out(match, 1, budget // 2, rng)
    _thin_out(match, -1, budget - np.count_nonzero(match == 1), rng)
    positive = np.flatnonzero(match == 1)
    deltas = np.zeros((budget, 4), np.float32)
    deltas[: len(positive)] = (
        box_refinement(anchors[positive], boxes[nearest[positive]]) / config.RPN_BBOX_STD_DEV
    )
    return match, deltas


def _thin_out(match: np.ndarray, value: int, limit: int, rng: np.random.Generator) -> None:
    """Set random entries equal to `value` to 0 until `limit` of them are left (in place)."""
    found = np.flatnonzero(match == value)
    if len(found) > limit:
        match[rng.choice(found, len(found) - limit, replace=False)] = 0


def build_detection_targets(
    rpn_rois: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    gt_masks: np.ndarray,
    config: Any,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sample regions and make the heads' targets (matterport's `build_detection_targets`).

    rpn_rois: [R, 4] pixels, R > 0. gt_class_ids: int [N]; only positive ones count. gt_boxes:
    int [N, 4] pixels. gt_masks: bool [H, W, N], or mini masks [h, w, N] with USE_MINI_MASK.

    Returns rois [T, 4] pixels; class_ids int32 [T], 0 for background; bboxes float32 [T, K, 4],
    (dy, dx, log dh, log dw) / BBOX_STD_DEV at the region's class; masks float32 0 or 1
    [T, MASK_SHAPE, K] at the region's class. Regions repeat where there are fewer than T.
    Masks are made in matterport's way in both pixel conventions, and without MASK_ROI_SCALE:
    training uses `targets.mask_targets`.
    """
    if len(rpn_rois) == 0:
        raise UserError("build_detection_targets: there are no regions (rpn_rois is empty)")
    rng = _generator(rng)
    objects = np.flatnonzero(np.asarray(gt_class_ids) > 0)
    gt_class_ids = np.asarray(gt_class_ids)[objects]
    gt_boxes = np.asarray(gt_boxes).reshape(-1, 4)[objects]
    gt_masks = gt_masks[:, :, objects]

    nearest, best = np.zeros(len(rpn_rois), int), np.zeros(len(rpn_rois))
    if len(objects):
        overlaps = compute_overlaps(rpn_rois, gt_boxes)
        nearest, best = overlaps.argmax(axis=1), overlaps.max(axis=1)
    keep, positives = _sample_regions(best >= HEAD_POSITIVE_IOU, config, rng)

    count = config.TRAIN_ROIS_PER_IMAGE
    rois, nearest = rpn_rois[keep], nearest[keep]
    class_ids = np.zeros(count, np.int32)
    class_ids[positives] = gt_class_ids[nearest[positives]]
    bboxes = np.zeros((count, config.NUM_CLASSES, 4), np.float32)
    bboxes[positives, class_ids[positives]] = (
        box_refinement(rois[positives], gt_boxes[nearest[positives]]) / config.BBOX_STD_DEV
    )
    masks = np.zeros((count, *config.MASK_SHAPE[:2], config.NUM_CLASSES), np.float32)
    for i in positives:
        mask, box = gt_masks[:, :, nearest[i]], gt_boxes[nearest[i]]
        masks[i, :, :, class_ids[i]] = _region_mask(mask, box, rois[i], config)
    return rois, class_ids, bboxes, masks


def _sample_regions(
    positive: np.ndarray, config: Any, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose TRAIN_ROIS_PER_IMAGE regions, at most ROI_POSITIVE_RATIO of them positive.

    Returns the indices of the chosen regions [T] and the positions among them that are positive.
    """
    count = config.TRAIN_ROIS_PER_IMAGE
    objects, background = np.flatnonzero(positive), np.flatnonzero(~positive)
    limit = int(count * config.ROI_POSITIVE_RATIO)
    if len(objects) > limit:
        objects = rng.choice(objects, limit, replace=False)
    if len(background) > count - len(objects):
        background = rng.choice(background, count - len(objects), replace=False)
    keep = np.concatenate([objects, background])
    missing = count - len(keep)
    if missing:
        # Repeat background; when all regions are on objects, repeat those.
        extra = rng.choice(background if len(background) else objects, missing, replace=True)
        keep = np.concatenate([keep, extra])
    return keep, np.flatnonzero(positive[keep])


def _region_mask(mask: np.ndarray, box: np.ndarray, roi: np.ndarray, config: Any) -> np.ndarray:
    """The part of an instance's mask inside a region, at MASK_SHAPE; bool."""
    if config.USE_MINI_MASK:
        whole = np.zeros(config.IMAGE_SHAPE[:2], np.float32)
        y1, x1, y2, x2 = (int(value) for value in box)
        small = molding.resize(mask.astype(np.float32), (y2 - y1, x2 - x1))
        whole[y1:y2, x1:x2] = small >= 0.5
    else:
        whole = mask.astype(np.float32)
    y1, x1, y2, x2 = (int(value) for value in roi)
    part = whole[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    return molding.resize(part, tuple(config.MASK_SHAPE[:2])) >= 0.5


def generate_random_rois(
    image_shape: tuple[int, ...],
    count: int,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """`data.random_regions.random_regions`; gt_class_ids is for compatibility and has no effect."""
    return random_regions(image_shape, count, gt_boxes, _generator(rng))
