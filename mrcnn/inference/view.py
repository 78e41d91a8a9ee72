"""How the network will see an image: its exposure, level and scale, whole or in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from mrcnn.errors import UserError, one_line
from mrcnn.inference.postprocess import Instances, PostProcessing
from mrcnn.inference.scale import fits_whole
from mrcnn.inference.tiles import HALO, TILE, Mosaic, Tile, tiles_of
from mrcnn.pixels.exposure import Exposure
from mrcnn.results.result import Result

# For a scale of this or less, a smaller level of the image's pyramid is read.
LARGEST_REDUCED = 0.5


@dataclass(frozen=True)
class ViewOptions:
    """What the caller may specify about an image; see `Segmenter.detect`.

    Raises UserError for sizes that are not numbers above 0.
    """

    diameter: float | None = None
    microns: float | None = None
    inverted: bool | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("diameter", self.diameter), ("microns", self.microns)):
            number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
            if value is not None and not (number and math.isfinite(value) and value > 0):
                raise UserError(
                    f"{name} = {one_line(repr(value))} is not allowed: a number above 0"
                )

    def of_level(self, reduction: float) -> ViewOptions:
        """The same for a level whose pixels are `reduction` times as large."""
        diameter, microns = self.diameter, self.microns
        return replace(
            self,
            diameter=diameter and diameter / reduction,
            microns=microns and microns * reduction,
        )


class View(NamedTuple):
    """How the network sees an image, as `Segmenter.choose_view` has decided."""

    exposure: Exposure
    scale: float | None  # of the level to detect in; None where it is taken as it is
    of_whole: float | None  # the same, of the image at full size
    reduction: float  # how many times as large the level's pixels are
    microns: float | None  # side of the level's pixels
    tile: int | None  # side of the tiles in pixels of the scaled image; None: one forward pass

    def tiles(self, shape: Sequence[int]) -> list[Tile]:
        """The tiles of the level, of this shape."""
        return tiles_of(shape, self.scale or 1.0, self.tile)

    def level(self, image: Any) -> Any:
        """The level of an image to detect in."""
        return level_of(image, self.of_whole)[0]

    def joined(
        self,
        shape: Sequence[int],
        found: Iterable[Instances],
        settings: PostProcessing,
        progress: Callable[[int, int], None] | None = None,
    ) -> Instances:
        """The instances of the level, of this shape, from those of its tiles in their order.

        settings: of the post-processing; progress: called with the number of tiles done and in all.
        """
        tiles = self.tiles(shape)
        mosaic = Mosaic(shape, settings, HALO / (self.scale or 1.0))
        for number, (tile, one) in enumerate(zip(tiles, found, strict=True), 1):
            mosaic.add(tile, *one)
            if progress:
                progress(number, len(tiles))
        return mosaic.finish()

    def result(self, image: Any, found: Instances, classes: Sequence[str]) -> Result:
        """What was found in the level."""
        return Result(
            *found, tuple(classes), image, self.exposure, self.microns, self.scale, self.reduction
        )


def level_of(image: Any, scale: float | None) -> tuple[Any, float]:
    """The level of a pyramid that a scale needs, and how many times as large its pixels are; the
    image itself, and 1, where the scale is above LARGEST_REDUCED or there is no pyramid."""
    if scale is None or scale > LARGEST_REDUCED or not hasattr(image, "reduced"):
        return image, 1.0
    level = image.reduced(scale)
    return level, math.sqrt(math.prod(image.shape[:2]) / math.prod(level.shape[:2]))


def level_note(reduction: float) -> str:
    """The note for a result in pixels of a smaller level."""
    return (
        f"read at 1/{reduction:.4g} of its width and height, the pyramid level that the scale "
        "needs: results are in pixels of that level, GeoJSON in full-size pixels"
    )


def tile_side(asked: int | None, shape: Sequence[int], scale: float | None) -> int | None:
    """The side of an image's tiles in pixels of the scaled image; None for one forward pass.

    Raises UserError where tiles of the requested side are too small.
    """
    if asked is None and scale is not None and not fits_whole(shape, scale):
        return TILE
    if asked is not None and asked <= 2 * HALO:
        raise UserError(f"tiles of {asked} pixels are too small: use more than {2 * HALO}")
    return asked
