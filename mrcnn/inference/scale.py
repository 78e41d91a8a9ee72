"""The scale of an image: the factor at which its objects have the size that the network knows.

A diameter that is given sets it. Otherwise a first forward pass over the image, or over parts of a
large one, finds it; where the size of a pixel is known, the first forward pass is at the scale for
OBJECT_MICRONS, and what it finds counts within MICRONS_RANGE.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.pixels.exposure import Exposure

# Scaled and padded images of at most so many pixels are detected as a whole: 2560 x 2560.
WHOLE_PIXELS = 2560**2
# Nuclei of cells: a typical diameter, and the range of the median of an image, in microns.
OBJECT_MICRONS = 9.0
MICRONS_RANGE = (4.0, 24.0)
# The scale of a large image is that of the median of so many parts, the most varied of a grid.
PARTS, GRID, PART_SIDE = 5, 8, 384


def expected_scale(config: Config, diameter: float | None, microns: float | None) -> float | None:
    """The scale as far as it is known before an image is read."""
    if not _is_scaled(config) or (diameter is None and microns is None):
        return None
    if diameter is None:
        diameter = OBJECT_MICRONS / microns
    return float(np.clip(config.OBJECT_SIZE / diameter, *config.SCALE_LIMITS))


def scale_of(
    image: Any,
    exposure: Exposure,
    config: Config,
    diameter: float | None,
    microns: float | None,
    measure: Callable[[tuple[slice, ...], float | None], float],
) -> float | None:
    """The factor of enlargement; None where the network takes images as they are.

    Args:
        image: the level that is detected in.
        exposure: of the image.
        config: of the network.
        diameter: of a typical object; microns: side of a pixel; both of this level, or None.
        measure: gives the scale that the objects in a window of the image ask for, found in a
            forward pass at the scale given.

    Raises:
        UserError: a diameter for a network that takes images as they are.
    """
    if not _is_scaled(config):
        if diameter is not None:
            raise UserError(
                "a diameter needs a network of one OBJECT_SIZE and "
                'IMAGE_RESIZE_MODE = "pad64", which this one is not'
            )
        return None
    if diameter is not None:
        return expected_scale(config, diameter, None)
    first = expected_scale(config, None, microns)
    # A few parts tell the scale of a long strip as well.
    is_strip = min(image.shape[:2]) < PART_SIDE and max(image.shape[:2]) > GRID * PART_SIDE
    is_whole = fits_whole(image.shape, first or config.IMAGE_MIN_SCALE or 1) and not is_strip
    parts = [()] if is_whole else varied_parts(image, exposure)
    scale = float(np.median([measure(part, first) for part in parts]))
    if microns is not None:
        lowest, highest = (config.OBJECT_SIZE * microns / size for size in MICRONS_RANGE[::-1])
        scale = float(np.clip(np.clip(scale, lowest, highest), *config.SCALE_LIMITS))
    return scale


def _is_scaled(config: Config) -> bool:
    """Whether images are brought to the network's scale."""
    return bool(config.OBJECT_SIZE) and config.IMAGE_RESIZE_MODE == "pad64"


def fits_whole(shape: Sequence[int], scale: float) -> bool:
    """Whether an image is detected in one forward pass at this scale; a strip is padded to many
    times its own pixels."""
    return math.prod(max(64, side * scale) for side in shape[:2]) <= WHOLE_PIXELS


def varied_parts(image: Any, exposure: Exposure) -> list[tuple[slice, slice]]:
    """The windows of a large image where there is most to see: PARTS of a grid."""
    rows, columns = (
        sorted({int((i + 0.5) / GRID * max(0, size - PART_SIDE)) for i in range(GRID)})
        for size in image.shape[:2]
    )
    parts = []
    for top, left in itertools.product(rows, columns):
        part = slice(top, top + PART_SIDE), slice(left, left + PART_SIDE)
        parts.append((float(exposure.apply(np.asarray(image[part])).std()), part))
    parts.sort(key=lambda pair: -pair[0])
    return [part for _, part in parts[:PARTS]]
