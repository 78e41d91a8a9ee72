"""Box arithmetic in the graph, on any leading dimensions, in float32.

Boxes are y1, x1, y2, x2 with exclusive ends, in pixels or normalised to the image; deltas are
dy, dx, log(dh), log(dw) relative to a box (paper equation 17).

Shape shorthand: B images, N M boxes.
"""

import numpy as np
from keras import ops


def constant(values):
    """Numbers as a float32 tensor. (Torch does not mix NumPy arrays and tensors with gradients.)"""
    return ops.convert_to_tensor(np.asarray(values, "float32"))


def _split(boxes):
    boxes = constant(boxes) if isinstance(boxes, np.ndarray) else boxes
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def box_area(boxes):
    """[..., 4] -> [...]."""
    y1, x1, y2, x2 = _split(boxes)
    return (y2 - y1) * (x2 - x1)


def apply_box_deltas_graph(boxes, deltas):
    """Move and stretch boxes [..., 4] by deltas [..., 4] (matterport's name).

    The result is finite whatever an untrained or diverging network outputs.
    """
    y1, x1, y2, x2 = _split(boxes)
    limit = 20.0  # a factor of e^20: no box that can be clipped to an image needs more
    dy, dx, dh, dw = _split(ops.clip(ops.nan_to_num(deltas), -1e6, 1e6))
    dh, dw = ops.clip(dh, -limit, limit), ops.clip(dw, -limit, limit)
    height, width = y2 - y1, x2 - x1
    centre_y = y1 + (0.5 + dy) * height
    centre_x = x1 + (0.5 + dx) * width
    height, width = height * ops.exp(dh), width * ops.exp(dw)
    top, left = centre_y - 0.5 * height, centre_x - 0.5 * width
    return ops.stack([top, left, top + height, left + width], axis=-1)


def box_refinement_graph(box, gt_box):
    """Deltas [..., 4] that turn `box` into `gt_box`. Boxes of no area give finite nonsense.

    Source: paper equation 17; matterport `utils.box_refinement_graph`.
    """
    y1, x1, y2, x2 = _split(ops.cast(box, "float32"))
    gy1, gx1, gy2, gx2 = _split(ops.cast(gt_box, "float32"))
    # Padded rows are 0, 0, 0, 0: keep their logarithms finite, they are masked out later.
    tiny = 1e-8
    height, width = ops.maximum(y2 - y1, tiny), ops.maximum(x2 - x1, tiny)
    gt_height, gt_width = ops.maximum(gy2 - gy1, tiny), ops.maximum(gx2 - gx1, tiny)
    dy = ((gy1 + gy2) - (y1 + y2)) / (2.0 * height)
    dx = ((gx1 + gx2) - (x1 + x2)) / (2.0 * width)
    return ops.stack([dy, dx, ops.log(gt_height / height), ops.log(gt_width / width)], axis=-1)


def scale_boxes_graph(boxes, factor: float):
    """Boxes [..., 4] stretched about their centres."""
    y1, x1, y2, x2 = _split(boxes)
    more_y, more_x = (0.5 * (factor - 1.0) * side for side in (y2 - y1, x2 - x1))
    return ops.stack([y1 - more_y, x1 - more_x, y2 + more_y, x2 + more_x], axis=-1)


def clip_boxes_graph(boxes, window):
    """Clip boxes [..., N, 4] to a window [4] or [..., 4] in the same units."""
    window = ops.expand_dims(window, -2)
    wy1, wx1, wy2, wx2 = _split(window)
    y1, x1, y2, x2 = _split(boxes)
    return ops.stack(
        [
            ops.clip(y1, wy1, wy2),
            ops.clip(x1, wx1, wx2),
            ops.clip(y2, wy1, wy2),
            ops.clip(x2, wx1, wx2),
        ],
        axis=-1,
    )


def overlaps_graph(boxes1, boxes2):
    """Intersection over union of boxes [..., N, 4] and [..., M, 4] -> [..., N, M].

    Boxes without area overlap nothing.
    """
    y1, x1, y2, x2 = _split(ops.expand_dims(boxes1, -2))
    v1, u1, v2, u2 = _split(ops.expand_dims(boxes2, -3))
    height = ops.maximum(ops.minimum(y2, v2) - ops.maximum(y1, v1), 0.0)
    width = ops.maximum(ops.minimum(x2, u2) - ops.maximum(x1, u1), 0.0)
    intersection = height * width
    union = (
        ops.expand_dims(box_area(boxes1), -1) + ops.expand_dims(box_area(boxes2), -2)
    ) - intersection
    return intersection / ops.maximum(union, 1e-12)


def _units(shape, exact):
    """What turns pixels into normalised coordinates: (shift [4], scale [..., 4])."""
    height, width = shape[..., 0], shape[..., 1]
    scale = ops.cast(ops.stack([height, width, height, width], axis=-1), "float32")
    if exact:
        return ops.zeros((4,)), scale
    return ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0]), scale - 1.0


def norm_boxes_graph(boxes, shape, exact: bool = False):
    """Pixels to normalised coordinates.

    Args:
        boxes: [..., 4] in pixels.
        shape: (height, width) of the image, integer tensor [2], or broadcasting [..., 2].
        exact: divide by the size; otherwise matterport's (box - [0, 0, 1, 1]) / (size - 1).
    """
    shift, scale = _units(ops.convert_to_tensor(shape), exact)
    return (ops.cast(boxes, "float32") - shift) / scale


def denorm_boxes_graph(boxes, shape, exact: bool = False):
    """Normalised coordinates to pixels: the inverse of `norm_boxes_graph`.

    matterport's convention rounds to whole pixels (int32); the exact one returns float32.
    """
    shift, scale = _units(ops.convert_to_tensor(shape), exact)
    pixels = boxes * scale + shift
    return pixels if exact else ops.cast(ops.round(pixels), "int32")
