"""The two architectures as records; code that uses one need not know which it is.

"fpn"  a feature pyramid over the five stages of the backbone (FPN; matterport): one size of
       anchors per level, regions pooled from the level that fits their size
"c4"   the last convolution of stage 4 alone (paper section 4.2, figure 5): all sizes of
       anchors on one map, and stage 5 of the backbone as the trunk of both heads
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mrcnn.config import Config

STAGE4_STRIDE = 16  # pixels per cell of the fourth stage
STAGE4_CHANNELS = 1024


class Architecture(NamedTuple):
    """What the stages of detection need to know about each other."""

    strides: tuple[int, ...]  # pixels per cell of every feature map, finest map first
    scales: tuple[tuple[float, ...], ...]  # sides in pixels of the square anchors on every map
    channels: int  # of every feature map
    pooled_maps: int  # number of maps, the first ones, that regions are pooled from
    anchors_per_cell: int


def architecture_of(config: Config) -> Architecture:
    """The record that `Config.ARCHITECTURE` stands for."""
    sides, ratios = tuple(config.RPN_ANCHOR_SCALES), len(config.RPN_ANCHOR_RATIOS)
    if config.ARCHITECTURE == "c4":
        return Architecture((STAGE4_STRIDE,), (sides,), STAGE4_CHANNELS, 1, ratios * len(sides))
    strides = tuple(config.BACKBONE_STRIDES)
    # The coarsest level serves the region proposals only.
    return Architecture(
        strides,
        tuple((side,) for side in sides),
        config.TOP_DOWN_PYRAMID_SIZE,
        len(strides) - 1,
        ratios,
    )
