"""Mask R-CNN on Keras 3 with the interface of matterport's Mask_RCNN 2.1.

Start with `mrcnn.load`, or with `mrcnn.model.MaskRCNN` and `mrcnn.config.Config`; README.md lists
the modules in reading order. Importing the package itself imports nothing heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn.segmenter import Segmenter


def load(weights: str | os.PathLike = "nucleus", **options: Any) -> Segmenter:
    """A detector that is ready to use: `mrcnn.load("nucleus").detect(image)`.

    See `segmenter.load` for the arguments and `segmenter.Segmenter` for what it does.
    """
    from mrcnn.segmenter import load

    return load(weights, **options)
