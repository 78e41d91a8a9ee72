"""From classified regions to final detections.

Source: paper section 3.8.5; matterport `refine_detections_graph`, `DetectionLayer`.
Shape shorthand: B images, R regions, K classes, D detections at most.
"""

import copy

import numpy as np
from keras import layers, ops

from mrcnn.network.boxes import (
    apply_box_deltas_graph,
    box_area,
    clip_boxes_graph,
    constant,
    norm_boxes_graph,
)
from mrcnn.network.nms import NO_SCORE, non_max_suppression_graph
from mrcnn.pixels.image_meta import parse_image_meta_graph


def refine_detections_graph(rois, probs, deltas, window, config):
    """Refine regions by their class's box deltas, drop background and overlaps, keep the best.

    A region's class is its most probable one and is dropped where that is the background, so no
    score is below 1 / K (matterport). In the exact pixel convention it is the most probable class
    other than the background, and DETECTION_MIN_CONFIDENCE alone decides (as in torchvision).

    Args:
        rois: [B, R, 4] normalised.
        probs: [B, R, K].
        deltas: [B, R, K, 4].
        window: [B, 4] normalised, the part of the molded image that is not padding.
        config: `DETECTION_MIN_CONFIDENCE`, `DETECTION_NMS_THRESHOLD`,
            `DETECTION_MAX_INSTANCES`, `BBOX_STD_DEV`.

    Returns:
        [B, D, 6]: box (normalised), class id, score, by descending score; zero rows where there
        are fewer.
    """
    rois, probs, deltas, window = map(ops.convert_to_tensor, (rois, probs, deltas, window))
    if config.exact_pixels:
        class_ids = 1 + ops.cast(ops.argmax(probs[..., 1:], axis=-1), "int32")
        scores = ops.max(probs[..., 1:], axis=-1)
    else:
        class_ids = ops.cast(ops.argmax(probs, axis=-1), "int32")
        scores = ops.max(probs, axis=-1)
    chosen = ops.take_along_axis(deltas, class_ids[..., None, None], axis=2)[:, :, 0]
    chosen = chosen * constant(config.BBOX_STD_DEV)
    boxes = clip_boxes_graph(apply_box_deltas_graph(rois, chosen), window)

    confidence = config.DETECTION_MIN_CONFIDENCE or 0.0
    wanted = (class_ids > 0) & (scores >= confidence) & (box_area(boxes) > 0)
    # Boxes of different classes never meet: each class gets its own unit square.
    shifted = boxes + 2.0 * ops.cast(class_ids, "float32")[..., None]
    keep, valid = non_max_suppression_graph(
        shifted,
        ops.where(wanted, scores, NO_SCORE),
        config.DETECTION_MAX_INSTANCES,
        config.DETECTION_NMS_THRESHOLD,
    )
    rows = ops.concatenate(
        [boxes, ops.cast(class_ids, "float32")[..., None], scores[..., None]], axis=-1
    )
    detections = ops.take_along_axis(rows, keep[..., None], axis=1)
    return ops.where(valid[..., None], detections, 0.0)


class DetectionLayer(layers.Layer):
    """`refine_detections_graph` as a layer (matterport's name).

    Inputs: rois [B, R, 4], probabilities [B, R, K], deltas [B, R, K, 4], image_meta [B, M].
    Output: [B, D, 6].
    """

    def __init__(self, config=None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions use
        self.config = config

    def call(self, inputs):
        rois, probs, deltas, image_meta = inputs
        meta = parse_image_meta_graph(image_meta)
        # All images of a batch have one shape; the window differs.
        window = norm_boxes_graph(
            meta["window"], meta["image_shape"][:, :2], exact=self.config.exact_pixels
        )
        return refine_detections_graph(rois, probs, deltas, window, self.config)

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.config.DETECTION_MAX_INSTANCES, 6)


def count_detections(rois, classes, deltas, meta, config) -> int:
    """How many detections one image would have without `DETECTION_MAX_INSTANCES`.

    Args:
        rois, classes, deltas, meta: arrays [R, 4], [R, K], [R, K, 4] and [M].
    """
    config = copy.copy(config)
    config.DETECTION_MAX_INSTANCES = len(rois)
    inputs = [np.asarray(a, np.float32)[None] for a in (rois, classes, deltas, meta)]
    detections = ops.convert_to_numpy(DetectionLayer(config)(inputs))
    return int(np.sum(detections[0, :, 4] > 0))
