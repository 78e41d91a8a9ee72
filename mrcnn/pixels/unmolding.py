"""Results out: from raw detections to boxes and masks in pixels of the original image.

Shapes: D detections, N results, K classes, H W pixels, h w mask cells. `molding` states the pixel
convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mrcnn.pixels.boxes import denorm_boxes, norm_boxes, scale_boxes
from mrcnn.pixels.molding import resize
from mrcnn.pixels.resampling import clamped_weights

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
    masks, boxes = np.asarray(mask)[np.newaxis], np.asarray(box)[np.newaxis]
    return paste_masks(masks, boxes, image_shape, threshold)[0]


def paste_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    image_shape: Sequence[int],
    threshold: float | None = 0.5,
) -> list[tuple[int, int, np.ndarray]]:
    """``paste_mask`` for many masks [N, h, w] with boxes [N, 4]; the same results, faster.

    Without a threshold the patches are the probabilities at the pixel centres, float32.
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float64)
    tops, rows = _paste_weights(boxes[:, 0], boxes[:, 2], masks.shape[1], int(image_shape[0]))
    lefts, columns = _paste_weights(boxes[:, 1], boxes[:, 3], masks.shape[2], int(image_shape[1]))
    patches = [r @ mask @ c.T for r, mask, c in zip(rows, masks, columns, strict=True)]
    if threshold is not None:
        patches = [patch >= threshold for patch in patches]
    return list(zip(tops, lefts, patches, strict=True))


def _paste_weights(
    low: np.ndarray, high: np.ndarray, cells: int, size: int
) -> tuple[list[int], list[np.ndarray]]:
    """One axis of every box: its first pixel, and the weights float32 [pixels, cells] that sample
    the mask's cells at the pixel centres inside the box."""
    starts = np.maximum(np.ceil(low - 0.5), 0).astype(np.int64)
    stops = np.minimum(np.ceil(high - 0.5), size).astype(np.int64)
    counts = np.maximum(stops - starts, 0)
    ends = np.cumsum(counts)
    # The pixels of all boxes in one row: a few large operations instead of a few for each box.
    box = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(box)) + (starts - ends + counts)[box]
    scale = cells / np.maximum(high - low, 1e-9)
    weights = clamped_weights((pixels + 0.5 - low[box]) * scale[box], cells)
    return starts.tolist(), [weights[e - n : e] for e, n in zip(ends, counts, strict=True)]


def unmold_detections(
    detections: np.ndarray,
    mrcnn_mask: np.ndarray,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    config: Config,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Turn one image's raw detections into results in pixels of the original image.

    Args:
        detections: [D, (y1, x1, y2, x2, class_id, score)], normalised boxes; rows from the first
            class id 0 on are padding.
        mrcnn_mask: [D, h, w, K] probabilities.
        original_image_shape: (H, W) or (H, W, C) of the image.
        image_shape: the same for the molded image.
        window: (y1, x1, y2, x2) pixels of the molded image that show the image.
        config: PIXEL_CONVENTION, MASK_ROI_SCALE and MASK_THRESHOLD are read.

    Returns:
        boxes int32 [N, 4] pixels, class_ids int32 [N], scores float32 [N], masks bool [H, W, N].
        Detections whose box has no area are left out. masks is a view of [N, H, W] memory.
    """
    boxes, class_ids, scores, patches = unmold_patches(
        detections, mrcnn_mask, original_image_shape, image_shape, window, config
    )
    return boxes, class_ids, scores, patches_to_masks(patches, original_image_shape)


def unmold_patches(
    detections: np.ndarray,
    mrcnn_mask: np.ndarray,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    config: Config,
    probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, np.ndarray]]]:
    """As ``unmold_detections``, but masks are (y, x, bool patch): see ``paste_mask``.

    Hundreds of instances on a large image take gigabytes as planes, and next to nothing as patches.
    With ``probabilities`` patches are float32, the values that MASK_THRESHOLD would be applied to.
    """
    padding = np.flatnonzero(detections[:, 4] == 0)
    count = padding[0] if len(padding) else len(detections)
    class_ids = detections[:count, 4].astype(np.int32)
    scores = detections[:count, 5].astype(np.float32)
    masks = mrcnn_mask[np.arange(count), :, :, class_ids]

    height, width = (int(side) for side in original_image_shape[:2])
    exact = config.exact_pixels
    geometry = original_image_shape, image_shape, window, exact
    boxes = unmold_boxes(detections[:count, :4], *geometry)

    # A result needs an area in whole pixels and inside the image (detections are clipped to the
    # window, so only boxes thinner than a pixel are dropped).
    rounded = np.rint(boxes).astype(np.int32)
    if exact:
        rounded = np.clip(rounded, 0, [height, width, height, width]).astype(np.int32)
    keep = np.flatnonzero((rounded[:, 2:] > rounded[:, :2]).all(axis=1))

    paste = paste_masks if exact else _paste_into_whole_pixels
    threshold = None if probabilities else config.MASK_THRESHOLD
    regions = scale_boxes(detections[keep, :4], config.MASK_ROI_SCALE)
    regions = unmold_boxes(regions, *geometry)
    patches = paste(masks[keep], regions, (height, width), threshold)
    return rounded[keep], class_ids[keep], scores[keep], patches


def unmold_boxes(
    boxes: np.ndarray,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    exact: bool,
) -> np.ndarray:
    """Boxes [N, 4] normalised to the molded image -> pixels of the image.

    original_image_shape, image_shape, window: as for ``unmold_detections``.
    Returns float32 [N, 4] when exact, otherwise int32, rounded.
    """
    window = norm_boxes(window, image_shape, exact=exact)
    origin, size = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    return denorm_boxes(np.divide(boxes - origin, size), original_image_shape, exact=exact)


def patches_to_masks(
    patches: Sequence[tuple[int, int, np.ndarray]], image_shape: Sequence[int]
) -> np.ndarray:
    """Masks bool [H, W, N], a view of [N, H, W] memory, from N patches (y, x, bool [h, w])."""
    masks = np.zeros((len(patches), *image_shape[:2]), bool)
    for plane, (y, x, patch) in zip(masks, patches, strict=True):
        plane[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return np.moveaxis(masks, 0, -1)


def _paste_into_whole_pixels(
    masks: np.ndarray, boxes: np.ndarray, shape: tuple[int, int], threshold: float | None
) -> list[tuple[int, int, np.ndarray]]:
    """As ``unmold_mask`` for each, but only (y, x, patch), cut off at the image's edges.

    Without a threshold the patches are the probabilities, float32.
    """
    patches = []
    for mask, (y1, x1, y2, x2) in zip(masks, boxes.tolist(), strict=True):
        patch = resize(mask, (y2 - y1, x2 - x1))
        patch = patch.astype(np.float32) if threshold is None else patch >= threshold
        top, left = max(0, y1), max(0, x1)
        patches.append((top, left, patch[top - y1 : shape[0] - y1, left - x1 : shape[1] - x1]))
    return patches
