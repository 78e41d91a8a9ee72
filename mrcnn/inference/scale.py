"""The scale of an image: the factor at which its objects have the size that the network expects.

A given diameter sets it. Otherwise a first forward pass over the image, or over parts of a large
one, finds it; where the size of a pixel is known, the first forward pass is at the scale for
OBJECT_MICRONS, and its result is limited to MICRONS_RANGE.
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

# Scaled and padded images of at most this many pixels are processed as a whole: 2560 x 2560.
WHOLE_PIXELS = 2560**2
# Cell nuclei: a typical diameter, and the range of an image's median diameter, in microns.
OBJECT_MICRONS = 9.0
MICRONS_RANGE = (4.0, 24.0)
# The scale of a large image is the median of those of PARTS parts, the most varied of a grid.
PARTS, GRID, PART_SIDE = 5, 8, 384


def expected_scale(config: Config, diameter: float | None, microns: float | None) -> float | None:
    """The scale, as far as it is known before the image is read."""
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
        image: the pyramid level to detect in.
        exposure: of the image.
        config: of the network.
        diameter: of a typical object; microns: side of a pixel; both at this level, or None.
        measure: returns the scale that the objects in a window of the image ask for, from a
            forward pass at the given scale.

    Raises:
        UserError: a diameter is given for a network that takes images as they are.
    """
    if not _is_scaled(config):
        if diameter is not None:
            raise UserError(
                "a diameter needs a network with an OBJECT_SIZE and "
                'IMAGE_RESIZE_MODE = "pad64", which this one does not have'
            )
        return None
    if diameter is not None:
        return expected_scale(config, diameter, None)
    first = expected_scale(config, None, microns)
    # A few parts are enough to find the scale of a long strip, too.
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
    """Whether an image is processed in one forward pass at this scale; a strip is padded to many
    times its own pixels."""
    return math.prod(max(64, side * scale) for side in shape[:2]) <= WHOLE_PIXELS


def varied_parts(image: Any, exposure: Exposure) -> list[tuple[slice, slice]]:
    """The PARTS windows of a grid over a large image whose values vary most."""
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
