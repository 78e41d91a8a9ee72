"""Users' own images and labels as a data set.

    pairs = find_pairs("images", "labels")
    subsets = split(pairs, val_share=0.2, seed=0)
    dataset = LabelledImages()
    dataset.load_pairs([pair for pair in pairs if subsets[pair.name] == "train"], "nucleus")
    dataset.prepare()

Shapes: H, W pixels, N instances, L label layers.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from mrcnn.data.dataset import ImageDataset
from mrcnn.data.pairs import Pair
from mrcnn.errors import MRCNNWarning
from mrcnn.images.image_files import LazyImage
from mrcnn.pixels.masks import layers_to_masks


class LabelledImages(ImageDataset):
    """Images in files with labels in files; one class (class id 1)."""

    def __init__(self, class_map: Any = None) -> None:
        super().__init__(class_map)
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def load_pairs(self, pairs: Iterable[Pair], class_name: str = "object") -> None:
        """Add images; their names are their ids. class_name: of the objects, and of the source."""
        self.add_class(class_name, 1, class_name)
        for pair in pairs:
            self.add_image(class_name, image_id=pair.name, path=str(pair.image), pair=pair)

    def _pair(self, image_id: int) -> Pair:
        return self.image_info[image_id]["pair"]

    def is_labelled(self, image_id: int) -> bool:
        """True: a pair has labels, though they may be those of an image without nuclei."""
        return True

    def fingerprint(self, image_id: int) -> str:
        """A digest of the names, sizes and times of the files, or of COCO's annotations."""
        pair = self._pair(image_id)
        states = f"{pair.open().state()}\n{pair.labels.state()}"
        return hashlib.sha256(states.encode()).hexdigest()

    def open_image(self, image_id: int) -> LazyImage:
        """The image with its file's own values, which `Segmenter.detect` takes."""
        return self._pair(image_id).open()

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The truth as label layers int32 [H, W, L] and class ids int32 [N]: 1, or -1 for a crowd.

        Warns, once each, of label images with only one value and of outlines without a pixel.
        Raises UserError where the labels cannot be read or differ in size from the image.
        """
        pair = self._pair(image_id)
        return pair.labels.layers(pair.size(), self._warn_once)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Instance masks bool [H, W, N] and class ids int32 [N]."""
        layers, class_ids = self.load_layers(image_id)
        return layers_to_masks(layers, len(class_ids)), class_ids

    def image_reference(self, image_id: int) -> str:
        """The image's name."""
        return self.image_info[image_id]["id"]

    def _warn_once(self, topic: str, text: str) -> None:
        with self._lock:  # loading may run in several threads
            first = topic not in self._warned
            self._warned.add(topic)
        if first:
            warnings.warn(text, MRCNNWarning, stacklevel=2)
