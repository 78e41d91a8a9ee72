"""Reading the images of a Dataset for training: caches, and tolerance of unreadable files.

Shapes: H W pixels, C channels, L label layers, N instances, K classes.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from mrcnn.data.dataset import Dataset
from mrcnn.data.disk_cache import DiskCache, cache_entry
from mrcnn.errors import MRCNNWarning, UserError, quoted
from mrcnn.pixels import molding

if TYPE_CHECKING:
    from mrcnn.config import Config

# A few broken files should not stop a night's training; more of them mean that something is wrong
# with the data set as a whole.
MAX_BROKEN_IMAGES = 5


def image_name(dataset: Any, image_id: int) -> str:
    """What to call an image in a message: its path, or else its id within its source."""
    info = dataset.image_info[image_id]
    return str(info.get("path") or info.get("id", image_id))


def active_classes(dataset: Any, image_id: int) -> np.ndarray:
    """Int32 [K], 1 for the classes that the image's source data set annotates."""
    active = np.zeros([dataset.num_classes], np.int32)
    active[dataset.source_class_ids[dataset.image_info[image_id]["source"]]] = 1
    return active


class WrongClasses(UserError):
    """Class ids that nothing right can be learnt from; unlike a broken image, they end training."""


def check_classes(dataset: Any, num_classes: int) -> None:
    """Raise WrongClasses unless the data set has NUM_CLASSES classes and every image's source is
    that of some class."""
    if dataset.num_classes != num_classes:
        names = ", ".join(map(str, dataset.class_names[:6]))
        more = ", ..." if dataset.num_classes > 6 else ""
        raise WrongClasses(
            f"the data set has {dataset.num_classes} classes ({quoted(names + more)}), but "
            f"NUM_CLASSES = {num_classes}: set NUM_CLASSES = {dataset.num_classes}"
        )
    for image_id in dataset.image_ids:
        source = dataset.image_info[image_id]["source"]
        if source not in dataset.source_class_ids:
            raise WrongClasses(
                f"{image_name(dataset, image_id)}: its source {quoted(source)} has no class: call "
                "add_class with it"
            )


def check_class_ids(dataset: Any, image_id: int, class_ids: np.ndarray) -> None:
    """Raise WrongClasses unless all of an image's class ids are numbers of the data set's classes
    other than 0, the background; crowds have negative ones."""
    numbers = np.abs(class_ids)
    wrong = class_ids[(numbers < 1) | (numbers >= dataset.num_classes)]
    if len(wrong):
        reason = (
            "0 is the background"
            if wrong[0] == 0
            else f"NUM_CLASSES = {dataset.num_classes}, so that {dataset.num_classes - 1} is the "
            "last; use map_source_class_id if it is the source's own number"
        )
        raise WrongClasses(
            f"{image_name(dataset, image_id)}: load_mask gives the class id {wrong[0]}, but "
            f"{reason}"
        )


class BrokenImages:
    """Notes which images cannot be read: a warning for each, an error when there are many."""

    def __init__(self, dataset: Any, images: int | None = None):
        """images: how many may be asked for; by default all that the data set has."""
        self.dataset = dataset
        self.images = len(dataset.image_ids) if images is None else images
        self.ids: set[int] = set()
        self._lock = threading.Lock()

    def report(self, image_id: int, error: Exception) -> None:
        """Warn once per image. Raises UserError after MAX_BROKEN_IMAGES, or when none is left."""
        with self._lock:
            if image_id in self.ids:
                return
            self.ids.add(image_id)
            count = len(self.ids)
        message = (
            f"{image_name(self.dataset, image_id)}: cannot be used "
            f"({type(error).__name__}: {error})"
        )
        if count > MAX_BROKEN_IMAGES or count >= self.images:
            raise UserError(
                f"{message}; {count} of {self.images} images failed, fix or remove them"
            ) from error
        warnings.warn(f"{message}; another image takes its place", MRCNNWarning, stacklevel=2)


class ImageCache:
    """Decoded images, the least recently used dropped first; safe to share among threads."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self._items: OrderedDict[int, tuple[np.ndarray, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> tuple[np.ndarray, ...] | None:
        """The arrays stored under `key`, or None."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: int, arrays: tuple[np.ndarray, ...]) -> None:
        """Store arrays, making room first; an item larger than the whole cache is not kept."""
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            if key in self._items or size > self.max_bytes:
                return
            while self.bytes + size > self.max_bytes:
                _, old = self._items.popitem(last=False)
                self.bytes -= sum(array.nbytes for array in old)
            self._items[key] = arrays
            self.bytes += size


def load_arrays(
    dataset: Any, image_id: int, config: Config
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read one image, standardised as the configuration asks for, and its label layers.

    Returns image [H, W, IMAGE_CHANNEL_COUNT], layers [H, W, L] in the smallest unsigned type that
    holds the instance numbers, class_ids int32 [N]. Raises ValueError where these do not fit
    together, WrongClasses where the ids are not classes of the data set.
    """
    image = np.asarray(dataset.load_standardised(image_id, config))
    layers, class_ids = dataset.load_layers(image_id)
    class_ids = np.asarray(class_ids, np.int32).reshape(-1)
    if layers.shape[:2] != image.shape[:2]:
        raise ValueError(f"the image is {image.shape[:2]} pixels, its masks {layers.shape[:2]}")
    if layers.size and layers.max() > len(class_ids):
        raise ValueError(f"instance {layers.max()} but only {len(class_ids)} class ids")
    check_class_ids(dataset, image_id, class_ids)
    layers = layers.astype(np.min_scalar_type(len(class_ids)))
    # A copy where it is a part of a larger array, which a cache would keep alive.
    image = np.ascontiguousarray(molding.adapt_channels(image, config.IMAGE_CHANNEL_COUNT))
    return image, layers, class_ids


class ImageReader:
    """Reads images of a data set through a cache in memory and, if asked for, one on disk.

    config: CACHE_MB bounds the memory, CACHE_DIR names the folder, IMAGE_CHANNEL_COUNT and the keys
        of `exposure.measure` say what kind of image is wanted.
    """

    def __init__(self, dataset: Any, config: Any):
        self.dataset = dataset
        self.config = config
        self.memory = ImageCache(int(config.CACHE_MB * 2**20))
        self.disk = _disk_cache(dataset, config.CACHE_DIR)

    def read(self, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what `load_arrays` does, and raise what it raises."""
        arrays = self.memory.get(image_id)
        if arrays is None:
            arrays = self._read_from_disk(image_id)
            self.memory.put(image_id, arrays)
        return arrays

    def _read_from_disk(self, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # The key comes first: files that change while they are read will not match it next time.
        entry = self.disk and cache_entry(self.dataset, image_id, self.config)
        arrays = self.disk.get(*entry) if entry else None
        if arrays is None:
            arrays = load_arrays(self.dataset, image_id, self.config)
            if entry:
                self.disk.put(*entry, arrays)
        return arrays


def _disk_cache(dataset: Any, folder: str | os.PathLike | None) -> DiskCache | None:
    if folder is None:
        return None
    if getattr(type(dataset), "fingerprint", Dataset.fingerprint) is Dataset.fingerprint:
        warnings.warn(
            f"CACHE_DIR has no effect: {type(dataset).__name__} does not override fingerprint()",
            MRCNNWarning,
            stacklevel=4,
        )
        return None
    return DiskCache(folder)


def warn_dropped(dataset: Any, image_id: int, count: int, limit: int) -> None:
    """Warn that an image has more instances than MAX_GT_INSTANCES allows."""
    warnings.warn(
        f"{image_name(dataset, image_id)}: {count} instances, {count - limit} of them left out of "
        f"training; raise MAX_GT_INSTANCES = {limit}",
        MRCNNWarning,
        stacklevel=3,
    )
