"""The features of every region of interest, pooled as the configuration says.

    ROI_POOLING "align"  bilinear samples, nothing is rounded (`roi_align`); the default
    ROI_POOLING "pool"   maxima over whole cells, as Fast R-CNN did (`roi_pool`)

Source: paper sections 3.7.1, 4.1.3 and 4.1.4.
Shape shorthand: B images, R regions, P pooled rows and columns, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keras import ops

from mrcnn.network.layers import LayerBank
from mrcnn.network.roi_align import PyramidROIAlign
from mrcnn.network.roi_pool import PyramidROIPool

if TYPE_CHECKING:
    from mrcnn.config import Config


class RoiPooling(NamedTuple):
    """How regions are pooled; see the configuration's keys of the same names."""

    kind: str = "align"
    samples: int = 1
    join: str = "average"
    exact: bool = False


ALIGN = RoiPooling()


def pooling_of(config: Config) -> RoiPooling:
    """The pooling that a configuration asks for."""
    return RoiPooling(
        config.ROI_POOLING, int(config.ROI_SAMPLES), config.ROI_SAMPLES_JOIN, config.exact_pixels
    )


def region_features(
    rois, feature_maps, image_meta, side: int, pooling: RoiPooling, bank: LayerBank, name: str
):
    """Pool regions into images of their own.

    Args:
        rois: [B, R, 4] normalised.
        feature_maps: the maps to pool from, finest first, each [B, H, W, C].
        image_meta: [B, M].
        side: P.
        bank: where the layer comes from, under `name`.

    Returns:
        [B * R, P, P, C].
    """
    if pooling.kind == "pool":
        pool = bank(PyramidROIPool, (side, side), exact=pooling.exact, name=name)
    else:
        pool = bank(
            PyramidROIAlign,
            (side, side),
            exact=pooling.exact,
            samples=pooling.samples,
            join=pooling.join,
            name=name,
        )
    features = pool([rois, image_meta, *feature_maps])
    return ops.reshape(features, (-1, *features.shape[2:]))
