"""Corrected label maps as a training set: a folder that `mrcnn train` and `fine_tune` take.

    corrections/images/cells.tif    the image's own values
    corrections/labels/cells.tif    every object has its own number, 0 is background

Nothing in the folder is ever overwritten: a second correction of an image gets a new name.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mrcnn.atomic import atomic_path, locked
from mrcnn.data.pairs import image_name
from mrcnn.errors import MRCNNWarning, UserError, quoted
from mrcnn.results.file_names import file_name
from mrcnn.results.result_files import write_label_image

IMAGES, LABELS = "images", "labels"
# Characters that some file system refuses, or that would lead out of the folder.
REFUSED = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]+')
# Number types that are rare in image files, and the types that hold their values.
STORED = {
    "bool": np.uint8,
    "float16": np.float32,
    "float128": np.float64,
    "int64": np.float64,
    "uint64": np.float64,
}


class Added(NamedTuple):
    """A pair of files in a training set."""

    name: str  # of both files, without the extension
    objects: int
    image: Path
    labels: Path


def add_to_training_set(folder: str | os.PathLike, name: str, image: Any, labels: Any) -> Added:
    """Write an image and its labels into a training set.

    Args:
        folder: of the training set; it is created if it does not exist.
        name: of the image; where the folder has that name already, name_2, name_3, ... is used.
        image: [H, W] or [H, W, 3 or 4] of any numbers, or an object that gives this when sliced.
        labels: whole numbers [H, W]; every object has its own number, 0 is background.

    Warns of numbers that several separate pieces share: those count as one object.
    Raises UserError for labels that do not fit, and where the folder cannot be written to.
    """
    pixels = _storable(np.asarray(image[...] if hasattr(image, "shape") else image))
    numbers = _label_map(np.asarray(labels[...] if hasattr(labels, "shape") else labels), pixels)
    warn_of_pieces(numbers, name)
    folder = Path(folder)
    with locked(folder):
        stem = free_name(folder, name)
        added = Added(
            stem,
            len(np.unique(numbers[numbers > 0])),
            folder / IMAGES / f"{stem}.tif",
            folder / LABELS / f"{stem}.tif",
        )
        write_label_image(added.labels, numbers)
        try:
            _write_image(added.image, pixels)
        except BaseException:  # labels without an image would be left
            with contextlib.suppress(OSError):
                added.labels.unlink()
            raise
    return added


def free_name(folder: Path, name: str) -> str:
    """`name` as a file name that no image or labels of a training set have yet."""
    stem = file_name(REFUSED.sub("_", name).strip(". ") or "image")
    taken = {
        image_name(PurePosixPath(path.name)).lower()  # some file systems ignore case
        for part in (IMAGES, LABELS)
        if (folder / part).is_dir()
        for path in (folder / part).iterdir()
    }
    number, found = 1, stem
    while found.lower() in taken:
        number += 1
        found = f"{stem}_{number}"
    return found


def warn_of_pieces(labels: np.ndarray, name: str) -> None:
    """Warn where separate pieces have the same number: with napari's brush two objects easily get
    one number."""
    from skimage.measure import label

    pieces = label(labels, connectivity=2)
    firsts = np.unique(pieces, return_index=True)[1]
    numbers, counts = np.unique(labels.ravel()[firsts], return_counts=True)
    several = numbers[(counts > 1) & (numbers > 0)]
    if several.size:
        listed = ", ".join(map(str, several[:5])) + (", ..." if several.size > 5 else "")
        warnings.warn(
            f"{quoted(name)}: separate pieces that have the same number count as one object; "
            f"numbers: {listed}",
            MRCNNWarning,
            stacklevel=3,
        )


def _storable(image: np.ndarray) -> np.ndarray:
    """An image in a type for files. Raises UserError for what is not an image."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"an array of shape {image.shape} is not an image: [height, width] or [height, width, "
            "1, 3 or 4 channels] is needed"
        )
    if image.dtype.kind not in "buif":
        raise UserError(f"values of type {image.dtype} are not an image: real numbers are needed")
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    return image.astype(STORED.get(image.dtype.name, image.dtype))


def _label_map(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Labels as uint32 [H, W]. Raises UserError where they do not fit the image."""
    if labels.shape != image.shape[:2]:
        raise UserError(
            f"labels of shape {labels.shape} for an image of {image.shape[0]} x {image.shape[1]} "
            "pixels: they must have its height and width"
        )
    if labels.dtype.kind not in "bui":
        raise UserError(f"labels of type {labels.dtype}: whole numbers are needed")
    if labels.size and (labels.min() < 0 or labels.max() >= 2**32):
        raise UserError("labels must be numbers from 0, the background, to 2**32 - 1")
    return labels.astype(np.uint32)


def _write_image(path: Path, image: np.ndarray) -> None:
    """An image [H, W] or [H, W, 3 or 4] as a compressed TIFF."""
    import tifffile

    colours = {"photometric": "rgb"} if image.ndim == 3 else {"photometric": "minisblack"}
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, image, compression="zlib", **colours)
