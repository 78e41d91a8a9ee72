"""Scores for detections. NumPy only.

Three families:
- matterport's functions on boxes and mask stacks (`compute_ap` and friends);
- scores of instance segmentation, computed from one IoU matrix per image: the competition score
  of the Data Science Bowl 2018, F1, panoptic quality, aggregated Jaccard index, COCO-style AP;
- pixel scores of semantic segmentation from a confusion matrix (paper, section 3.5.5).

Instances are given as a label map [H, W] (0 background), as label layers [H, W, L] (several
label maps, so that instances may overlap; see masks.py), or as a stack of bool masks [H, W, N].

Shapes: H, W pixels, G true instances, D detected instances, T thresholds, K pixel classes.
Boxes are (y1, x1, y2, x2) in pixels, ends exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrcnn.evaluation.crowds import shares_in_crowds
from mrcnn.pixels.boxes import compute_overlaps
from mrcnn.pixels.overlaps import intersections, iou_matrix, unions

# IoU thresholds of the competition and of COCO: .50, .55, ..., .95.
IOU_THRESHOLDS = np.round(np.arange(0.5, 1.0, 0.05), 2)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


# --- Pairs of instances -------------------------------------------------------------------


def match_instances(iou: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """IoU values of the one-to-one pairs above the threshold, descending, float64 [pairs].

    The best pair is taken first. Among instances that do not overlap each other at most one
    partner can have an IoU above .5, so there is no choice; where they do overlap, no instance
    counts twice. The pairs above a higher threshold are the first ones of the list.
    """
    rows, columns = np.nonzero(iou > threshold)
    order = np.argsort(-iou[rows, columns], kind="stable")
    free_rows, free_columns = np.ones(iou.shape[0], bool), np.ones(iou.shape[1], bool)
    pairs = []
    for row, column in zip(rows[order], columns[order], strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append(iou[row, column])
    return np.array(pairs, np.float64)


# --- instance scores of one image ---------------------------------------------------------


def count_matches(iou: np.ndarray, thresholds: Sequence[float] = IOU_THRESHOLDS) -> np.ndarray:
    """True positives, false positives, false negatives at each threshold, int64 [T, 3].

    A pair counts where its IoU is greater than the threshold, as in the competition.
    """
    thresholds = np.asarray(thresholds, np.float64)
    pairs = match_instances(iou, thresholds.min())
    hits = (pairs[np.newaxis, :] > thresholds[:, np.newaxis]).sum(axis=1)
    return np.stack([hits, iou.shape[1] - hits, iou.shape[0] - hits], axis=1)


def threshold_scores(iou: np.ndarray, thresholds: Sequence[float] = IOU_THRESHOLDS) -> np.ndarray:
    """TP / (TP + FP + FN) at each threshold, float64 [T]; 1 where there are no instances."""
    hits, false, missed = count_matches(iou, thresholds).T
    total = hits + false + missed
    return np.where(total == 0, 1.0, hits / np.maximum(total, 1))


def competition_score(iou: np.ndarray) -> float:
    """The Data Science Bowl's score of one image: mean of TP / (TP + FP + FN) over IoU
    .50, .55, ..., .95. The score of a set is the mean over its images. An image with neither
    objects nor detections scores 1."""
    return float(threshold_scores(iou).mean())


def f1(iou: np.ndarray, thresholds: Sequence[float] = IOU_THRESHOLDS) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) at each threshold, float64 [T]; 1 where there are no instances."""
    hits, false, missed = count_matches(iou, thresholds).T
    total = 2 * hits + false + missed
    return np.where(total == 0, 1.0, 2 * hits / np.maximum(total, 1))


def panoptic_quality(iou: np.ndarray) -> float:
    """Sum of the IoU of pairs above .5 / (TP + FP / 2 + FN / 2) (Kirillov et al., 2019)."""
    total = sum(iou.shape) / 2
    return float(match_instances(iou, 0.5).sum() / total) if total else 1.0


def aggregated_jaccard_index(truth: np.ndarray, prediction: np.ndarray) -> float:
    """AJI (Kumar et al., 2017): every true instance takes the detection of highest IoU (several
    may take the same one); sum of the intersections / (sum of the unions + the areas of the
    detections that none of them took). 1 where there are no instances."""
    return aji_of_counts(*intersections(truth, prediction))


def aji_of_counts(shared: np.ndarray, truth_areas: np.ndarray, areas: np.ndarray) -> float:
    """`aggregated_jaccard_index` from what `intersections` returns."""
    if not len(truth_areas) or not len(areas):
        return float(len(truth_areas) == len(areas))
    union = unions(shared, truth_areas, areas)
    rows, best = np.arange(len(truth_areas)), np.argmax(shared / np.maximum(union, 1), axis=1)
    taken = shared[rows, best] > 0
    unused = np.ones(len(areas), bool)
    unused[best[taken]] = False
    total = union[rows, best][taken].sum() + truth_areas[~taken].sum() + areas[unused].sum()
    return float(shared[rows, best].sum() / max(total, 1))


# --- COCO-style average precision of a set ------------------------------------------------


def coco_ap(
    ious: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    crowds: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Average precision at each IoU threshold, pooled over the images, float64 [T].

    ious: one matrix [G, D] per image, crowds left out; scores: the confidences [D] of the same
    images; crowds: the shares [C, D] of each detection's area that lie in the image's crowds.
    As in COCO's evaluation: by descending score, each detection takes the free true instance of
    highest IoU that reaches the threshold; one that finds none does not count where its share in
    a crowd reaches the threshold; precision is made non-increasing and read at 101 recall values.
    Unlike there, no limit of 100 detections per image. NaN without any true instance.
    The mean of the result is the "AP" of COCO's tables.
    """
    if crowds is None:
        crowds = [np.zeros((0, iou.shape[1])) for iou in ious]
    truths = sum(iou.shape[0] for iou in ious)
    if truths == 0:
        return np.full(len(thresholds), np.nan)
    pooled = np.concatenate([np.zeros(0)] + [np.sort(s)[::-1] for s in scores])
    order = np.argsort(-pooled, kind="stable")
    result = []
    for threshold in thresholds:
        pairs = [_coco_hits(*image, threshold) for image in zip(ious, scores, crowds, strict=True)]
        hit, counts = np.concatenate([np.zeros((2, 0), bool), *pairs], axis=1)[:, order]
        result.append(_interpolated_precision(hit[counts], truths))
    return np.array(result)


def _coco_hits(
    iou: np.ndarray, scores: np.ndarray, crowds: np.ndarray, threshold: float
) -> np.ndarray:
    """Which detections, by descending score, find a free true instance, and which count, bool
    [2, D]: all but those in crowds that find none."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    iou, in_crowd = iou[:, order], crowds[:, order].max(axis=0, initial=0.0) >= threshold
    hit = np.zeros(iou.shape[1], bool)
    free = np.ones(iou.shape[0], bool)
    for column in np.flatnonzero(iou.max(axis=0, initial=0.0) >= threshold):
        candidates = np.where(free, iou[:, column], -1.0)
        # COCO's evaluation takes the last of several with the same IoU.
        best = len(candidates) - 1 - int(np.argmax(candidates[::-1]))
        if candidates[best] >= threshold:
            free[best], hit[column] = False, True
    return np.stack([hit, hit | ~in_crowd])


def _interpolated_precision(hit: np.ndarray, truths: int) -> float:
    """Mean over RECALL_POINTS of the highest precision at that recall or beyond."""
    hits = np.cumsum(hit)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hit) + 1))[::-1])[::-1]
    position = np.searchsorted(hits / truths, RECALL_POINTS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(position, len(hit))].mean())


# --- pixel scores (paper, section 3.5.5) --------------------------------------------------


def pixel_confusion(truth: np.ndarray, prediction: np.ndarray, classes: int = 2) -> np.ndarray:
    """n_ij: pixels of class i that are predicted as class j, int64 [K, K].

    truth, prediction: maps [H, W] of class numbers 0..K-1 (bool: background and nucleus). Add
    the matrices of several images to score a set.
    """
    truth, prediction = np.asarray(truth).ravel(), np.asarray(prediction).ravel()
    pairs = truth.astype(np.intp) * classes + prediction
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _class_pixels(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n_ii, t_i = sum_j n_ij, and the union t_i + sum_j n_ji - n_ii of each class.

    The paper prints n_ij in the union. With t_i = sum_j n_ij that would count the class's own
    pixels twice; the pixels wrongly predicted as i, sum_j n_ji, are meant (Long et al., 2015).
    """
    right, total = np.diagonal(confusion), confusion.sum(axis=1)
    return right, total, total + confusion.sum(axis=0) - right


def pixel_accuracy(confusion: np.ndarray) -> float:
    """p_acu = sum_i n_ii / sum_i t_i. 1 for no pixels."""
    right, total, _ = _class_pixels(confusion)
    return float(right.sum() / total.sum()) if total.sum() else 1.0


def mean_accuracy(confusion: np.ndarray) -> float:
    """m_acu = (1 / n_cl) sum_i n_ii / t_i, over the classes that occur in the truth."""
    right, total, _ = _class_pixels(confusion)
    present = total > 0
    return float((right[present] / total[present]).mean()) if present.any() else 1.0


def mean_iu(confusion: np.ndarray) -> float:
    """m_UI = (1 / n_cl) sum_i n_ii / (t_i + sum_j n_ji - n_ii), over the classes that occur in
    the truth or in the prediction."""
    right, _, union = _class_pixels(confusion)
    present = union > 0
    return float((right[present] / union[present]).mean()) if present.any() else 1.0


def frequency_weighted_iu(confusion: np.ndarray) -> float:
    """freq_WIU = (1 / sum_k t_k) sum_i t_i n_ii / (t_i + sum_j n_ji - n_ii)."""
    right, total, union = _class_pixels(confusion)
    present = union > 0
    weighted = total[present] * right[present] / union[present]
    return float(weighted.sum() / total.sum()) if total.sum() else 1.0


# --- matterport's functions ---------------------------------------------------------------


def trim_zeros(x: np.ndarray) -> np.ndarray:
    """Drop the rows of a 2-D array that hold zeros only (matterport `utils.trim_zeros`)."""
    x = np.asarray(x)
    return x[np.any(x != 0, axis=1)]


def compute_overlaps_masks(masks1: np.ndarray, masks2: np.ndarray) -> np.ndarray:
    """IoU of two mask stacks [H, W, N1], [H, W, N2] (values above .5 are inside), float32
    [N1, N2] (matterport `utils.compute_overlaps_masks`)."""
    masks1, masks2 = np.asarray(masks1), np.asarray(masks2)
    if masks1.shape[-1] == 0 or masks2.shape[-1] == 0:
        return np.zeros((masks1.shape[-1], masks2.shape[-1]), np.float32)
    return iou_matrix(masks1 > 0.5, masks2 > 0.5).astype(np.float32)


def compute_matches(
    gt_boxes: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_masks: np.ndarray,
    pred_boxes: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_scores: np.ndarray,
    pred_masks: np.ndarray,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match detections, by descending score, with true instances of their class (matterport
    `utils.compute_matches`; its first true instance can be matched twice, ours cannot).

    Boxes [., 4] in pixels, zero rows are padding; masks [H, W, .]. score_threshold: pairs of a
    lower mask IoU are never considered (matterport's name).
    Returns gt_match [G] and pred_match [D] (index of the partner or -1, detections numbered by
    descending score) and overlaps [D, G].
    """
    gt_boxes, pred_boxes = trim_zeros(gt_boxes), trim_zeros(pred_boxes)
    gt_masks = gt_masks[..., : len(gt_boxes)]
    order = np.argsort(pred_scores[: len(pred_boxes)])[::-1]
    overlaps = compute_overlaps_masks(pred_masks[..., order], gt_masks)
    gt_match, pred_match = np.full(len(gt_boxes), -1.0), np.full(len(pred_boxes), -1.0)
    floor = max(iou_threshold, score_threshold)
    for i, class_id in enumerate(np.asarray(pred_class_ids)[order]):
        for j in np.argsort(overlaps[i])[::-1]:
            if overlaps[i, j] < floor:
                break
            if gt_match[j] < 0 and gt_class_ids[j] == class_id:
                gt_match[j], pred_match[i] = i, j
                break
    return gt_match, pred_match, overlaps


def compute_ap(
    gt_boxes: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_masks: np.ndarray,
    pred_boxes: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_scores: np.ndarray,
    pred_masks: np.ndarray,
    iou_threshold: float = 0.5,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Average precision of one image: the area under the precision envelope (VOC 2010).

    Returns mAP, precisions [D + 2], recalls [D + 2], overlaps [D, G] (matterport
    `utils.compute_ap`). Without true instances the recalls, and with them mAP, are 0. Crowds (true
    instances with negative class ids) are not missed, and precisions and recalls leave out
    detections in them that match nothing else (matterport's counts them as missed and wrong).
    """
    gt_match, pred_match, overlaps = compute_matches(
        gt_boxes,
        gt_class_ids,
        gt_masks,
        pred_boxes,
        pred_class_ids,
        pred_scores,
        pred_masks,
        iou_threshold,
    )
    truths, count = len(gt_match), len(pred_match)
    order = np.argsort(pred_scores[:count])[::-1]
    in_crowd = _in_crowds(
        np.asarray(gt_class_ids)[:truths],
        gt_masks[..., :truths],
        np.asarray(pred_class_ids)[order],
        pred_masks[..., order],
        iou_threshold,
    )
    hit = pred_match > -1
    hits = np.cumsum(hit[hit | ~in_crowd])
    objects = np.count_nonzero(np.asarray(gt_class_ids)[:truths] >= 0)
    precisions = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    recalls = np.concatenate([[0.0], hits / max(objects, 1), [1.0]])
    precisions = np.maximum.accumulate(precisions[::-1])[::-1]
    return float(np.sum(np.diff(recalls) * precisions[1:])), precisions, recalls, overlaps


def _in_crowds(
    gt_class_ids: np.ndarray,
    gt_masks: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_masks: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Which detections have a share `threshold` or more in a crowd of their class: bool [D].

    class ids: those of crowds are negative; masks [H, W, .].
    """
    crowd = gt_class_ids < 0
    shares = shares_in_crowds(gt_masks[..., crowd] > 0.5, pred_masks > 0.5)
    same_class = -gt_class_ids[crowd, np.newaxis] == pred_class_ids
    return (shares * same_class).max(axis=0, initial=0.0) >= threshold


def compute_ap_range(
    gt_box: np.ndarray,
    gt_class_id: np.ndarray,
    gt_mask: np.ndarray,
    pred_box: np.ndarray,
    pred_class_id: np.ndarray,
    pred_score: np.ndarray,
    pred_mask: np.ndarray,
    iou_thresholds: Sequence[float] | None = None,
    verbose: int = 1,
) -> float:
    """Mean of `compute_ap` over IoU thresholds, by default .50, .55, ..., .95; prints each where
    `verbose` (matterport `utils.compute_ap_range`)."""
    thresholds = IOU_THRESHOLDS if iou_thresholds is None else np.asarray(iou_thresholds)
    values = []
    for threshold in thresholds:
        values.append(
            compute_ap(
                gt_box,
                gt_class_id,
                gt_mask,
                pred_box,
                pred_class_id,
                pred_score,
                pred_mask,
                iou_threshold=threshold,
            )[0]
        )
        if verbose:
            print(f"AP @{threshold:.2f}:\t {values[-1]:.3f}")
    mean = float(np.mean(values))
    if verbose:
        print(f"AP @{thresholds[0]:.2f}-{thresholds[-1]:.2f}:\t {mean:.3f}")
    return mean


def compute_recall(
    pred_boxes: np.ndarray, gt_boxes: np.ndarray, iou: float
) -> tuple[float, np.ndarray]:
    """Share of true boxes [G, 4] that are some detected box's [D, 4] best partner with at least
    the given IoU, and the indices of those detections (matterport `utils.compute_recall`).
    Without true boxes the recall is 1: nothing is missed."""
    pred_boxes, gt_boxes = np.reshape(pred_boxes, (-1, 4)), np.reshape(gt_boxes, (-1, 4))
    if not len(gt_boxes) or not len(pred_boxes):
        return float(not len(gt_boxes)), np.zeros(0, np.int64)
    overlaps = compute_overlaps(pred_boxes, gt_boxes)
    positive_ids = np.flatnonzero(overlaps.max(axis=1) >= iou)
    found = np.unique(overlaps.argmax(axis=1)[positive_ids])
    return len(found) / len(gt_boxes), positive_ids
