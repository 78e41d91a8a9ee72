"""From one image and its instances to one training example of the network's input size.

The path of an example: cut a window (crop mode), augment, resize the image, drop what became too
small. What is cut away is never augmented or resized, which is what makes large images cheap.

Geometry (see `mrcnn.pixels.molding` for the pixel convention): a crop window has integer edges in
source pixels and is enlarged by exactly `side / window`, pixel centres at half-integers. Labels
stay at the source's resolution: resizing them would move every outline to a whole output pixel,
while a box multiplied by the scale, and a mini mask taken from the source, are exact.

Shapes: H W pixels of the input, h w pixels of the source (after cutting and turning), C channels,
L label layers, N instances.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from mrcnn.data.augment import apply_augmentation
from mrcnn.pixels import masks, molding
from mrcnn.pixels.object_size import object_scale
from mrcnn.pixels.resampling import contiguous_pixels, sparse_hat_weights

# A crop leaves slivers of instances at its edges. Below four pixels nobody could draw their
# outline, and a box one pixel wide makes the log of its size in the targets extreme.
MIN_INSTANCE_AREA = 4


class Example(NamedTuple):
    """One training example. A source position p is at p * scales + window[:2] in the input."""

    image: np.ndarray  # float32 [H, W, C], values 0..255
    layers: np.ndarray  # int32 [h, w, L] in source pixels, instances renumbered 1..N
    class_ids: np.ndarray  # int32 [N]
    window: tuple[int, int, int, int]  # y1, x1, y2, x2 of the part that is not padding, pixels
    scales: tuple[float, float]  # input pixels per source pixel along y and x
    scale: float  # as image_meta states it, before sizes were rounded

    def source_boxes(self) -> np.ndarray:
        """Int32 [N, 4], boxes of the instances in source pixels."""
        return masks.layer_boxes(self.layers, len(self.class_ids))

    def to_input(self, source_boxes: np.ndarray) -> np.ndarray:
        """Float32 [N, 4], boxes moved from source pixels to pixels of the input (fractional)."""
        starts = np.tile(self.window[:2], 2)
        return (source_boxes * np.tile(self.scales, 2) + starts).astype(np.float32)

    def whole_masks(self) -> np.ndarray:
        """Bool [H, W, N], masks at the input's size (nearest source pixel)."""
        layers = enlarge_labels(self.layers, self.image.shape[:2], self.scales, self.window[:2])
        return masks.layers_to_masks(layers, len(self.class_ids))


def make_example(
    image: np.ndarray,
    layers: np.ndarray,
    class_ids: np.ndarray,
    config: Any,
    rng: np.random.Generator,
    augmentation: Any = None,
    *,
    scale: float | None = None,
    jitter: tuple[float, float] = (1.0, 1.0),
    min_area: float = MIN_INSTANCE_AREA,
) -> Example:
    """Cut, augment and resize one image with its instances to the network's input.

    image: [h, w, C], 0..255 (uint8 where there is an augmentation); layers: integer [h, w, L];
    class_ids: int32 [N]; scale: overrides what the configuration asks for (modes crop and pad64
    only); jitter: range of the log-uniform factor on the scale (crop mode only);
    min_area: instances of a smaller area, in pixels of the input, are dropped.
    """
    crop = config.IMAGE_RESIZE_MODE == "crop"
    if crop:
        side = int(config.IMAGE_MIN_DIM)
        scale = scale or crop_scale(image, layers, class_ids, config)
        # The scale is adjusted to the grid: an integer window, and the scale that follows from it.
        source_side = max(1, round(side / (scale * draw_factor(jitter, rng))))
        part = draw_window(image.shape, source_side, rng)
        image, layers = image[part], layers[part]
    layers = layers.astype(np.int32)
    image, layers = apply_augmentation(augmentation, image, layers, rng)
    if crop:
        scale = side / source_side
        scales = (scale, scale)
        image, window = fit_crop(image, side, scale)
    else:
        image, window, scales, scale = fit_whole(image, config, scale)
    layers, kept = keep_large(layers, len(class_ids), min_area / (scales[0] * scales[1]))
    return Example(image, layers, class_ids[kept], window, scales, scale)


def crop_scale(image: np.ndarray, layers: np.ndarray, class_ids: np.ndarray, config: Any) -> float:
    """The scale of an image before jitter: by the size of its objects, where OBJECT_SIZE asks for
    that and there are any, otherwise by IMAGE_MIN_DIM and IMAGE_MIN_SCALE."""
    scale = None
    if config.OBJECT_SIZE:
        boxes = masks.layer_boxes(layers, len(class_ids))
        scale = object_scale(boxes[class_ids > 0], config)  # crowds may have any size
    return scale or molding.scale_factor(
        image.shape, config.IMAGE_MIN_DIM, None, config.IMAGE_MIN_SCALE, "crop"
    )


def draw_factor(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """A log-uniform factor, so that halving is as likely as doubling."""
    return float(np.exp(rng.uniform(*np.log(limits))))


def draw_window(
    image_shape: tuple[int, ...], side: int, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random square of `side` source pixels, or as much of it as fits into the image."""
    height, width = (min(side, size) for size in image_shape[:2])
    y = int(rng.integers(image_shape[0] - height + 1))
    x = int(rng.integers(image_shape[1] - width + 1))
    return slice(y, y + height), slice(x, x + width)


def fit_crop(
    image: np.ndarray, side: int, scale: float
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Enlarge a cut window by `scale` into a `side` x `side` input, padded with zeros.

    Returns image float32 [side, side, C] and window (y1, x1, y2, x2).
    """
    height, width = (min(side, round(n * scale)) for n in image.shape[:2])
    top, left = (side - height) // 2, (side - width) // 2
    rows = interpolation_matrix(image.shape[0], side, scale, top)
    columns = interpolation_matrix(image.shape[1], side, scale, left)
    return interpolate(image, rows, columns), (top, left, top + height, left + width)


def fit_whole(
    image: np.ndarray, config: Any, scale: float | None = None
) -> tuple[np.ndarray, tuple[int, int, int, int], tuple[float, float], float]:
    """Resize and pad a whole image (modes square, pad64, none).

    scale: overrides what the configuration asks for (pad64 only).
    Returns image float32 [H, W, C], window (y1, x1, y2, x2), scales (y, x), matterport's scale.
    """
    height, width = image.shape[:2]
    image, window, scale, _, _ = molding.resize_image(
        image,
        min_dim=config.IMAGE_MIN_DIM,
        max_dim=config.IMAGE_MAX_DIM,
        min_scale=config.IMAGE_MIN_SCALE,
        mode=config.IMAGE_RESIZE_MODE,
        exact=config.exact_pixels,
        scale=scale,
    )
    y1, x1, y2, x2 = (int(value) for value in window)
    # Not `scale`: the size was rounded to whole pixels.
    scales = ((y2 - y1) / height, (x2 - x1) / width)
    return image.astype(np.float32), (y1, x1, y2, x2), scales, float(scale)


@lru_cache(maxsize=64)
def interpolation_matrix(size: int, out_size: int, scale: float, start: int) -> csr_array:
    """Linear interpolation along one axis as a sparse matrix, float32 [out_size, size].

    Output pixel i samples the source coordinate (i + .5 - start) / scale. When shrinking, the
    triangle widens to the output pixel's footprint, which keeps fine texture from aliasing.
    Rows outside the source are zero (padding); at its edge the nearest pixel repeats. The result is
    cached, since both axes of a square window share it, and must not be written to.
    """
    targets = (np.arange(out_size) + 0.5 - start) / scale
    matrix = sparse_hat_weights(targets, size, max(1.0, 1 / scale))
    weights = matrix.data.reshape(out_size, -1)  # a view
    weights[(targets < 0) | (targets >= size)] = 0
    totals = weights.sum(axis=1, keepdims=True)
    weights /= np.where(totals > 0, totals, 1)
    return matrix


def interpolate(image: np.ndarray, rows: csr_array, columns: csr_array) -> np.ndarray:
    """Apply one `interpolation_matrix` per axis: [h, w, C] -> float32 [H, W, C]."""
    height, width, channels = image.shape
    # Columns first: what has to be transposed is then still small where the image is enlarged.
    source = contiguous_pixels(image.transpose(1, 0, 2)).reshape(width, height * channels)
    wide = (columns @ source.astype(np.float32)).reshape(-1, height, channels)
    wide = contiguous_pixels(wide.transpose(1, 0, 2)).reshape(height, -1)
    return (rows @ wide).reshape(rows.shape[0], columns.shape[0], channels)


def enlarge_labels(
    layers: np.ndarray,
    out_shape: tuple[int, int],
    scales: tuple[float, float],
    starts: tuple[int, int],
) -> np.ndarray:
    """Sample label layers at the same places as `interpolation_matrix`, nearest source pixel.

    layers: [h, w, L]; scales and starts: along y and x. Returns [*out_shape, L], zeros outside.
    """
    indices, inside = [], []
    for size, out, factor, start in zip(layers.shape, out_shape, scales, starts, strict=False):
        index = np.floor((np.arange(out) + 0.5 - start) / factor).astype(int)
        inside.append((index >= 0) & (index < size))
        indices.append(np.clip(index, 0, size - 1))
    mask = inside[0][:, None] & inside[1]
    return layers[indices[0][:, None], indices[1]] * mask[..., None]


def keep_large(layers: np.ndarray, count: int, min_area: float) -> tuple[np.ndarray, np.ndarray]:
    """Drop instances of fewer than `min_area` pixels.

    Returns the layers renumbered 1..K and the indices (0-based, int [K]) of what was kept.
    """
    areas = np.bincount(layers.ravel(), minlength=count + 1)[1:]
    return select_instances(layers, np.flatnonzero((areas > 0) & (areas >= min_area)), count)


def select_instances(
    layers: np.ndarray, kept: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the instances with these indices (0-based), renumbered in that order."""
    table = np.zeros(count + 1, np.int32)
    table[kept + 1] = np.arange(1, len(kept) + 1)
    return np.take(table, layers), kept
