"""The base class of data sets: images, instance masks and class names behind one interface.

Shapes: N instances, L label layers, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn.config import Config
from mrcnn.errors import UserError, quoted, reason_of
from mrcnn.files import require_regular
from mrcnn.pixels.exposure import measure, standardise, to_rgb
from mrcnn.pixels.masks import masks_to_layers
from mrcnn.pixels.molding import adapt_channels


class Dataset:
    """A list of images with instance masks (matterport: ``utils.Dataset``).

    A sub-class fills it with ``add_class`` and ``add_image``, overrides ``load_mask`` (and
    ``load_image`` where the images are not plain files), and ``prepare()`` is called once before
    use::

        class CellDataset(Dataset):
            def load_cells(self, folder):
                self.add_class("cells", 1, "cell")
                for path in sorted(Path(folder).glob("*.png")):
                    self.add_image("cells", image_id=path.stem, path=path)

            def load_mask(self, image_id):
                ...
                return masks, class_ids

    Attributes set by ``prepare``: num_classes, class_ids, class_names, num_images, image_ids,
    class_from_source_map, image_from_source_map, sources, source_class_ids.
    """

    def __init__(self, class_map: Any = None) -> None:
        self._image_ids = np.array([], int)
        self.image_info: list[dict[str, Any]] = []
        # Class 0 is the background, which belongs to every source.
        self.class_info: list[dict[str, Any]] = [{"source": "", "id": 0, "name": "BG"}]
        self.source_class_ids: dict[str, list[int]] = {}

    # ---- Filling -------------------------------------------------------------------------------

    def add_class(self, source: str, class_id: Any, class_name: str) -> None:
        """Add a class under the id that its source gives it; adding it again does nothing.

        Raises:
            UserError: the source's name has a dot (dots join source and id).
        """
        if "." in source:
            raise UserError(f'source name "{source}" has a dot in it: choose another')
        known = {(info["source"], info["id"]) for info in self.class_info}
        if (source, class_id) not in known:
            self.class_info.append({"source": source, "id": class_id, "name": class_name})

    def add_image(self, source: str, image_id: Any, path: Any, **kwargs: Any) -> None:
        """Add an image; further keyword arguments are kept in its ``image_info`` entry."""
        self.image_info.append({"id": image_id, "source": source, "path": path, **kwargs})

    def prepare(self, class_map: Any = None) -> None:
        """Number the classes and images and build the look-up tables; call after filling.

        class_map is accepted and not used, as in matterport.
        """
        self.num_classes = len(self.class_info)
        self.class_ids = np.arange(self.num_classes)
        self.class_names = [info["name"].split(",")[0] for info in self.class_info]
        self.num_images = len(self.image_info)
        self._image_ids = np.arange(self.num_images)
        self.class_from_source_map = _numbers_by_source(self.class_info)
        self.image_from_source_map = _numbers_by_source(self.image_info)
        self.sources = list(dict.fromkeys(info["source"] for info in self.class_info))
        self.source_class_ids = {
            source: [
                i for i, info in enumerate(self.class_info) if i == 0 or info["source"] == source
            ]
            for source in self.sources
        }

    def append_data(self, class_info: Any, image_info: Any) -> None:
        """Build maps from external ids to ours, for classes with a "map" and images with a "ds".

        Both arguments are accepted and not used, as in matterport.
        """
        self.external_to_class_id = {
            f"{source}{number}": i
            for i, info in enumerate(self.class_info)
            for source, number in info.get("map", ())
        }
        self.external_to_image_id = {
            f"{info['ds']}{info['id']}": i for i, info in enumerate(self.image_info) if "ds" in info
        }

    # ---- Queries -------------------------------------------------------------------------------

    @property
    def image_ids(self) -> np.ndarray:
        """int [number of images]: the numbers that the methods below take."""
        return self._image_ids

    def map_source_class_id(self, source_class_id: str) -> int:
        """Return our number for a class given as "source.id", for example "coco.12"."""
        return self.class_from_source_map[source_class_id]

    def get_source_class_id(self, class_id: int, source: str) -> Any:
        """Return the id that the class's source gave to our class_id.

        Raises:
            UserError: the class is from another source.
        """
        info = self.class_info[class_id]
        if info["source"] != source:
            raise UserError(f'class {class_id} is from source "{info["source"]}", not "{source}"')
        return info["id"]

    def image_reference(self, image_id: int) -> str:
        """Return a text that tells people which image this is. Override it."""
        return ""

    def source_image_link(self, image_id: int) -> Any:
        """Return the path or address of the image."""
        return self.image_info[image_id]["path"]

    def sampling_weight(self, image_id: int) -> float:
        """Return how often training takes the image, relative to the others. Override it.

        With weight 2 it comes twice as often as with 1, with weight 0 never.
        """
        return 1.0

    def fingerprint(self, image_id: int) -> str | None:
        """Return a string that changes whenever what the image is loaded from changes.

        Config.CACHE_DIR needs it, to tell what is still valid from what has changed since. The base
        class cannot know which files ``load_mask`` reads and returns None: nothing is stored.
        Override it, for example with the sizes and modification times of all files involved.
        """
        return None

    # ---- Loading -------------------------------------------------------------------------------

    def load_image(self, image_id: int) -> np.ndarray:
        """Return the image as [H, W, 3] RGB in its file's dtype; grey repeated, alpha dropped.

        Raises:
            UserError: the file is missing or is not an image.
        """
        from skimage.io import imread

        path = self.image_info[image_id]["path"]
        try:
            if "://" not in str(path):  # scikit-image accepts URLs, too
                require_regular(path)
            image = imread(path)
        except Exception as error:  # of a dozen kinds, by format and damage
            raise UserError(f"cannot read image {path}: {reason_of(error)}") from error
        if image.ndim not in (2, 3) or image.dtype.kind not in "buif":
            raise UserError(
                f"cannot read image {path}: it has shape {image.shape} and values of type "
                f"{image.dtype}, which is neither grey nor colour"
            )
        return adapt_channels(image, 3)

    def open_image(self, image_id: int) -> Any:
        """Return the image as ``Segmenter.detect`` takes it. Override it where the files have
        deeper values than ``load_image`` returns."""
        return self.load_image(image_id)

    def load_standardised(self, image_id: int, config: Config) -> np.ndarray:
        """Return the image [H, W, C], values 0..255, in the exposure that the configuration asks
        for.

        See mrcnn/pixels/exposure.py. Override it where the files have deeper values than
        ``load_image`` returns.
        """
        return standardise(self.load_image(image_id), config)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (masks bool [H, W, N], class_ids int32 [N]). Override it.

        Without an override an image has no instances: masks [0, 0, 0].
        """
        return np.empty([0, 0, 0]), np.empty([0], np.int32)

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the instances as (label layers int32 [H, W, L], class_ids int32 [N]).

        See mrcnn/pixels/masks.py for the layout. This converts what ``load_mask`` returns; override
        it where label maps are available without a stack of masks.

        Raises:
            UserError: there are not as many class ids as masks, not all of them are whole numbers,
                or masks hold values that are not finite.
        """
        masks, class_ids = self.load_mask(image_id)
        masks = np.asarray(masks)
        class_ids = whole_numbers(class_ids, image_id)
        if masks.dtype.kind not in "biu" and not np.isfinite(masks).all():
            raise UserError(f"load_mask({image_id}) gave masks with values that are not finite")
        if masks.ndim != 3 or masks.shape[-1] != len(class_ids):
            raise UserError(
                f"load_mask({image_id}) gave masks of shape {masks.shape} with {len(class_ids)} "
                "class ids: the shape must be [height, width, number of class ids]"
            )
        if masks.shape[-1] == 0:  # matterport's default has no height and width either
            height, width = self.load_image(image_id).shape[:2]
            return np.zeros((height, width, 1), np.int32), class_ids
        return masks_to_layers(masks), class_ids


def whole_numbers(class_ids: Any, image_id: int) -> np.ndarray:
    """Class ids as int32 [N]. Raises UserError where they are not whole numbers of 32 bits.

    matterport's form of none at all is an empty array of floats.
    """
    given = np.asarray(class_ids).reshape(-1)
    try:
        numbers = given.astype(np.int32)
        whole = bool((numbers == given).all())
    except (ValueError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise UserError(
            f"load_mask({image_id}) gave class ids that are not whole numbers: {quoted(given[:9])}"
        )
    return numbers


class ImageDataset(Dataset):
    """A data set whose ``open_image`` returns the files' own values; override that method."""

    def load_image(self, image_id: int) -> np.ndarray:
        """Return uint8 RGB [H, W, 3], as people see it: 8 bits unchanged, deeper values stretched
        between their `exposure.DEEP_PERCENTILES`."""
        return self.load_standardised(image_id, Config())

    def load_standardised(self, image_id: int, config: Config) -> np.ndarray:
        """Return uint8 RGB [H, W, 3] from the files' own values, as detection takes them."""
        image = self.open_image(image_id)
        try:
            return to_rgb(image, measure(image, config))
        except UserError as error:  # of values without a range; it does not name the image
            raise UserError(f"{self.image_reference(image_id)}: {error}") from error


def _numbers_by_source(infos: list[dict[str, Any]]) -> dict[str, int]:
    return {f"{info['source']}.{info['id']}": i for i, info in enumerate(infos)}
