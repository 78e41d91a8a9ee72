"""Mask R-CNN on Keras 3 with the interface of matterport's Mask_RCNN 2.1.

Start with `mrcnn.load`, or with `mrcnn.model.MaskRCNN` and `mrcnn.config.Config`; README.md lists
the modules in reading order. Importing the package itself imports nothing heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mrcnn.segmenter import Segmenter
    from mrcnn.training.corrections import Added


def load(weights: str | os.PathLike = "nucleus", **options: Any) -> Segmenter:
    """A detector that is ready to use: `mrcnn.load("nucleus").detect(image)`.

    See `segmenter.load` for the arguments and `segmenter.Segmenter` for what it does.
    """
    from mrcnn.segmenter import load

    return load(weights, **options)


def add_to_training_set(folder: str | os.PathLike, name: str, image: Any, labels: Any) -> Added:
    """Keep an image [H, W] or [H, W, C] and its corrected labels [H, W] for `fine_tune`.

    See `training.corrections.add_to_training_set`.
    """
    from mrcnn.training.corrections import add_to_training_set

    return add_to_training_set(folder, name, image, labels)


def fine_tune(
    images: str | os.PathLike,
    labels: str | os.PathLike,
    weights: str | os.PathLike = "nucleus",
    **options: Any,
) -> Path:
    """Train a network for a few minutes on a few images; returns the new weight file.

    See `fine_tuning.fine_tune` for the arguments.
    """
    from mrcnn.fine_tuning import fine_tune

    return fine_tune(images, labels, weights, **options)
