"""What people give as an image: checked, and made an array or a file's image of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.errors import UserError, reason_of
from mrcnn.images.image_files import open_image


def as_image(image: Any) -> Any:
    """`image`, or an array of it where it is a tensor of another library.

    Raises UserError unless it is an image.
    """
    if not isinstance(getattr(image, "dtype", None), np.dtype) and hasattr(image, "__array__"):
        try:
            image = np.asarray(image)
        except Exception as error:  # of whatever type: on a GPU, with gradients, of other numbers
            reason = reason_of(error, 80)
            raise UserError(
                f"{type(image).__name__} gives no NumPy array ({reason}): convert it first"
            ) from error
    shape = getattr(image, "shape", None)
    if shape is None or not hasattr(image, "dtype"):
        raise UserError(
            f"{type(image).__name__} is no image: an array [height, width] or "
            "[height, width, channels] is needed"
        )
    if len(shape) not in (2, 3) or not all(shape) or (len(shape) == 3 and shape[2] > 4):
        raise UserError(
            f"an array of shape {tuple(shape)} is no image: [height, width] or "
            "[height, width, 1, 3 or 4 channels] is needed"
        )
    return image


def opened(image: Any) -> Any:
    """An image as `as_image` gives it, or of a path the file's, without its pixels."""
    if isinstance(image, str | os.PathLike):
        return open_image(Path(image))
    return as_image(image)
