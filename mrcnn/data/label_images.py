"""Label images: every instance has a number, or a colour, of its own.

Shapes: H, W pixels of the image, C channels, L label layers, N instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mrcnn.data.labels import NUCLEUS, Warn
from mrcnn.errors import UserError
from mrcnn.files import read_bytes
from mrcnn.images.declared_size import require_declared_size
from mrcnn.images.image_files import LazyImage, open_image, open_images
from mrcnn.pixels.polygons import (
    Size,
)

# More instances than MANY with fewer than FEW_PIXELS each, on average, are not a label image.
MANY, FEW_PIXELS = 200, 4


@dataclass(frozen=True)
class LabelImage:
    """An image in which every instance has a number, or a colour, of its own.

    With a palette, its indices are the numbers. suffix: which image of the file, where it has
    several.
    """

    path: Path
    suffix: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def size(self) -> Size:
        return self._open().shape[:2]

    def of_stack(self, suffixes: Sequence[str]) -> list[LabelImage]:
        """The label images of a stack with these planes: those of the same names, or all in the
        same order. Raises UserError where the file has neither."""
        own = [image.name for image in open_images(self.path)]
        if set(suffixes) <= set(own):
            own = list(suffixes)
        elif len(own) != len(suffixes):
            raise UserError(
                f"{self.path}: labels of {len(own)} planes for an image of {len(suffixes)}"
            )
        return [replace(self, suffix=suffix) for suffix in own]

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        if self.path.is_file():
            require_declared_size(read_bytes(self.path), str(self.path))
        labels, split_up = number_instances(self._open().read_labels(), str(self.path))
        count = int(labels.max(initial=0))
        if split_up:
            warn(
                "binary",
                f"{self.path}: holds only one value besides 0, so its connected "
                "pieces are taken as instances; the same goes for all label images like "
                "it. Nuclei that touch then count as one",
            )
        elif count > 1 and labels.min() > 0:
            warn(
                "background",
                f"{self.path}: no pixel is 0 (black), which stands for the "
                "background; is it a label image?",
            )
        return labels[..., np.newaxis], np.full(count, NUCLEUS, np.int32)

    def state(self) -> str:
        return self._open().state()

    def _open(self) -> LazyImage:
        return open_image(self.path, self.suffix)


def number_instances(array: np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    """The instances of a label image, numbered from 1 to N in the order of its own numbers.

    array: numbers [H, W] or [H, W, 1], or colours [H, W, 3], black being the background.
    Returns int32 [H, W], and True where the image had only one value for several connected pieces,
    which then are the instances. Raises UserError for fractions and negative numbers.
    """
    from skimage.measure import label

    if array.dtype == bool:
        array = array.astype(np.uint8)
    if not array.size:
        raise UserError(f"{name}: holds no pixels")
    if array.dtype.kind not in "uif":
        raise UserError(
            f"{name}: holds values of type {array.dtype}, but a label image has numbers"
        )
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        if not whole.all():
            raise UserError(
                f"{name}: holds {array[~whole][0]:g}, but a label image has whole "
                "numbers, 0 for the background and one for each nucleus"
            )
        array = array.astype(np.int64)
    if array.min(initial=0) < 0:
        raise UserError(
            f"{name}: holds {array.min()}, but a label image has 0 for the background "
            "and a positive number for each nucleus"
        )
    if array.ndim == 3:
        array = _one_number_a_colour(array) if array.shape[2] == 3 else array[..., 0]
    values, labels = np.unique(array, return_inverse=True)
    labels = labels.reshape(array.shape).astype(np.int32) + np.int32(values[0] != 0)
    count, pixels = int(labels.max()), np.count_nonzero(labels)
    if count > MANY and pixels < count * FEW_PIXELS:
        raise UserError(
            f"{name}: {count} values in {pixels} pixels cannot be instances: it is a photograph, "
            "not a label image, or its numbers have been smoothed or compressed with loss"
        )
    if labels.max() == 1:
        pieces, count = label(labels, return_num=True)
        if count > 1:
            return pieces.astype(np.int32), True
    return labels, False


def _one_number_a_colour(array: np.ndarray) -> np.ndarray:
    """[H, W, 3] of 8 or 16 bits to int64 [H, W], black to 0."""
    red, green, blue = np.moveaxis(array.astype(np.int64), -1, 0)
    return red << 32 | green << 16 | blue
