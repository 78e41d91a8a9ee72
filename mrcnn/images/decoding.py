"""Picture files to arrays: 8 and 16 bits, grey, RGB, RGBA, palette, PNG, TIFF, JPEG, BMP."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mrcnn.errors import UserError

# Far above any microscope image that fits a training machine, far below a memory full.
MAX_PIXELS = 100_000_000
# Deeper pixels are spread over 0..255 between these percentiles of the image's own values, the
# common choice in cell segmentation: dim 12-bit cameras and single hot pixels both come out well.
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """Decode an image file.

    Returns [H, W] or [H, W, C] with the values of the file (uint8, uint16, float32, ...).
    Raises UserError naming the file where it is not an image, broken, or absurdly large.
    """
    try:
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _decode_tiff(data, name)
        with Image.open(io.BytesIO(data)) as picture:
            _refuse_pixels(picture.size, name)
            if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                return np.asarray(picture.convert("RGB"))
            if picture.mode == "1":
                return np.asarray(picture.convert("L"))
            rawmode = picture.tile[0][3] if picture.tile else ""
            if rawmode in ("RGB;16B", "RGBA;16B"):
                return _decode_png_16_bit_colour(data, picture)
            return np.asarray(picture)
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen different types for broken files
        raise UserError(f"{name}: not a readable image ({error})") from None


def _refuse_pixels(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{name}: {size[1]} x {size[0]} pixels, more than {MAX_PIXELS} in all")


def _decode_png_16_bit_colour(data: bytes, picture: Image.Image) -> np.ndarray:
    """Pillow keeps only the high byte of 16-bit colour PNGs. Asked to read the same (big-endian)
    data as little-endian, it keeps the low byte: two passes give the whole value."""
    high = np.asarray(picture).astype(np.uint16)
    with Image.open(io.BytesIO(data)) as again:
        again.tile = [(t[0], t[1], t[2], f"{again.mode};16L") for t in again.tile]
        low = np.asarray(again)
    return high * 256 + low


def _decode_tiff(data: bytes, name: str) -> np.ndarray:
    """First page of a TIFF file; channels moved last."""
    import tifffile  # comes with scikit-image; needed for TIFF files only

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        _refuse_pixels((page.imagewidth, page.imagelength), name)
        array = page.asarray()
    if array.ndim == 3 and array.shape[0] in (3, 4) and array.shape[2] not in (3, 4):
        array = np.moveaxis(array, 0, -1)
    return array


def to_uint8_rgb(array: np.ndarray, name: str = "picture") -> np.ndarray:
    """Any image array -> uint8 RGB [H, W, 3].

    Grey is repeated, alpha is dropped. Values other than 8 bits are scaled so that the 1st and
    the 99.8th percentile of the whole image (all channels together) become 0 and 255.
    """
    if array.ndim == 2:
        array = array[..., np.newaxis]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise UserError(f"{name}: an array of shape {array.shape} is not grey, RGB or RGBA")
    array = array[..., : 3 if array.shape[2] >= 3 else 1]
    array = scale_to_uint8(array)
    return np.ascontiguousarray(np.broadcast_to(array, array.shape[:2] + (3,)))


def scale_to_uint8(array: np.ndarray) -> np.ndarray:
    """uint8 unchanged; bool to 0/255; anything else by its own percentiles (see above).

    A flat image becomes zeros; where nearly all pixels are equal (the percentiles coincide),
    the full range is used instead.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    values = np.nan_to_num(array.astype(np.float32))
    if values.size == 0:
        return values.astype(np.uint8)
    low, high = np.percentile(values, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if high <= low:
        low, high = values.min(), values.max()
    if high <= low:
        return np.zeros(array.shape, np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def decode_mask(data: bytes, name: str) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Decode one mask image, non-zero inside (in any colour; alpha does not count).

    Returns (patch, (y, x), (height, width)): the bool patch [h, w] of the mask's bounding box,
    its corner, and the size of the image. An empty mask gives a patch of [0, 0]. Cutting the
    patch out at once keeps images of many nuclei fast.
    """
    try:
        if data[:4] not in (b"II*\0", b"MM\0*"):
            with Image.open(io.BytesIO(data)) as picture:
                _refuse_pixels(picture.size, name)
                if picture.mode in ("1", "L"):
                    box = picture.getbbox()
                    size = (picture.height, picture.width)
                    if box is None:
                        return np.zeros((0, 0), bool), (0, 0), size
                    return np.asarray(picture.crop(box)) != 0, (box[1], box[0]), size
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: not a readable image ({error})") from None
    array = decode_picture(data, name)
    if array.ndim == 3:
        array = array[..., : 3 if array.shape[2] >= 3 else 1].any(axis=-1)
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if not rows.size:
        return np.zeros((0, 0), bool), (0, 0), array.shape
    patch = array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 0
    return patch, (int(rows[0]), int(columns[0])), array.shape
