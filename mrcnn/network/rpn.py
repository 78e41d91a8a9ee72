"""Region proposal network: which anchors contain an object, and boxes that fit it better.

Source: paper sections 3.9 to 3.9.4; matterport `rpn_graph`, `build_rpn_model`, `ProposalLayer`.
Shape shorthand: B images, A anchors, S of them sampled, N candidates, R proposals, C channels.
"""

import keras
import numpy as np
from keras import layers, ops

from mrcnn.network.boxes import apply_box_deltas_graph, clip_boxes_graph, constant
from mrcnn.network.layers import first_values
from mrcnn.network.nms import non_max_suppression_graph

# Paper section 3.9.5: standard deviation of all layers' initial values.
RPN_DEVIATION = 0.01


def rpn_graph(
    feature_map, anchors_per_location, anchor_stride, channels=512, dtype=None, gaussian=False
):
    """The network over one pyramid level.

    Args:
        feature_map: [B, H, W, C].
        anchors_per_location: anchors per cell (one per ratio).
        anchor_stride: cells from one anchor to the next, 1 or 2.
        channels: width of the shared convolution.
        dtype: dtype policy of the convolutions.
        gaussian: see `layers.first_values`.

    Returns:
        logits [B, A, 2] (background, object), probabilities [B, A, 2] and box deltas [B, A, 4],
        all float32.
    """
    common = {"dtype": dtype, "kernel_initializer": first_values(gaussian, RPN_DEVIATION)}
    shared = layers.Conv2D(
        channels,
        (3, 3),
        padding="same",
        activation="relu",
        strides=anchor_stride,
        name="rpn_conv_shared",
        **common,
    )(feature_map)
    logits = layers.Conv2D(
        2 * anchors_per_location, (1, 1), padding="valid", name="rpn_class_raw", **common
    )(shared)
    logits = ops.cast(layers.Reshape((-1, 2), dtype=dtype)(logits), "float32")
    probabilities = layers.Softmax(name="rpn_class_xxx", dtype="float32")(logits)
    deltas = layers.Conv2D(
        4 * anchors_per_location, (1, 1), padding="valid", name="rpn_bbox_pred", **common
    )(shared)
    deltas = ops.cast(layers.Reshape((-1, 4), dtype=dtype)(deltas), "float32")
    return [logits, probabilities, deltas]


def build_rpn_model(
    anchor_stride, anchors_per_location, depth, channels=512, dtype=None, gaussian=False
):
    """`rpn_graph` as a model of its own ("rpn_model"), so that all levels share its weights."""
    features = keras.Input((None, None, depth), name="input_rpn_feature_map")
    outputs = rpn_graph(features, anchors_per_location, anchor_stride, channels, dtype, gaussian)
    return keras.Model(features, outputs, name="rpn_model")


def _at_most(limit: int, scores):
    """`limit`, or the number of columns of `scores` [B, A] where that is smaller.

    A tensor where A is known only when the graph runs.
    """
    count = ops.shape(scores)[1]
    return min(limit, count) if isinstance(count, int) else ops.minimum(limit, count)


def window_cells(level_shapes, stride: int) -> np.ndarray:
    """Which cells the 3x3 convolution reads for every one of its outputs, over all levels.

    Args:
        level_shapes: (height, width) of every pyramid level in cells.
        stride: of the convolution, whose padding is "same".

    Returns:
        int32 [outputs, 9]: indices of the levels' cells laid out one after the other, row by row;
        what lies outside has the index after the last cell.
    """

    def positions(size):
        outputs = -(-size // stride)
        before = max((outputs - 1) * stride + 3 - size, 0) // 2
        return np.arange(outputs)[:, None] * stride - before + np.arange(3)

    total = sum(height * width for height, width in level_shapes)
    windows, start = [], 0
    for height, width in level_shapes:
        y = positions(height)[:, None, :, None]
        x = positions(width)[None, :, None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        windows.append(np.where(inside, start + y * width + x, total).reshape(-1, 9))
        start += height * width
    return np.concatenate(windows).astype(np.int32)


class SampledRpn(layers.Layer):
    """The region proposal network at sampled anchors only, for its losses.

    They use a few hundred anchors, so the gradient of the network run over whole levels would be
    zero nearly everywhere, and yet its backward pass would cost as much as if it were not. Here
    every sampled anchor's window of 3x3 cells is multiplied by the kernels of `rpn_model`: the same
    numbers as the rows of its outputs, and the same gradients.

    Inputs: index int32 [B, S] of the anchors, and the pyramid levels [B, H, W, C]. Outputs: logits
    [B, S, 2] and deltas [B, S, 4], float32.
    """

    def __init__(self, rpn_model, anchor_stride, anchors_per_location, **kwargs):
        super().__init__(**kwargs)
        # Not tracked: the weights are those of `rpn_model`, which the network has already.
        object.__setattr__(self, "rpn_model", rpn_model)
        self.anchor_stride = anchor_stride
        self.anchors_per_location = anchors_per_location

    def call(self, inputs):
        index, *levels = inputs
        channels = levels[0].shape[-1]
        windows = window_cells([level.shape[1:3] for level in levels], self.anchor_stride)
        table = ops.concatenate(
            [
                ops.reshape(level, (-1, level.shape[1] * level.shape[2], channels))
                for level in levels
            ],
            axis=1,
        )
        table = ops.pad(table, [[0, 0], [0, 1], [0, 0]])  # the cell outside reads as zero
        # Gradients of overlapping windows add up in the table: accumulate in
        # float32, bfloat16 would lose small gradients.
        table = ops.cast(table, "float32")
        image = ops.arange(ops.shape(index)[0], dtype="int32")[:, None, None]
        cells = ops.take(ops.convert_to_tensor(windows), index // self.anchors_per_location, axis=0)
        read = ops.take(ops.reshape(table, (-1, channels)), cells + image * table.shape[1], axis=0)
        shared = ops.relu(self._apply("rpn_conv_shared", ops.cast(read, self.compute_dtype)))
        ratio = (index % self.anchors_per_location)[..., None, None]

        def of_ratio(outputs, values):
            shape = (-1, index.shape[1], self.anchors_per_location, values)
            rows = ops.take_along_axis(ops.reshape(outputs, shape), ratio, axis=2)[:, :, 0]
            return ops.cast(rows, "float32")

        logits = of_ratio(self._apply("rpn_class_raw", shared), 2)
        return logits, of_ratio(self._apply("rpn_bbox_pred", shared), 4)

    def _apply(self, name, windows):
        """A convolution of the model, one output from every window: [outputs, channels]."""
        layer = self.rpn_model.get_layer(name)
        kernel = ops.cast(layer.kernel, self.compute_dtype)
        kernel = ops.reshape(kernel, (-1, kernel.shape[-1]))
        windows = ops.reshape(windows, (-1, kernel.shape[0]))
        return ops.matmul(windows, kernel) + ops.cast(layer.bias, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0], 2), (*input_shape[0], 4)

    def compute_output_spec(self, inputs):
        shapes = self.compute_output_shape([i.shape for i in inputs])
        return tuple(keras.KerasTensor(shape, "float32") for shape in shapes)


class ProposalLayer(layers.Layer):
    """The best, non-overlapping proposals of every image (matterport's layer).

    Inputs: probabilities [B, A, 2], deltas [B, A, 4], anchors [B or 1, A, 4] normalised.
    Output: proposals [B, proposal_count, 4] normalised, zero rows where there are fewer.
    """

    def __init__(self, proposal_count, nms_threshold, config=None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions use
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
        # Proposals are inputs of the second stage, not outputs that its losses may change.
        return ops.stop_gradient(ops.where(valid[..., None], proposals, 0.0))

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.proposal_count, 4)
