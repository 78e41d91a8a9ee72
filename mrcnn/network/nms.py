"""Non-maximum suppression with a fixed number of outputs.

Shape shorthand: B images, N candidate boxes, M boxes kept at most.
"""

import keras
from keras import ops

from mrcnn.network.boxes import overlaps_graph

# Stands for "no candidate": below every real score.
NO_SCORE = -1e9


def non_max_suppression_graph(boxes, scores, max_outputs: int, iou_threshold: float):
    """Greedy non-maximum suppression of every image in a batch.

    Going from the highest score down, a box is kept unless it overlaps a kept one by more than
    `iou_threshold`.

    Args:
        boxes: [B, N, 4] float32, any unit.
        scores: [B, N] float32; `NO_SCORE` marks rows that are not candidates.
        max_outputs: M.
        iou_threshold: 0 to 1.

    Returns:
        indices int32 [B, M] into N by descending score, and valid bool [B, M]; indices of rows
        that are not valid are 0.
    """
    if keras.backend.backend() == "tensorflow":
        return _nms_tensorflow(boxes, scores, max_outputs, iou_threshold)
    return _nms_any_backend(boxes, scores, max_outputs, iou_threshold)


def _nms_any_backend(boxes, scores, max_outputs, iou_threshold):
    """The greedy rule as a fixed point, so that every step is one matrix product.

    "Kept" is whatever no kept box of higher score suppresses. Started from "all kept", round k
    settles the first k boxes at least, and a round that changes nothing has settled all: in
    practice after as many rounds as the longest chain of suppressions, about ten.
    """
    boxes, scores = ops.stop_gradient(boxes), ops.stop_gradient(scores)
    count = boxes.shape[1]
    scores, order = ops.top_k(scores, count)
    boxes = ops.take_along_axis(boxes, order[..., None], axis=1)
    candidate = scores > NO_SCORE / 2
    rank = ops.arange(count)
    above = rank[:, None] > rank[None, :]  # [N, N]: column comes before row
    suppresses = ops.cast((overlaps_graph(boxes, boxes) > iou_threshold) & above, "float32")

    def unsettled(keep, before):
        return ops.any(keep != before)

    def settle(keep, _):
        hit = ops.matmul(suppresses, ops.cast(keep, "float32")[..., None])[..., 0] > 0.5
        return candidate & ~hit, keep

    keep, _ = ops.while_loop(
        unsettled, settle, (candidate, ops.zeros_like(candidate)), maximum_iterations=count + 1
    )
    # The kept ones in order of rank: the smallest M of (rank if kept else N + rank).
    position = ops.where(keep, rank, rank + count)
    size = min(max_outputs, count)
    first = -ops.top_k(-position, size)[0]
    valid = first < count
    indices = ops.take_along_axis(order, ops.where(valid, first, 0), axis=1)
    indices = ops.cast(ops.where(valid, indices, 0), "int32")
    padding = [[0, 0], [0, max_outputs - size]]
    return ops.pad(indices, padding), ops.pad(valid, padding)


def _nms_tensorflow(boxes, scores, max_outputs, iou_threshold):
    """TensorFlow's own kernel: about ten times as fast on a processor."""
    import tensorflow as tf

    def one_image(arguments):
        return tuple(
            tf.raw_ops.NonMaxSuppressionV4(
                boxes=arguments[0],
                scores=arguments[1],
                max_output_size=max_outputs,
                iou_threshold=iou_threshold,
                score_threshold=NO_SCORE / 2,
                pad_to_max_output_size=True,
            )
        )

    with tf.device("CPU"):  # the padded form has no GPU kernel
        indices, counts = tf.map_fn(
            one_image, (boxes, scores), fn_output_signature=(tf.int32, tf.int32)
        )
    indices = tf.ensure_shape(indices, (None, max_outputs))
    valid = tf.range(max_outputs)[None, :] < counts[:, None]
    return tf.where(valid, indices, 0), valid
