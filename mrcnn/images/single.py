"""Single images in files of their own: size, content and state.

Shapes: H, W pixels, C channels.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mrcnn.errors import UserError
from mrcnn.images.decoding import decode_picture

TIFF_ENDINGS = (".tif", ".tiff")
ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# One file of a data set is at most a few megabytes; a member that claims more is a broken or
# hostile file and would fill the memory.
MAX_FILE_BYTES = 512 * 1024 * 1024


def is_image_file(name: str) -> bool:
    """True for the file names that hold images (hidden files do not)."""
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def refuse_large(size: int, name: str) -> None:
    """Raise UserError for a file that is far larger than any image should be."""
    if size > MAX_FILE_BYTES:
        raise UserError(f"{name}: {size} bytes, more than the {MAX_FILE_BYTES} allowed per file")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises UserError where it cannot be read or is absurdly large."""
    try:
        refuse_large(path.stat().st_size, str(path))
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_picture(path: Path) -> np.ndarray:
    """[H, W] or [H, W, C] with the values of the file; see `pictures.decode_picture`.

    Raises UserError where it is no image, or a stack of them.
    """
    if path.name.lower().endswith(TIFF_ENDINGS):
        picture_size(path)
    return decode_picture(read_bytes(path), str(path))


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) in pixels, from the file's header. Raises UserError as `read_picture` does."""
    try:
        if path.name.lower().endswith(TIFF_ENDINGS):
            return _tiff_size(path)
        with Image.open(path) as picture:
            return picture.height, picture.width
    except UserError:
        raise
    except Exception as error:  # Pillow and tifffile raise a dozen types for broken files
        raise UserError(f"{path}: not a readable image ({error})") from None


def _tiff_size(path: Path) -> tuple[int, int]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        # Y, X and S (samples: the colours of a pixel) make an image; all else makes a stack.
        planes = math.prod(
            size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"
        )
        if planes > 1:
            raise UserError(
                f"{path}: a stack of {planes} planes; save each as an image of its "
                "own (in ImageJ: Image > Stacks > Stack to Images), or channels as one "
                "RGB picture"
            )
        return page.imagelength, page.imagewidth


def file_state(path: Path) -> str:
    """Changes when the file does: its name, size and time of change."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return f"{path.name} {status.st_size}-{status.st_mtime_ns}"
