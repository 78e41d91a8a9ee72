"""Region proposal network: which anchors hold an object, and boxes that fit it better.

Source: report sections 3.9 to 3.9.4; matterport `rpn_graph`, `build_rpn_model`, `ProposalLayer`.
Shape shorthand: B images, A anchors, N candidates, R proposals.
"""

import keras
from keras import layers, ops

from .boxes import apply_box_deltas_graph, clip_boxes_graph, constant
from .nms import non_max_suppression_graph


def rpn_graph(feature_map, anchors_per_location, anchor_stride, channels=512, dtype=None):
    """The network over one pyramid level.

    Args:
        feature_map: [B, H, W, C].
        anchors_per_location: anchors a cell (one per ratio).
        anchor_stride: cells from one anchor to the next, 1 or 2.
        channels: width of the shared convolution.
        dtype: dtype policy of the convolutions.

    Returns:
        logits [B, A, 2] (background, object), probabilities [B, A, 2] and box deltas [B, A, 4],
        all float32.
    """
    shared = layers.Conv2D(
        channels, (3, 3), padding="same", activation="relu", strides=anchor_stride,
        name="rpn_conv_shared", dtype=dtype,
    )(feature_map)
    logits = layers.Conv2D(
        2 * anchors_per_location, (1, 1), padding="valid", name="rpn_class_raw", dtype=dtype
    )(shared)
    logits = ops.cast(layers.Reshape((-1, 2), dtype=dtype)(logits), "float32")
    probabilities = layers.Softmax(name="rpn_class_xxx", dtype="float32")(logits)
    deltas = layers.Conv2D(
        4 * anchors_per_location, (1, 1), padding="valid", name="rpn_bbox_pred", dtype=dtype
    )(shared)
    deltas = ops.cast(layers.Reshape((-1, 4), dtype=dtype)(deltas), "float32")
    return [logits, probabilities, deltas]


def build_rpn_model(anchor_stride, anchors_per_location, depth, channels=512, dtype=None):
    """`rpn_graph` as a model of its own ("rpn_model"), so that all levels share its weights."""
    features = keras.Input((None, None, depth), name="input_rpn_feature_map")
    outputs = rpn_graph(features, anchors_per_location, anchor_stride, channels, dtype)
    return keras.Model(features, outputs, name="rpn_model")


def _at_most(limit: int, scores):
    """`limit`, or the number of columns of `scores` [B, A] where that is smaller.

    A tensor where A is known only when the graph runs.
    """
    count = ops.shape(scores)[1]
    return min(limit, count) if isinstance(count, int) else ops.minimum(limit, count)


class ProposalLayer(layers.Layer):
    """The best, non-overlapping proposals of every image (matterport's layer).

    Inputs: probabilities [B, A, 2], deltas [B, A, 4], anchors [B or 1, A, 4] normalised.
    Output: proposals [B, proposal_count, 4] normalised, zero rows where there are fewer.
    """

    def __init__(self, proposal_count, nms_threshold, config=None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions are
        self.proposal_count = int(proposal_count)
        self.nms_threshold = float(nms_threshold)
        self.config = config

    def call(self, inputs):
        probabilities, deltas, anchors = inputs
        scores = probabilities[..., 1]
        scores, order = ops.top_k(scores, _at_most(self.config.PRE_NMS_LIMIT, scores))
        deltas = ops.take_along_axis(deltas, order[..., None], axis=1)
        if anchors.shape[0] == 1:
            anchors = ops.take(anchors[0], order, axis=0)
        else:
            anchors = ops.take_along_axis(anchors, order[..., None], axis=1)
        deltas = deltas * constant(self.config.RPN_BBOX_STD_DEV)
        boxes = apply_box_deltas_graph(anchors, deltas)
        boxes = clip_boxes_graph(boxes, constant([0, 0, 1, 1]))
        keep, valid = non_max_suppression_graph(
            boxes, scores, self.proposal_count, self.nms_threshold
        )
        proposals = ops.take_along_axis(boxes, keep[..., None], axis=1)
        # Proposals are inputs of the second stage, not outputs that its losses may move.
        return ops.stop_gradient(ops.where(valid[..., None], proposals, 0.0))

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.proposal_count, 4)
