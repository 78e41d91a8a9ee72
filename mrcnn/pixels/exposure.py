"""From a file's own values, of any type and range, to the 8-bit images that the network takes.

Microscopes deliver images that use only the lowest tenth of the scale, and dark objects on a light
background as well as light ones on a dark background. If all are brought to one form, a network has
less to learn, and meets less that it has never seen: two percentiles of the whole image become 0
and 255, and a light background becomes a dark one. The exposure is measured once on the whole image
and then applied to any part, so that all tiles of a slide get the same one. Both training and
detection use this module.

An image is anything with `shape` [H, W] or [H, W, C], `dtype` and slices `[rows, columns]`: an
array, a memory map, a Zarr array, an `image_files.LazyImage`.

Shapes: H, W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mrcnn.errors import UserError

if TYPE_CHECKING:
    from mrcnn.config import Config

# An 8-bit image is never stretched more than this, which would turn an empty one into noise.
SMALLEST_RANGE = 8.0
# For values of other types, where the configuration names no percentiles: the usual choice in cell
# segmentation. Dim 12-bit cameras and single hot pixels are both handled well.
DEEP_PERCENTILES = (1.0, 99.8)
# Values that are processed at a time, and the most in all for types that cannot be counted.
BAND_VALUES = 2**24
MOST_VALUES = 2**24
# Rows are read in multiples of this, the usual side of a file's own tiles.
BAND_ROWS = 256
# Types whose every value has an entry in a table.
COUNTED = (np.uint8, np.uint16)


@dataclass(frozen=True)
class Exposure:
    """What becomes black and white, in the file's own values, and whether the two are swapped."""

    low: float
    high: float
    inverted: bool = False
    not_finite: int = 0  # values (NaN, infinite) that become background

    @property
    def warning(self) -> str:
        """A warning about values that are not finite; "" where all are."""
        count = self.not_finite
        return f"{count} values are NaN or infinite: taken as background" if count else ""

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 of the same shape; values beyond `low` and `high` are cut off."""
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8)
        if pixels.dtype in COUNTED:
            table = np.arange(np.iinfo(pixels.dtype).max + 1, dtype=np.float64)
            return self._changed(table)[pixels]
        if pixels.dtype.kind != "f":
            return self._changed(pixels.astype(np.float64))
        finite = np.isfinite(pixels)
        values = _limited(np.where(finite, pixels, 0))
        return np.where(finite, self._changed(values), np.uint8(0))  # 0: background, once inverted

    def _changed(self, values: np.ndarray) -> np.ndarray:
        span = self.high - self.low
        if span <= 0:
            return np.zeros(values.shape, np.uint8)  # there is nothing to see
        values = np.clip((values - self.low) * (255.0 / span), 0, 255)
        return np.rint(255.0 - values if self.inverted else values).astype(np.uint8)


def measure(image: Any, config: Config, inverted: bool | None = None) -> Exposure:
    """The exposure that INTENSITY_PERCENTILES and DARK_GROUND of the configuration ask for.

    All channels count together, so that colours are kept. Exact for 8 and 16 bits; for other types
    a regular grid of at most MOST_VALUES values is used.

    Args:
        image: see the top of the module.
        inverted: None finds out whether the background is light (the median lies above the middle).
    Values that are not finite are left out of all this. Raises UserError where none is finite, or
    where they are not real numbers.
    """
    dtype = np.dtype(image.dtype)
    if dtype.kind not in "biuf":
        raise UserError(f"images of dtype {dtype} are not supported: numbers are needed")
    ends = config.INTENSITY_PERCENTILES or DEEP_PERCENTILES
    (low, high, middle, least, most), not_finite = _measured(image, [*ends, 50, 0, 100])
    if not_finite and not_finite == _count(image):
        raise UserError("the image has no finite values: all are NaN or infinite")
    if not config.INTENSITY_PERCENTILES and dtype == np.uint8:
        low, high = 0.0, 255.0
    if dtype == np.uint8:
        high = max(high, low + SMALLEST_RANGE)
    elif high <= low:  # nearly all pixels are alike: what differs is what there is to see
        low, high = least, most
    if inverted is None:
        inverted = bool(config.DARK_GROUND and middle - low > (high - low) / 2)
    return Exposure(float(low), float(high), inverted, not_finite)


def standardise(image: np.ndarray, config: Config) -> np.ndarray:
    """Bring an image in memory to the exposure that the configuration asks for.

    Args:
        image: [H, W] or [H, W, C], values 0..255 of any type.

    Returns:
        uint8 of the same shape; the image itself where the configuration asks for no change, since
        matterport's callers may pass values of any type that are to be used as they are.
    """
    if image.size == 0 or not (config.INTENSITY_PERCENTILES or config.DARK_GROUND):
        return image
    return measure(image, config).apply(image)


def to_rgb(image: Any, exposure: Exposure) -> np.ndarray:
    """uint8 [H, W, 3] of an image [H, W] or [H, W, C] with one or three channels."""
    pixels = exposure.apply(np.asarray(image[:, :]))
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def percentiles(image: Any, percents: Sequence[float]) -> np.ndarray:
    """`np.percentile` over all finite values of an image that need not fit into memory."""
    return _measured(image, percents)[0]


def _measured(image: Any, percents: Sequence[float]) -> tuple[np.ndarray, int]:
    """The percentiles, and how many values are not finite."""
    dtype = np.dtype(image.dtype)
    if dtype.kind == "b" or dtype in COUNTED:
        counts = np.zeros(2 if dtype.kind == "b" else np.iinfo(dtype).max + 1, np.int64)
        for _, band in bands(image):
            counts += np.bincount(band.ravel().astype(np.intp), minlength=len(counts))
        return percentiles_of_counts(counts, percents), 0
    step = math.ceil(math.sqrt(math.prod(image.shape) / MOST_VALUES)) or 1
    parts, not_finite = [], 0
    for start, band in bands(image):
        if dtype.kind == "f":
            not_finite += band.size - int(np.count_nonzero(np.isfinite(band)))
        part = band[(-start) % step :: step, ::step]
        parts.append(_limited(part[np.isfinite(part)]))
    values = np.concatenate(parts) if parts else np.zeros(0)
    return (np.percentile(values, percents) if values.size else np.zeros(len(percents))), not_finite


def _limited(values: np.ndarray) -> np.ndarray:
    """float64, clipped so far below the largest one that a difference of two is finite."""
    return np.clip(values.astype(np.float64), -1e300, 1e300)


def _count(image: Any) -> int:
    """How many values `bands` goes through."""
    channels = image.shape[2] if len(image.shape) == 3 else 1
    return math.prod(image.shape[:2]) * (channels - (channels in (2, 4)))


def percentiles_of_counts(counts: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Percentiles of whole numbers 0, 1, ... by how often each occurs, linear between ranks; zeros
    where there are none."""
    ranks = np.cumsum(counts)
    if ranks[-1] == 0:
        return np.zeros(len(percents))
    wanted = np.asarray(percents) / 100 * (ranks[-1] - 1)
    lower, upper = (np.searchsorted(ranks, end(wanted), "right") for end in (np.floor, np.ceil))
    return lower + (upper - lower) * (wanted - np.floor(wanted))


def subsample(image: Any, step: int) -> np.ndarray:
    """Every `step`th row and column of an image, without alpha."""
    parts = [band[(-start) % step :: step, ::step] for start, band in bands(image)]
    return np.concatenate(parts) if parts else np.zeros((0, *image.shape[1:]), image.dtype)


def bands(image: Any) -> Iterator[tuple[int, np.ndarray]]:
    """An image in bands of rows from the top, each of about BAND_VALUES values, without alpha:
    (first row, band)."""
    values = max(1, math.prod(image.shape[1:]))
    rows = max(1, BAND_VALUES // values // BAND_ROWS) * BAND_ROWS
    for start in range(0, image.shape[0], rows):
        band = np.asarray(image[start : start + rows, :])
        yield start, band[..., :-1] if band.ndim == 3 and band.shape[2] in (2, 4) else band
