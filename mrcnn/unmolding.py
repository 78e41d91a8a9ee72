"""Results out: from raw detections to boxes and masks in pixels of the original picture.

Shapes: D detections, N results, K classes, H W pixels, h w mask cells. `molding` states the pixel
convention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mrcnn.molding import resize
from mrcnn.numpy_boxes import denorm_boxes, norm_boxes
from mrcnn.resampling import clamped_weights

if TYPE_CHECKING:
    from mrcnn.config import Config


def unmold_mask(
    mask: np.ndarray, bbox: Sequence[int], image_shape: Sequence[int], threshold: float = 0.5
) -> np.ndarray:
    """Paste a predicted mask into a box of whole pixels (``utils.unmold_mask``).

    Args:
        mask: float [h, w], probabilities.
        bbox: int (y1, x1, y2, x2) pixels inside the image, with an area.
        image_shape: (H, W) or longer.

    Returns:
        bool [H, W].
    """
    y1, x1, y2, x2 = (int(edge) for edge in bbox)
    full = np.zeros(tuple(image_shape[:2]), bool)
    full[y1:y2, x1:x2] = resize(mask, (y2 - y1, x2 - x1)) >= threshold
    return full


def paste_mask(
    mask: np.ndarray, box: Sequence[float], image_shape: Sequence[int], threshold: float = 0.5
) -> tuple[int, int, np.ndarray]:
    """Sample a predicted mask at the pixel centres that lie inside a box of any real size.

    Args:
        mask: float [h, w], probabilities; the cells divide the box evenly.
        box: float (y1, x1, y2, x2) pixels; may reach beyond the image.
        image_shape: (H, W) or longer.
        threshold: probability from which a pixel belongs to the mask.

    Returns:
        (y, x, patch): patch is bool and belongs at rows y.. and columns x.. of the image; it is
        empty when no pixel centre of the image lies inside the box.
    """
    starts, axes = [], []
    for axis in range(2):
        low, high = float(box[axis]), float(box[axis + 2])
        start = max(0, math.ceil(low - 0.5))
        stop = min(int(image_shape[axis]), math.ceil(high - 0.5))
        pixels = np.arange(start, max(start, stop))
        cells = (pixels + 0.5 - low) * (mask.shape[axis] / max(high - low, 1e-9))
        starts.append(start)
        axes.append(clamped_weights(cells, mask.shape[axis]))
    patch = axes[0] @ np.asarray(mask, np.float32) @ axes[1].T >= threshold
    return starts[0], starts[1], patch


def unmold_detections(
    detections: np.ndarray,
    mrcnn_mask: np.ndarray,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    config: Config,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Turn one image's raw detections into results in pixels of the original picture.

    Args:
        detections: [D, (y1, x1, y2, x2, class_id, score)], normalised boxes; rows from the first
            class id 0 on are padding.
        mrcnn_mask: [D, h, w, K] probabilities.
        original_image_shape: (H, W) or (H, W, C) of the picture.
        image_shape: the same of the molded image.
        window: (y1, x1, y2, x2) pixels of the molded image that show the picture.
        config: PIXEL_CONVENTION and MASK_THRESHOLD are read.

    Returns:
        boxes int32 [N, 4] pixels, class_ids int32 [N], scores float32 [N], masks bool [H, W, N].
        Detections whose box has no area are left out. masks is a view of [N, H, W] memory.
    """
    boxes, class_ids, scores, patches = unmold_patches(
        detections, mrcnn_mask, original_image_shape, image_shape, window, config
    )
    masks = np.zeros((len(boxes), *original_image_shape[:2]), bool)
    for plane, (y, x, patch) in zip(masks, patches, strict=True):
        plane[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return boxes, class_ids, scores, np.moveaxis(masks, 0, -1)


def unmold_patches(
    detections: np.ndarray,
    mrcnn_mask: np.ndarray,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    config: Config,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, np.ndarray]]]:
    """As ``unmold_detections``, but masks are (y, x, bool patch): see ``paste_mask``.

    Hundreds of instances on a large picture take gigabytes as planes and nearly nothing so.
    """
    padding = np.flatnonzero(detections[:, 4] == 0)
    count = padding[0] if len(padding) else len(detections)
    class_ids = detections[:count, 4].astype(np.int32)
    scores = detections[:count, 5].astype(np.float32)
    probabilities = mrcnn_mask[np.arange(count), :, :, class_ids]

    height, width = (int(side) for side in original_image_shape[:2])
    exact = config.exact_pixels
    window = norm_boxes(window, image_shape, exact=exact)
    origin, size = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    in_window = np.divide(detections[:count, :4] - origin, size)
    boxes = denorm_boxes(in_window, (height, width), exact=exact)

    # A result needs an area in whole pixels and inside the picture (detections are clipped to the
    # window, so only boxes thinner than a pixel fall out).
    rounded = np.rint(boxes).astype(np.int32)
    if exact:
        rounded = np.clip(rounded, 0, [height, width, height, width]).astype(np.int32)
    keep = np.flatnonzero((rounded[:, 2:] > rounded[:, :2]).all(axis=1))

    paste = paste_mask if exact else _paste_into_whole_pixels
    patches = [
        paste(probabilities[i], boxes[i], (height, width), config.MASK_THRESHOLD) for i in keep
    ]
    return rounded[keep], class_ids[keep], scores[keep], patches


def _paste_into_whole_pixels(
    mask: np.ndarray, box: np.ndarray, shape: tuple[int, int], threshold: float
) -> tuple[int, int, np.ndarray]:
    """As ``unmold_mask``, but return only (y, x, patch), cut off at the image's edges."""
    y1, x1, y2, x2 = (int(edge) for edge in box)
    patch = resize(mask, (y2 - y1, x2 - x1)) >= threshold
    top, left = max(0, y1), max(0, x1)
    return top, left, patch[top - y1 : shape[0] - y1, left - x1 : shape[1] - x1]
