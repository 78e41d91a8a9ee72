"""Training targets, made in the graph with static shapes: what every anchor and every region of
interest should have predicted.

Nothing is cut out by its index: samples are chosen by random priorities and masks, so that the
same code runs on every backend.

Source: paper sections 3.8.1, 3.9.4, 3.9.5; matterport `build_rpn_targets`,
`detection_targets_graph`.
Shape shorthand: B images, A anchors, S of them sampled, G ground-truth instances (padded with class
id 0), N proposals, T sampled regions, at most F of them positive. Negative class ids are crowds.
"""

import keras
import numpy as np
from keras import layers, ops

from mrcnn.network.boxes import (
    box_area,
    box_refinement_graph,
    constant,
    overlaps_graph,
    scale_boxes_graph,
)
from mrcnn.network.replicas import random_uniform
from mrcnn.network.roi_align import bilinear_grid, sample_positions

# Paper section 3.9.4: an anchor is positive above the first, negative below the second.
RPN_POSITIVE_IOU = 0.7
RPN_NEGATIVE_IOU = 0.3
# Overlaps closer than this are equal: anchors placed symmetrically differ by rounding only.
TIE = 1e-6
# Paper section 3.8.1: a region with at least this overlap is positive.
ROI_POSITIVE_IOU = 0.5
# A region or anchor that touches a crowd box is not an example of background.
CROWD_IOU = 0.001
# Instances that are compared with all anchors at a time.
INSTANCES_AT_ONCE = 16


def positives_first(positive, negative, positive_limit: int, total: int, priority):
    """Choose candidates at random: positives first, then as many negatives as fill the rest.

    Args:
        positive, negative: bool [B, N], disjoint.
        positive_limit: the most positives.
        total: T.
        priority: float32 [B, N], uniform in [0, 1).

    Returns:
        index int32 [B, T] into N; positive bool [B, T] (a prefix); used bool [B, T].
    """
    count = positive.shape[1]

    def ranked(mask, limit):
        value, index = ops.top_k(ops.where(mask, priority, -1.0), min(limit, count))
        return index, ops.sum(ops.cast(value >= 0, "int32"), axis=1, keepdims=True)

    positive_index, positives = ranked(positive, positive_limit)
    negative_index, negatives = ranked(negative, total)
    slot = ops.arange(total, dtype="int32")[None]
    is_positive = slot < positives
    used = slot < positives + negatives
    from_positive = ops.minimum(slot, positive_index.shape[1] - 1) + ops.zeros_like(positives)
    from_negative = ops.clip(slot - positives, 0, negative_index.shape[1] - 1)
    index = ops.where(
        is_positive,
        ops.take_along_axis(positive_index, from_positive, axis=1),
        ops.take_along_axis(negative_index, from_negative, axis=1),
    )
    return index, is_positive, used


def match_anchors(anchors, gt_class_ids, gt_boxes):
    """Which anchors are positive or negative, and for which instance (paper 3.9.4).

    Instances are compared with the anchors group by group: room for hundreds of them is mostly
    padding, and the groups that hold only padding are left out.

    Args:
        anchors: float32 [A, 4] in pixels.
        gt_class_ids: int32 [B, G].
        gt_boxes: float32 [B, G, 4] in pixels.

    Returns:
        positive bool [B, A], negative bool [B, A], instance int32 [B, A] (meaningful where
        positive).
    """
    padding = -gt_class_ids.shape[1] % INSTANCES_AT_ONCE
    gt_class_ids = ops.pad(gt_class_ids, [[0, 0], [0, padding]])
    gt_boxes = ops.pad(gt_boxes, [[0, 0], [0, padding], [0, 0]])
    position = ops.arange(1, gt_class_ids.shape[1] + 1, dtype="int32")
    end = ops.max(ops.where(gt_class_ids != 0, position, 0))

    def more(first, *_):
        return first < end

    def compare(first, best, instance, is_best, crowd):
        group = first + ops.arange(INSTANCES_AT_ONCE, dtype="int32")
        ids = ops.take(gt_class_ids, group, axis=1)[..., None]  # [B, g, 1]
        overlaps = overlaps_graph(ops.take(gt_boxes, group, axis=1), anchors[None])  # [B, g, A]
        crowd = crowd | (ops.max(ops.where(ids < 0, overlaps, 0.0), axis=1) > CROWD_IOU)
        overlaps = ops.where(ids > 0, overlaps, 0.0)
        # The best anchors of every instance are positive however little they overlap.
        best_of_instance = ops.max(overlaps, axis=2, keepdims=True)
        reached = (overlaps > best_of_instance - TIE) & (overlaps > 0)
        is_best = is_best | ops.any(reached, axis=1)
        best_here = ops.max(overlaps, axis=1)
        here = first + ops.cast(ops.argmax(overlaps, axis=1), "int32")
        instance = ops.where(best_here > best, here, instance)
        return first + INSTANCES_AT_ONCE, ops.maximum(best, best_here), instance, is_best, crowd

    nothing = ops.zeros((ops.shape(gt_boxes)[0], anchors.shape[0]))
    no, zero = nothing > 0, ops.cast(nothing, "int32")
    start = (ops.zeros((), "int32"), nothing, zero, no, no)
    _, best, instance, is_best, crowd = ops.while_loop(more, compare, start)
    positive = (best >= RPN_POSITIVE_IOU) | is_best
    negative = (best < RPN_NEGATIVE_IOU) & ~positive & ~crowd
    return positive, negative, instance


class RpnTargetLayer(layers.Layer):
    """Samples anchors and makes their targets.

    Inputs: gt_class_ids [B, G] int32, gt_boxes [B, G, 4] float32 in pixels of the molded image.
    Outputs, S being `RPN_TRAIN_ANCHORS_PER_IMAGE`: index int32 [B, S] of the anchors, match int32
    [B, S] (1 positive, -1 negative, 0 where there are fewer than S) and deltas [B, S, 4], divided
    by `RPN_BBOX_STD_DEV`, zero where not positive.
    """

    def __init__(self, anchors, config, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions use
        self.anchors = np.asarray(anchors, "float32")
        self.config = config
        self.seed_generator = keras.random.SeedGenerator(config.SEED)

    def call(self, inputs):
        gt_class_ids, gt_boxes = inputs
        gt_class_ids, gt_boxes = ops.stop_gradient(gt_class_ids), ops.stop_gradient(gt_boxes)
        anchors = ops.convert_to_tensor(self.anchors)
        positive, negative, instance = match_anchors(anchors, gt_class_ids, gt_boxes)

        total = int(self.config.RPN_TRAIN_ANCHORS_PER_IMAGE)
        shape = (ops.shape(gt_boxes)[0], self.anchors.shape[0])
        priority = random_uniform(shape, self.seed_generator)
        index, positive, used = positives_first(positive, negative, total // 2, total, priority)
        match = ops.where(positive, 1, ops.where(used, -1, 0))

        instance = ops.take_along_axis(instance, index, axis=1)
        matched = ops.take_along_axis(gt_boxes, instance[..., None], axis=1)
        deltas = box_refinement_graph(ops.take(anchors, index, axis=0), matched)
        deltas = deltas / constant(self.config.RPN_BBOX_STD_DEV)
        return index, ops.cast(match, "int32"), ops.where(positive[..., None], deltas, 0.0)

    def compute_output_shape(self, input_shape):
        batch, count = input_shape[0][0], int(self.config.RPN_TRAIN_ANCHORS_PER_IMAGE)
        return (batch, count), (batch, count), (batch, count, 4)

    def compute_output_spec(self, inputs):
        shapes = self.compute_output_shape([i.shape for i in inputs])
        return tuple(map(keras.KerasTensor, shapes, ("int32", "int32", "float32")))


def sample_rois(
    overlaps, crowd, real, total, positive_limit, priority, background_iou=(0.0, ROI_POSITIVE_IOU)
):
    """Choose regions: positives first, then as many negatives as fill the rest.

    matterport holds the ratio by leaving slots empty when positives are few, which gives an image
    without objects no loss at all; here, as in the paper (3.8.1), background fills them.

    Args:
        overlaps: [B, N, G] with real instances only.
        crowd: bool [B, N], overlaps a crowd.
        real: bool [B, N], not padding.
        total: T.
        positive_limit: F.
        priority: float32 [B, N].
        background_iou: (low, high), see `Config.ROI_BACKGROUND_IOU`.

    Returns:
        index int32 [B, T] into N; positive bool [B, T] (a prefix of at most F); used bool [B, T].
    """
    best = ops.max(overlaps, axis=2)
    is_positive = real & (best >= ROI_POSITIVE_IOU)
    low, high = background_iou
    is_negative = real & (best >= low) & (best < high) & ~crowd
    return positives_first(is_positive, is_negative, positive_limit, total, priority)


def coverage_weights(start, end, count: int, size: int):
    """How a grid of `size` cells is averaged over each of `count` equal bins of [start, end].

    Args:
        start, end: [...] normalised to the grid; they may lie outside it.

    Returns:
        [..., count, size], the share of every bin that every cell fills. A row sums to less than
        1 where the bin reaches beyond the grid: what lies outside counts as zero.
    """
    edges = start[..., None] + (end - start)[..., None] * constant(np.arange(count + 1) / count)
    # The part of every cell that lies before the edges of the bins.
    before = ops.clip(edges[..., None] * size - constant(np.arange(size)), 0.0, 1.0)
    bins = ops.maximum((end - start) * (size / count), 1e-8)
    return (before[..., 1:, :] - before[..., :-1, :]) / bins[..., None, None]


def mask_targets(rois, instance, gt_boxes, gt_masks, config):
    """Ground-truth masks seen through the regions, enlarged by `MASK_ROI_SCALE`.

    In the exact pixel convention a target is the share of its cell that the mask covers, which
    keeps outlines between cells where they are. matterport's convention takes one bilinear sample
    per cell and rounds it as `tf.round` does: 1 above one half, otherwise 0.

    Args:
        rois: [B, F, 4] normalised.
        instance: int32 [B, F].
        gt_boxes: [B, G, 4] normalised.
        gt_masks: [B, G, h, w] of 0 and 1, mini masks that span the instance's box, or whole
            images.

    Returns:
        float32 [B, F, MASK_SHAPE] from 0 to 1.
    """
    rois = scale_boxes_graph(rois, config.MASK_ROI_SCALE)
    if config.USE_MINI_MASK:
        # From image coordinates to coordinates within the instance's box.
        box = ops.take_along_axis(gt_boxes, instance[..., None], axis=1)
        height = ops.maximum(box[..., 2] - box[..., 0], 1e-8)
        width = ops.maximum(box[..., 3] - box[..., 1], 1e-8)
        size = ops.stack([height, width, height, width], axis=-1)
        origin = ops.stack([box[..., 0], box[..., 1], box[..., 0], box[..., 1]], axis=-1)
        rois = (rois - origin) / size
    image = ops.arange(ops.shape(instance)[0], dtype="int32")[:, None]
    index = image * gt_masks.shape[1] + instance
    look = _covered_shares if config.exact_pixels else _rounded_samples
    return look(rois, index, gt_masks, tuple(config.MASK_SHAPE[:2]))


def _covered_shares(rois, index, gt_masks, shape):
    """rois [B, F, 4] normalised to the masks, index [B, F] into B * G -> [B, F, *shape]."""
    rows, columns = gt_masks.shape[2:]
    masks = ops.take(ops.reshape(gt_masks, (-1, rows, columns)), index, axis=0)
    vertical = coverage_weights(rois[..., 0], rois[..., 2], shape[0], rows)
    horizontal = coverage_weights(rois[..., 1], rois[..., 3], shape[1], columns)
    shares = ops.matmul(vertical, ops.cast(masks, "float32"))
    return ops.matmul(shares, ops.swapaxes(horizontal, -1, -2))


def _rounded_samples(rois, index, gt_masks, shape):
    """As `_covered_shares`, in matterport's way: 0 or 1."""
    rows, columns = gt_masks.shape[2:]
    height, width = ops.zeros_like(index) + rows, ops.zeros_like(index) + columns
    y, y_in = sample_positions(rois[..., 0], rois[..., 2], shape[0], height, exact=False)
    x, x_in = sample_positions(rois[..., 1], rois[..., 3], shape[1], width, exact=False)
    table = ops.reshape(gt_masks, (-1, 1))
    inside = y_in[..., :, None] & x_in[..., None, :]
    offset = index * (rows * columns)
    masks = bilinear_grid(table, offset, height, width, y, x, inside, "float32")[..., 0]
    return ops.cast(masks > 0.5, "float32")


def detection_targets(proposals, gt_class_ids, gt_boxes, gt_masks, config, priority):
    """Sample proposals and say what each should become.

    Args:
        proposals: [B, N, 4] normalised, zero rows are padding.
        gt_class_ids: int32 [B, G].
        gt_boxes: [B, G, 4] normalised.
        gt_masks: [B, G, h, w] uint8.
        config: `TRAIN_ROIS_PER_IMAGE`, `ROI_POSITIVE_RATIO`, `ROI_BACKGROUND_IOU`,
            `TRAIN_GT_AS_ROIS`, `MASK_SHAPE`, `MASK_ROI_SCALE`, `USE_MINI_MASK`, `BBOX_STD_DEV`.
        priority: float32 [B, N] or, with `TRAIN_GT_AS_ROIS`, [B, N + G]; uniform in [0, 1).

    Returns:
        rois [B, T, 4] normalised, class ids int32 [B, T], deltas [B, T, 4] divided by
        `BBOX_STD_DEV`, masks [B, F, MASK_SHAPE]. Positives come first; zero rows are unused.
    """
    total = int(config.TRAIN_ROIS_PER_IMAGE)
    positive_limit = max(1, int(total * config.ROI_POSITIVE_RATIO))
    if config.TRAIN_GT_AS_ROIS:
        truth = ops.where(gt_class_ids[..., None] > 0, gt_boxes, 0.0)
        proposals = ops.concatenate([proposals, truth], axis=1)
    overlaps = overlaps_graph(proposals, gt_boxes)  # [B, N, G]
    crowd = ops.max(ops.where(gt_class_ids[:, None] < 0, overlaps, 0.0), axis=2) > CROWD_IOU
    overlaps = ops.where(gt_class_ids[:, None] > 0, overlaps, 0.0)
    index, positive, used = sample_rois(
        overlaps,
        crowd,
        box_area(proposals) > 0,
        total,
        positive_limit,
        priority,
        config.ROI_BACKGROUND_IOU,
    )
    rois = ops.take_along_axis(proposals, index[..., None], axis=1)
    best = ops.cast(ops.argmax(overlaps, axis=2), "int32")
    instance = ops.take_along_axis(best, index, axis=1)
    class_ids = ops.where(positive, ops.take_along_axis(gt_class_ids, instance, axis=1), 0)
    matched = ops.take_along_axis(gt_boxes, instance[..., None], axis=1)
    deltas = box_refinement_graph(rois, matched) / constant(config.BBOX_STD_DEV)
    front = slice(None, positive_limit)
    masks = mask_targets(rois[:, front], instance[:, front], gt_boxes, gt_masks, config)
    return (
        ops.where(used[..., None], rois, 0.0),
        class_ids,
        ops.where(positive[..., None], deltas, 0.0),
        ops.where(positive[:, front, None, None], masks, 0.0),
    )


class RoiTargetLayer(layers.Layer):
    """`detection_targets` as a layer.

    Inputs: proposals [B, N, 4] normalised, gt_class_ids [B, G], gt_boxes [B, G, 4] normalised,
    gt_masks [B, G, h, w]. Outputs: rois, class ids, deltas and masks, see there.
    """

    def __init__(self, config, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions use
        self.autocast = False
        self.config = config
        # Not the anchors' random numbers again.
        self.seed_generator = keras.random.SeedGenerator(config.SEED + 1)

    def call(self, inputs):
        proposals, gt_class_ids, gt_boxes, gt_masks = (ops.stop_gradient(i) for i in inputs)
        count = proposals.shape[1]
        if self.config.TRAIN_GT_AS_ROIS:
            count += gt_boxes.shape[1]
        shape = (ops.shape(proposals)[0], count)
        priority = random_uniform(shape, self.seed_generator)
        return detection_targets(proposals, gt_class_ids, gt_boxes, gt_masks, self.config, priority)

    def compute_output_shape(self, input_shape):
        batch, total = input_shape[0][0], int(self.config.TRAIN_ROIS_PER_IMAGE)
        positives = max(1, int(total * self.config.ROI_POSITIVE_RATIO))
        masks = (batch, positives, *self.config.MASK_SHAPE)
        return (batch, total, 4), (batch, total), (batch, total, 4), masks

    def compute_output_spec(self, inputs):
        shapes = self.compute_output_shape([i.shape for i in inputs])
        dtypes = ("float32", "int32", "float32", "float32")
        return tuple(map(keras.KerasTensor, shapes, dtypes))
