"""Images in: from images to network input. `unmolding` is the way back.

Pixel convention, here and in the whole package: image coordinates are continuous, pixel i covers
[i, i + 1), and its centre is i + .5. A box is (y1, x1, y2, x2) with exclusive ends: the box of the
single pixel (0, 0) is (0, 0, 1, 1). ``Config.PIXEL_CONVENTION`` decides how this is sampled:

- "exact" keeps to it everywhere. Normalised boxes are box / size; resizing, ROI sampling and mask
  pasting all sample at pixel centres, and a mask target is the share of its cell that the mask
  covers, so nothing moves.
- "matterport" is what weights trained with matterport's code need. Normalised boxes are
  (box - (0, 0, 1, 1)) / (size - 1), crops are sampled with their corners on pixel centres, and
  masks are resized into boxes that were rounded to whole pixels.

Shapes: B images, K classes, H W pixels, C channels, M = 12 + K entries of an image's metadata.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mrcnn.errors import UserError
from mrcnn.pixels.exposure import standardise
from mrcnn.pixels.image_meta import compose_image_meta
from mrcnn.pixels.resampling import resize_smooth

if TYPE_CHECKING:
    from mrcnn.config import Config

Box = tuple[int, int, int, int]
Padding = list[tuple[int, int]]

# Luminance of R, G, B (ITU-R BT.601).
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


# ---- Images ----------------------------------------------------------------------------------


def adapt_channels(image: np.ndarray, count: int) -> np.ndarray:
    """Return an image with the number of channels that the model takes.

    Grey is repeated for RGB; an alpha channel (the second of two, or a fourth where one or three
    are wanted) is dropped; RGB becomes luminance where one is wanted.

    Args:
        image: [H, W] or [H, W, C].
        count: channels wanted.

    Returns:
        [H, W, count] with the dtype of image.

    Raises:
        UserError: there is no such conversion.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3:
        raise UserError(f"an image of shape {image.shape} is not [height, width, channels]")
    channels = image.shape[-1]
    if channels == count:
        return image
    if count in (1, 3) and channels in (2, 4):
        return adapt_channels(image[..., : channels - 1], count)
    if (channels, count) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    if (channels, count) == (3, 1):
        grey = image @ LUMINANCE
        if np.issubdtype(image.dtype, np.integer):
            grey = np.rint(grey)
        return grey[..., None].astype(image.dtype)
    raise UserError(
        f"an image with {channels} channels does not fit a model with {count}: "
        f"set IMAGE_CHANNEL_COUNT = {channels} or convert the image"
    )


def resize(
    image: np.ndarray,
    output_shape: Sequence[int],
    order: int = 1,
    mode: str = "constant",
    cval: float = 0,
    clip: bool = True,
    preserve_range: bool = False,
    anti_aliasing: bool = False,
    anti_aliasing_sigma: float | None = None,
) -> np.ndarray:
    """Call scikit-image's ``resize`` with matterport's defaults (``utils.resize``).

    Boolean images are taken as 0.0 and 1.0. Returns floats of the shape output_shape.
    """
    from skimage.transform import resize as skimage_resize

    image = np.asarray(image)
    return skimage_resize(
        image.astype(np.float64) if image.dtype == bool else image,
        tuple(int(size) for size in output_shape),
        order=order,
        mode=mode,
        cval=cval,
        clip=clip,
        preserve_range=preserve_range,
        anti_aliasing=anti_aliasing,
        anti_aliasing_sigma=anti_aliasing_sigma,
    )


def resize_image(
    image: np.ndarray,
    min_dim: int | None = None,
    max_dim: int | None = None,
    min_scale: float | None = None,
    mode: str = "square",
    *,
    exact: bool = False,
    rng: np.random.Generator | None = None,
    scale: float | None = None,
) -> tuple[np.ndarray, Box, float, Padding, Box | None]:
    """Scale an image, keeping its proportions, and pad or crop it (``utils.resize_image``).

    Args:
        image: [H, W, C].
        min_dim, max_dim, min_scale, mode: as IMAGE_MIN_DIM, IMAGE_MAX_DIM, IMAGE_MIN_SCALE and
            IMAGE_RESIZE_MODE in ``Config``.
        exact: continue the border when interpolating, anti-alias when shrinking, and round;
            otherwise the border fades, nothing is smoothed and fractions are cut off, as in
            matterport.
        rng: draws the place of a crop; Python's global ``random`` when None, as in matterport.
        scale: scale factor instead of what min_dim, max_dim and min_scale ask for ("pad64" and
            "crop" only).

    Returns:
        The image [H', W', C] of the same dtype; its window (y1, x1, y2, x2) that is not padding;
        the scale factor asked for (sides are rounded to whole pixels); the padding
        [(top, bottom), (left, right), (0, 0)]; and the crop (y, x, height, width) in the scaled
        image, or None.

    Raises:
        UserError: the mode is unknown, lacks the size that it needs, or takes no scale.
    """
    if image.ndim != 3:
        raise UserError(f"an image of shape {image.shape} is not [height, width, channels]")
    _check_resize_arguments(min_dim, max_dim, mode, scale)
    height, width = image.shape[:2]
    padding: Padding = [(0, 0), (0, 0), (0, 0)]
    if mode == "none":
        return image, (0, 0, height, width), 1, padding, None

    scale = scale or scale_factor((height, width), min_dim, max_dim, min_scale, mode)
    if scale != 1:
        height, width = (max(1, round(side * scale)) for side in (height, width))
        image = _scaled(image, (height, width), exact)
    if mode == "crop":
        y, x = (_random_integer(side - min_dim, rng) for side in (height, width))
        image = image[y : y + min_dim, x : x + min_dim]
        return image, (0, 0, min_dim, min_dim), scale, padding, (y, x, min_dim, min_dim)

    totals = [_padded_size(side, max_dim, mode) - side for side in (height, width)]
    padding = [(total // 2, total - total // 2) for total in totals] + [(0, 0)]
    top, left = padding[0][0], padding[1][0]
    window = (top, left, top + height, left + width)
    return np.pad(image, padding), window, scale, padding, None


def scale_factor(
    shape: Sequence[int],
    min_dim: int | None,
    max_dim: int | None,
    min_scale: float | None,
    mode: str,
) -> float:
    """Return how much ``resize_image`` enlarges an image of shape (H, W) (below 1: shrinks)."""
    scale = max(1, min_dim / min(shape[:2])) if min_dim else 1
    scale = max(scale, min_scale or 0)
    if mode == "square" and round(max(shape[:2]) * scale) > max_dim:
        scale = max_dim / max(shape[:2])
    return scale


def _check_resize_arguments(
    min_dim: int | None, max_dim: int | None, mode: str, scale: float | None
) -> None:
    if mode not in ("none", "square", "pad64", "crop"):
        raise UserError(f'resize mode "{mode}" is unknown: use none, square, pad64 or crop')
    if scale is not None and mode in ("none", "square"):
        raise UserError(f'a scale of {scale:g} needs IMAGE_RESIZE_MODE = "pad64", not "{mode}"')
    if mode == "square" and not max_dim:
        raise UserError("resize mode square needs max_dim (IMAGE_MAX_DIM)")
    if mode == "crop" and not min_dim:
        raise UserError("resize mode crop needs min_dim (IMAGE_MIN_DIM)")
    if mode == "pad64" and (min_dim or 0) % 64:
        raise UserError(f"resize mode pad64 needs a multiple of 64 as min_dim, not {min_dim}")


def _scaled(image: np.ndarray, shape: tuple[int, int], exact: bool) -> np.ndarray:
    if not exact:
        return resize(image, shape, preserve_range=True).astype(image.dtype)
    result = resize_smooth(image, shape)
    if not np.issubdtype(image.dtype, np.floating):
        result = np.rint(result)
    return result.astype(image.dtype)


def _padded_size(side: int, max_dim: int | None, mode: str) -> int:
    return max_dim if mode == "square" else math.ceil(side / 64) * 64


def _random_integer(largest: int, rng: np.random.Generator | None) -> int:
    return random.randint(0, largest) if rng is None else int(rng.integers(largest + 1))


def mold_image(images: np.ndarray, config: Config) -> np.ndarray:
    """Return float32 [..., H, W, C]: an image or batch of 0..255 minus the mean pixel."""
    images, mean = np.asarray(images, np.float32), np.asarray(config.MEAN_PIXEL, np.float32)
    if mean.size == 1:
        return images - mean
    # Over whole rows, because NumPy is slow along an axis of three.
    *outer, width, channels = images.shape
    rows = images.reshape(*outer, width * channels) - np.tile(mean, width)
    return rows.reshape(images.shape)


def unmold_image(normalized_images: np.ndarray, config: Config) -> np.ndarray:
    """Undo ``mold_image``: uint8 [..., H, W, C]."""
    images = np.asarray(normalized_images, np.float32) + np.asarray(config.MEAN_PIXEL, np.float32)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


# ---- Metadata ----------------------------------------------------------------------------------


def mold_inputs(
    images: Sequence[np.ndarray], config: Config, scales: Sequence[float | None] | None = None
) -> tuple[np.ndarray | list[np.ndarray], np.ndarray, np.ndarray]:
    """Turn images of any size into network input (matterport: ``MaskRCNN.mold_inputs``).

    Args:
        images: each [H, W] or [H, W, C] with values 0..255.
        scales: scale factor of each ("pad64" only); None: what the configuration asks for.

    Returns:
        molded: float32 [B, H, W, C], or a list of float32 [H, W, C] when their shapes differ
            ("pad64" and "none").
        metas: float64 [B, M].
        windows: int [B, 4] pixels of the molded images.

    Raises:
        UserError: the resize mode or an image does not suit detection, or the mode takes no scales.
    """
    mode = config.IMAGE_RESIZE_MODE
    if mode == "crop":
        raise UserError('IMAGE_RESIZE_MODE = "crop" is for training: detect with "pad64"')
    molded, metas, windows = [], [], []
    no_class = [0] * config.NUM_CLASSES
    scales = [None] * len(images) if scales is None else scales
    for number, (original, scale) in enumerate(zip(images, scales, strict=True)):
        image = standardise(adapt_channels(original, config.IMAGE_CHANNEL_COUNT), config)
        if mode == "none" and any(side % 64 for side in image.shape[:2]):
            raise UserError(
                f"image {number} is {image.shape[0]} x {image.shape[1]} pixels, but both must be "
                'multiples of 64 with IMAGE_RESIZE_MODE = "none": use "pad64" or "square"'
            )
        resized, window, scale, _, _ = resize_image(
            image,
            config.IMAGE_MIN_DIM,
            config.IMAGE_MAX_DIM,
            config.IMAGE_MIN_SCALE,
            mode,
            exact=config.exact_pixels,
            scale=scale,
        )
        molded.append(mold_image(resized, config))
        metas.append(compose_image_meta(0, image.shape, resized.shape, window, scale, no_class))
        windows.append(window)
    metas = np.reshape(metas, (len(molded), 12 + config.NUM_CLASSES))
    windows = np.reshape(np.array(windows, np.int64), (len(molded), 4))
    same_shape = len({image.shape for image in molded}) == 1
    return (np.stack(molded) if same_shape else molded), metas, windows
