"""Decoded images on disk (CACHE_DIR), so that no later run has to decode them again.

One `.npz` file per image, uncompressed and without pickle: the standardised image, its label
layers, the class ids, and the key they were stored under. The key changes with the source files, so
a file with a different key is stale; such a file, and one that is cut short or damaged (npz files
carry checksums), counts as missing and is replaced. Files are replaced in one step, so that any
number of processes may share a folder.

Shapes: H W pixels, C channels, L label layers, N instances.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.files import open_regular

if TYPE_CHECKING:
    from mrcnn.config import Config

# Part of every key: increase it when the arrays of a file change, or the way they are decoded.
FORMAT = 2

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class DiskCache:
    """A folder of decoded images; safe to share among threads and processes.

    Raises UserError where there is no such folder and it cannot be created.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.writable = True
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"CACHE_DIR = {folder}: not a folder, and none can be created there "
                f"({error.strerror or error})"
            ) from None

    def get(self, name: str, key: str) -> Arrays | None:
        """What is stored in the file `name` under `key`, or None.

        Returns (image [H, W, C], layers unsigned [H, W, L], class_ids int32 [N]).
        """
        try:
            with (
                open_regular(self.folder / name) as file,
                np.load(file, allow_pickle=False) as stored,
            ):
                if stored["key"].item() != key:
                    return None
                image, layers, class_ids = (stored[k] for k in ("image", "layers", "class_ids"))
        except Exception:  # no such file, or whatever a damaged one may raise
            return None
        fit = image.ndim == layers.ndim == 3 and image.shape[:2] == layers.shape[:2]
        fit = fit and class_ids.ndim == 1 and class_ids.dtype.kind == "i"
        fit = fit and layers.dtype.kind == "u" and layers.max(initial=0) <= len(class_ids)
        return (image, layers, class_ids) if fit else None

    def put(self, name: str, key: str, arrays: Arrays) -> None:
        """Store arrays in the file `name`. Where that fails, warn once and store no more."""
        if not self.writable:
            return
        try:
            with atomic_path(self.folder / name) as path, open(path, "wb") as file:
                image, layers, class_ids = arrays
                np.savez(file, key=np.array(key), image=image, layers=layers, class_ids=class_ids)
        except UserError as error:
            with self._lock:
                first, self.writable = self.writable, False
            if first:
                warnings.warn(
                    f"CACHE_DIR: {error}; no more images are stored there",
                    MRCNNWarning,
                    stacklevel=2,
                )


def cache_entry(dataset: Any, image_id: int, config: Config) -> tuple[str, str] | None:
    """Where an image of a data set is cached: (file name, key).

    The name says which image it is, and in what form, so that a changed image replaces the old one;
    the key says in which state it was decoded. None where the data set has no fingerprint of it.
    """
    fingerprint = dataset.fingerprint(image_id)
    if fingerprint is None:
        return None
    info, kind = dataset.image_info[image_id], type(dataset)
    place = os.path.abspath(info["path"]) if info.get("path") else ""
    form = (config.IMAGE_CHANNEL_COUNT, config.INTENSITY_PERCENTILES, config.DARK_GROUND)
    identity = (kind.__module__, kind.__qualname__, info["source"], info["id"], place, *form)
    name = hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()[:32]
    return f"{name}.npz", f"{FORMAT} {fingerprint}"
