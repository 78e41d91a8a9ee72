"""Image metadata: a row of numbers per image, with what the network must know besides the pixels.

The layout is matterport's (`compose_image_meta`); PARTS is the only place that defines it.

Shapes: B images, K classes, M = 12 + K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PARTS = {
    "image_id": 0,
    "original_image_shape": slice(1, 4),  # H, W, C before resizing
    "image_shape": slice(4, 7),  # H, W, C after resizing and padding
    "window": slice(7, 11),  # y1, x1, y2, x2 in pixels: what is not padding
    "scale": 11,
    "active_class_ids": slice(12, None),  # 1 for the classes that the image's data set labels
}


def compose_image_meta(
    image_id: int,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    scale: float,
    active_class_ids: Sequence[int],
) -> np.ndarray:
    """Pack what the model must know about an image into one row (matterport's layout).

    Args:
        image_id: number of the image in its data set.
        original_image_shape: (H, W, C) before resizing; (H, W) counts as one channel.
        image_shape: (H, W, C) after resizing and padding.
        window: (y1, x1, y2, x2) pixels of the resized image that are not padding.
        scale: scale factor of the resizing.
        active_class_ids: [K], 1 for the classes that the image's data set labels.

    Returns:
        float64 [M].
    """
    shapes = [[*shape, 1][:3] for shape in (original_image_shape, image_shape)]
    return np.array([image_id, *shapes[0], *shapes[1], *window, scale, *active_class_ids], float)


def parse_image_meta(meta: np.ndarray) -> dict[str, np.ndarray]:
    """Unpack rows of `compose_image_meta`, [B, M] or a single [M], into named arrays.

    Returns:
        image_id int32 [B], original_image_shape int32 [B, 3], image_shape int32 [B, 3],
        window int32 [B, 4] pixels, scale float32 [B], active_class_ids int32 [B, K].
    """
    meta = np.asarray(meta)
    return {
        name: meta[..., part].astype(np.float32 if name == "scale" else np.int32)
        for name, part in PARTS.items()
    }


def parse_image_meta_graph(meta: Any) -> dict[str, Any]:
    """Split a tensor of metadata [B, M] into its parts, every value a tensor [B, ...]."""
    return {name: meta[:, part] for name, part in PARTS.items()}
