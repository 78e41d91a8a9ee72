"""Functions that only code written against matterport's library needs.

The package itself works on whole batches; matterport's graph functions took one image, without
padding rows. Here they are, on top of the batched ones.

Shape shorthand: N proposals, G ground-truth instances, T sampled regions, R regions, K classes.
"""

import keras
import numpy as np
from keras import ops

from mrcnn.network import detection, targets


def log(text: str, array=None) -> None:
    """Print a line, followed, for an array, by its shape, range and dtype."""
    if array is not None:
        array = np.asarray(array)
        span = f"min: {array.min():10.5f}  max: {array.max():10.5f}" if array.size else "empty"
        text = f"{text:25}  shape: {str(array.shape):20}  {span}  {array.dtype}"
    print(text, flush=True)


def log2_graph(x):
    """Logarithm to base 2."""
    return ops.log(x) / np.log(2.0).astype("float32")


def trim_zeros_graph(boxes, name=None):
    """Drop padding rows. Not for compiled graphs: the result's length depends on the values.

    Args:
        boxes: [N, 4].

    Returns:
        The rows that are not all zero, and a bool [N] that marks them.
    """
    non_zeros = ops.any(boxes != 0, axis=1)
    return ops.take(boxes, ops.where(non_zeros)[0], axis=0), non_zeros


def batch_pack_graph(x, counts, num_rows):
    """The first `counts[i]` rows of every image of [num_rows, N, ...], one after another."""
    return ops.concatenate([x[i, : int(counts[i])] for i in range(num_rows)], axis=0)


def batch_slice(inputs, graph_fn, batch_size, names=None):
    """Call `graph_fn` for one image after another and stack what it returns."""
    inputs = inputs if isinstance(inputs, list) else [inputs]
    outputs = []
    for i in range(batch_size):
        result = graph_fn(*(x[i] for x in inputs))
        outputs.append(result if isinstance(result, list | tuple) else [result])
    stacked = [ops.stack(parts, axis=0) for parts in zip(*outputs, strict=True)]
    return stacked[0] if len(stacked) == 1 else stacked


def refine_detections_graph(rois, probs, deltas, window, config):
    """`detection.refine_detections_graph`, also for one image without its batch axis."""
    if len(rois.shape) == 3:
        return detection.refine_detections_graph(rois, probs, deltas, window, config)
    one = [ops.expand_dims(ops.convert_to_tensor(a), 0) for a in (rois, probs, deltas, window)]
    return detection.refine_detections_graph(*one, config)[0]


def detection_targets_graph(proposals, gt_class_ids, gt_boxes, gt_masks, config):
    """Targets of one image: rois [T, 4], class ids [T], deltas [T, 4], masks [T, h, w].

    gt_masks is [h, w, G]; boxes are normalised. See `targets.detection_targets`.
    """
    batch = [
        ops.expand_dims(ops.convert_to_tensor(a), 0)
        for a in (proposals, gt_class_ids, gt_boxes, gt_masks)
    ]
    outputs = DetectionTargetLayer(config)(batch)
    return tuple(output[0] for output in outputs)


class DetectionTargetLayer(keras.layers.Layer):
    """`targets.RoiTargetLayer` with matterport's layout of masks.

    Inputs: proposals [B, N, 4] and gt_boxes normalised, gt_class_ids [B, G], gt_masks
    [B, h, w, G]. Outputs: rois [B, T, 4], class ids [B, T], deltas [B, T, 4], masks [B, T, h, w].
    """

    def __init__(self, config, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever that of the convolutions
        self.autocast = False
        self.config = config
        self.inner = targets.RoiTargetLayer(config)

    def call(self, inputs):
        proposals, gt_class_ids, gt_boxes, gt_masks = inputs
        gt_class_ids = ops.cast(gt_class_ids, "int32")
        gt_masks = ops.transpose(ops.cast(gt_masks, "uint8"), (0, 3, 1, 2))
        rois, class_ids, deltas, masks = self.inner([proposals, gt_class_ids, gt_boxes, gt_masks])
        missing = rois.shape[1] - masks.shape[1]
        masks = ops.pad(masks, [[0, 0], [0, missing], [0, 0], [0, 0]])
        return rois, class_ids, deltas, masks

    def compute_output_spec(self, inputs):
        batch, total = inputs[0].shape[0], int(self.config.TRAIN_ROIS_PER_IMAGE)
        return (
            keras.KerasTensor((batch, total, 4), "float32"),
            keras.KerasTensor((batch, total), "int32"),
            keras.KerasTensor((batch, total, 4), "float32"),
            keras.KerasTensor((batch, total, *self.config.MASK_SHAPE), "float32"),
        )
