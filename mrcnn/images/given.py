"""Images as users pass them: checked, and turned into an array or the image of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.errors import UserError, reason_of
from mrcnn.images.image_files import open_image


def as_image(image: Any) -> Any:
    """`image`, or an array of its values where it is a tensor of another library.

    Raises UserError unless it is an image.
    """
    if not isinstance(getattr(image, "dtype", None), np.dtype) and hasattr(image, "__array__"):
        try:
            image = np.asarray(image)
        except Exception as error:  # tensors on a GPU, with gradients, of other number types
            reason = reason_of(error, 80)
            raise UserError(
                f"{type(image).__name__} does not give a NumPy array ({reason}): convert it first"
            ) from error
    shape = getattr(image, "shape", None)
    if shape is None or not hasattr(image, "dtype"):
        raise UserError(
            f"{type(image).__name__} is not an image: an array [height, width] or "
            "[height, width, channels] is needed"
        )
    if len(shape) not in (2, 3) or not all(shape) or (len(shape) == 3 and shape[2] > 4):
        raise UserError(
            f"an array of shape {tuple(shape)} is not an image: [height, width] or "
            "[height, width, 1, 3 or 4 channels] is needed"
        )
    return image


def opened(image: Any) -> Any:
    """An image as `as_image` returns it or, for a path, the file's image, without its pixels."""
    if isinstance(image, str | os.PathLike):
        return open_image(Path(image))
    return as_image(image)
