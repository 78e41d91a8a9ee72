"""Lazy labels of lazy images: `dask.array` in, `dask.array` out, with any scheduler."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from mrcnn.distributed.worker import Shipped
from mrcnn.errors import UserError

# Pixels of an image that one task may hold, with its labels.
MOST_PIXELS = 2**27


def labels_of(detector: Any, images: Any, **how: Any) -> Any:
    """The labels of images: when they are computed, one task per image does the detection.

    Args:
        detector: a `Segmenter`.
        images: `dask.array` [H, W] or [H, W, C] of one image, [N, H, W] or [N, H, W, C] of many;
            the last of three axes is channels where its size is at most 4. Any chunks will do.
        how: arguments of `Segmenter.detect`.

    Returns:
        `dask.array` int32 [H, W] or [N, H, W]: 0 background, 1 to n the instances of each image by
        descending score. Equal to what `detect` finds in the computed images.

    Raises:
        UserError: the shape is none of these or not known, or an image has more than MOST_PIXELS:
            the tiles of such an image go to many workers from a file, see `Segmenter.map`.
    """
    require_dask()
    import dask

    shape = images.shape
    if any(isinstance(size, float) for size in shape):  # NaN: not known
        raise UserError(
            "a dask.array of unknown shape is not supported: call its compute_chunk_sizes() first"
        )
    is_one = len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4)
    if not is_one and not (len(shape) == 3 or (len(shape) == 4 and shape[3] <= 4)):
        raise UserError(
            f"a dask.array of shape {shape} is neither an image nor a stack of images: it must be "
            "[height, width], with 1, 3 or 4 channels after it or images before it"
        )
    sides = shape[:2] if is_one else shape[1:3]
    if math.prod(sides) > MOST_PIXELS:
        raise UserError(
            f"images of {sides[0]} x {sides[1]} pixels are too large for one task: write them as "
            "Zarr, and give map the path and a client"
        )
    shipped = dask.delayed(Shipped(detector), pure=False)
    if is_one:
        return _labels_of_one(shipped, images, how)
    stack = images.rechunk({0: 1, **{axis: -1 for axis in range(1, len(shape))}})
    return stack.map_blocks(
        _labels_of_block,
        shipped,
        how,
        dtype=np.int32,
        drop_axis=[3] if len(shape) == 4 else None,
        meta=np.zeros((0, 0, 0), np.int32),
    )


def _labels_of_one(shipped: Any, image: Any, how: dict[str, Any]) -> Any:
    import dask
    import dask.array

    # One task gets all chunks, and nothing else.
    whole = image.rechunk(image.shape).to_delayed().ravel()[0]
    labels = dask.delayed(_labels, pure=False)(whole, shipped, how)
    lazy = dask.array.from_delayed(labels, image.shape[:2], np.int32)
    return lazy.rechunk(image.chunks[:2])


def _labels(image: np.ndarray, shipped: Shipped, how: dict[str, Any]) -> np.ndarray:
    """int32 [H, W]."""
    return np.asarray(shipped.get().detect(image, **how).labels)


def _labels_of_block(stack: np.ndarray, shipped: Shipped, how: dict[str, Any]) -> np.ndarray:
    """int32 [1, H, W] of images [1, H, W] or [1, H, W, C]."""
    return np.stack([_labels(image, shipped, how) for image in stack])


def require_dask() -> None:
    """Raise UserError unless the package is installed."""
    if importlib.util.find_spec("dask") is None or importlib.util.find_spec("distributed") is None:
        raise UserError("this needs Dask: pip install 'mrcnn-keras[distributed]'")
