"""Anchors: the boxes that region proposals start from, and the shapes of the feature maps.

Plain NumPy, in pixels of the molded image; the graph takes them as constants.

Source: paper sections 3.9.1 to 3.9.3; matterport `generate_anchors`,
`generate_pyramid_anchors`, `compute_backbone_shapes`.
Shape shorthand: A anchors, L pyramid levels. Boxes are y1, x1, y2, x2.
"""

import math

import numpy as np

from mrcnn.network.architecture import architecture_of
from mrcnn.pixels.boxes import norm_boxes


def generate_anchors(
    scales, ratios, shape, feature_stride, anchor_stride, centered: bool = False
) -> np.ndarray:
    """Anchors over one feature map.

    Args:
        scales: side or sides of a square anchor in pixels.
        ratios: width / height of the anchors.
        shape: (height, width) of the feature map in cells.
        feature_stride: pixels per cell.
        anchor_stride: cells from one anchor centre to the next.
        centered: put anchors on the centre of a cell (exact convention) rather than on its
            top-left corner (matterport's).

    Returns:
        float64 [rows * columns * scales * ratios, 4] in pixels, row by row.
    """
    scales, ratios = (a.ravel() for a in np.meshgrid(np.array(scales), np.array(ratios)))
    sizes = np.stack([scales / np.sqrt(ratios), scales * np.sqrt(ratios)], axis=1)
    offset = 0.5 if centered else 0.0
    rows = (np.arange(0, shape[0], anchor_stride) + offset) * feature_stride
    columns = (np.arange(0, shape[1], anchor_stride) + offset) * feature_stride
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[:, :, None, :]
    boxes = np.concatenate([centres - 0.5 * sizes, centres + 0.5 * sizes], axis=-1)
    return boxes.reshape(-1, 4)


def generate_pyramid_anchors(
    scales, ratios, feature_shapes, feature_strides, anchor_stride, centered: bool = False
) -> np.ndarray:
    """Anchors over a pyramid: the first scale (or scales) on the first level, and so on.

    Returns:
        float64 [A, 4] in pixels, level by level.
    """
    levels = zip(scales, feature_shapes, feature_strides, strict=False)
    return np.concatenate(
        [
            generate_anchors(scale, ratios, shape, stride, anchor_stride, centered)
            for scale, shape, stride in levels
        ]
    )


def compute_backbone_shapes(config, image_shape) -> np.ndarray:
    """Height and width of every feature map, int [L, 2], for an image of `image_shape`."""
    if callable(config.BACKBONE):
        return config.COMPUTE_BACKBONE_SHAPE(image_shape)
    return np.array(
        [
            [math.ceil(image_shape[0] / stride), math.ceil(image_shape[1] / stride)]
            for stride in architecture_of(config).strides
        ]
    )


def image_anchors(config, image_shape) -> np.ndarray:
    """The anchors of an image in pixels, float32 [A, 4]."""
    architecture = architecture_of(config)
    return generate_pyramid_anchors(
        architecture.scales,
        config.RPN_ANCHOR_RATIOS,
        compute_backbone_shapes(config, image_shape),
        architecture.strides,
        config.RPN_ANCHOR_STRIDE,
        centered=config.exact_pixels,
    ).astype(np.float32)


def normalized_anchors(config, image_shape) -> np.ndarray:
    """The anchors of an image in normalised coordinates, float32 [A, 4]."""
    pixels = image_anchors(config, image_shape)
    return norm_boxes(pixels, image_shape[:2], exact=config.exact_pixels).astype(np.float32)
