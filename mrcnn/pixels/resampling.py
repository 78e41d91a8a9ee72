"""Linear resampling with half-pixel centres, one axis at a time (NumPy and SciPy only).

Pixel i covers [i, i + 1) and its centre is i + .5, so resizing n pixels to m puts the centre of
output pixel j at (j + .5) * n / m. An axis is resampled by a matrix [out, in] of weights; an image
by one matrix per axis.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array

# Number of weights of an axis up to which its matrix is made dense first.
DENSE_WEIGHTS = 2**26


def hat_weights(centres: np.ndarray, size: int, support: float = 1.0) -> np.ndarray:
    """Return the weight of every pixel for samples at given places: linear interpolation.

    Args:
        centres: float [n], sample places in pixels, where pixel i's centre is i + .5.
        size: number of pixels on the axis.
        support: half the width of the triangle, in pixels; above 1 it also smooths.

    Returns:
        float32 [n, size]. A row sums to less than support where the triangle leaves the axis:
        what lies outside counts as zero.
    """
    distance = np.abs(np.asarray(centres)[:, None] - (np.arange(size) + 0.5))
    return np.maximum(1 - distance / support, 0).astype(np.float32)


def sparse_hat_weights(centres: np.ndarray, size: int, support: float = 1.0) -> csr_array:
    """``hat_weights`` as a sparse matrix, without ever making the dense one.

    Args:
        centres, size, support: as for ``hat_weights``.

    Returns:
        float32 csr_array [n, size]. All rows store equally many weights, some of which may be zero.
    """
    centres = np.asarray(centres, np.float64)[:, None]
    taps = math.ceil(2 * support)  # at most this many pixel centres lie under the triangle
    indices = np.floor(centres - support + 0.5).astype(np.int32) + np.arange(taps, dtype=np.int32)
    weights = np.maximum(1 - np.abs(centres - (indices + 0.5)) / support, 0)
    weights[(indices < 0) | (indices >= size)] = 0
    indices = np.clip(indices, 0, size - 1)
    starts = np.arange(0, indices.size + 1, taps, dtype=np.int32)
    values = weights.astype(np.float32).ravel()
    return csr_array((values, indices.ravel(), starts), shape=(len(centres), size))


def contiguous_pixels(image: np.ndarray) -> np.ndarray:
    """Return image [..., C] in C order, for example after a transposition; no copy if it has it.

    A pixel is copied as one item, which takes a third of the time of NumPy's copying of three
    channels one by one.
    """
    if image.flags.c_contiguous or image.size == 0 or image.strides[-1] != image.itemsize:
        return np.ascontiguousarray(image)
    pixels = image.view(np.dtype((np.void, image.shape[-1] * image.itemsize)))
    return np.ascontiguousarray(pixels).view(image.dtype)


def clamped_weights(centres: np.ndarray, size: int) -> np.ndarray:
    """As ``hat_weights`` with support 1, but the outermost pixels continue beyond the axis."""
    return hat_weights(np.clip(centres, 0.5, size - 0.5), size)


@lru_cache(maxsize=2048)
def resize_weights(in_size: int, out_size: int, exact: bool) -> np.ndarray:
    """Return float32 [out_size, in_size], the matrix that resizes an axis.

    exact=False: plain linear interpolation with zeros outside, so that the border fades
    (scikit-image's ``resize`` with ``mode="constant"`` and no anti-aliasing, as in matterport).
    exact=True: the border continues, and shrinking averages over what an output pixel covers.
    """
    scale = in_size / out_size
    centres = (np.arange(out_size) + 0.5) * scale
    if not exact:
        # scikit-image does not let an axis of one pixel fade.
        return hat_weights(centres, in_size) if in_size > 1 else np.ones((out_size, 1), np.float32)
    weights = hat_weights(centres, in_size, max(1.0, scale))
    return weights / weights.sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def _sparse_weights(in_size: int, out_size: int) -> csr_array:
    if in_size * out_size <= DENSE_WEIGHTS:
        return csr_array(resize_weights.__wrapped__(in_size, out_size, exact=True))
    scale = in_size / out_size
    centres = (np.arange(out_size) + 0.5) * scale
    weights = sparse_hat_weights(centres, in_size, max(1.0, scale))
    return csr_array(weights.multiply(1 / weights.sum(axis=1)[:, None]), dtype=np.float32)


def resize_smooth(image: np.ndarray, out_shape: tuple[int, int]) -> np.ndarray:
    """Resize an image without moving it: half-pixel centres, continued border, anti-aliased.

    Args:
        image: [H, W, ...], any number type.
        out_shape: (height, width) in pixels, both at least 1.

    Returns:
        float32 [height, width, ...].
    """
    result = np.asarray(image, np.float32)
    for axis, size in enumerate(out_shape):
        if result.shape[axis] == size:
            continue
        result = np.moveaxis(result, axis, 0)
        rows = np.ascontiguousarray(result).reshape(len(result), -1)
        resized = _sparse_weights(len(rows), size) @ rows
        result = np.moveaxis(resized.reshape(size, *result.shape[1:]), 0, axis)
    return np.ascontiguousarray(result)


def nearest_indices(in_size: int, out_size: int) -> np.ndarray:
    """Return int [out_size]: the input pixel that holds the centre of each output pixel.

    A centre on the edge between two pixels (every third one when enlarging by 3/2) goes to the
    lower and to the upper one in turn; always choosing the upper one would shift the result.
    """
    # Whole numbers, because an edge must be hit exactly: centre j is at numerator / denominator.
    numerator = (2 * np.arange(out_size) + 1) * in_size
    denominator = 2 * out_size
    indices = numerator // denominator
    on_edge = np.flatnonzero(numerator % denominator == 0)
    indices[on_edge[::2]] -= 1
    return indices
