"""Random regions instead of proposals, to train the heads on."""

from __future__ import annotations

import numpy as np

NEAR_OBJECTS = 0.9  # share of the regions that lie around objects


def random_regions(
    image_shape: tuple[int, ...], count: int, boxes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Random regions such as an RPN might propose (matterport's `generate_random_rois`).

    Nine tenths lie within boxes three times as wide and high as the objects, in equal numbers,
    the others anywhere.

    Args:
        image_shape: (H, W, ...).
        count: of regions.
        boxes: of the objects, [N, 4] pixels.
        rng: the source of randomness.

    Returns:
        int32 [count, 4] pixels, every region at least one pixel wide and high.
    """
    height, width = image_shape[:2]
    boxes = np.asarray(boxes).reshape(-1, 4).astype(int)
    each = int(NEAR_OBJECTS * count / len(boxes)) if len(boxes) else 0
    boxes = np.repeat(boxes, each, axis=0)
    sizes = boxes[:, 2:] - boxes[:, :2]
    lowest = np.zeros((count, 2), int)
    highest = np.tile([height, width], (count, 1))
    lowest[: len(boxes)] = np.maximum(boxes[:, :2] - sizes, 0)
    highest[: len(boxes)] = np.minimum(boxes[:, 2:] + sizes, [height, width])
    # Two different edges in [lowest, highest): the second is drawn from one value fewer and
    # steps over the first.
    highest = np.maximum(highest, lowest + 2)
    first = rng.integers(lowest, highest)
    second = rng.integers(lowest, highest - 1)
    second += second >= first
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1).astype(
        np.int32
    )
