"""NucleusDataset: the images and masks of the Kaggle 2018 Data Science Bowl.

Reads Kaggle's layout from folders or straight from Kaggle's zip files (see storage.py).
Shapes: H, W pixels, N nuclei, L label layers.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

ROOT_DIR = str(Path(__file__).resolve().parents[2])
if ROOT_DIR not in sys.path:  # so that the sample runs from any directory
    sys.path.insert(0, ROOT_DIR)

from mrcnn.data.dataset import ImageDataset  # noqa: E402
from mrcnn.errors import MRCNNWarning, UserError  # noqa: E402
from mrcnn.images.declared_size import require_declared_size  # noqa: E402
from mrcnn.images.image_files import decode  # noqa: E402
from mrcnn.pixels.masks import add_to_layers, join_layers  # noqa: E402
from samples.nucleus import subsets  # noqa: E402
from samples.nucleus.storage import Entry, FolderStore, ZipStore, open_subset  # noqa: E402

# Parts of stage1_train, which has no fixed split.
PARTS = ("train", "val", "fit", "tune")

# These 25 images, which matterport's sample lists, are the customary validation set.
VAL_IMAGE_IDS = [
    "0c2550a23b8a0f29a7575de8c61690d3c31bc897dd5ba66caec201d201a278c2",
    "92f31f591929a30e4309ab75185c96ff4314ce0a7ead2ed2c2171897ad1da0c7",
    "1e488c42eb1a54a3e8412b1f12cde530f950f238d71078f2ede6a85a02168e1f",
    "c901794d1a421d52e5734500c0a2a8ca84651fb93b19cec2f411855e70cae339",
    "8e507d58f4c27cd2a82bee79fe27b069befd62a46fdaed20970a95a2ba819c7b",
    "60cb718759bff13f81c4055a7679e81326f78b6a193a2d856546097c949b20ff",
    "da5f98f2b8a64eee735a398de48ed42cd31bf17a6063db46a9e0783ac13cd844",
    "9ebcfaf2322932d464f15b5662cae4d669b2d785b8299556d73fffcae8365d32",
    "1b44d22643830cd4f23c9deadb0bd499fb392fb2cd9526d81547d93077d983df",
    "97126a9791f0c1176e4563ad679a301dac27c59011f579e808bbd6e9f4cd1034",
    "e81c758e1ca177b0942ecad62cf8d321ffc315376135bcbed3df932a6e5b40c0",
    "f29fd9c52e04403cd2c7d43b6fe2479292e53b2f61969d25256d2d2aca7c6a81",
    "0ea221716cf13710214dcd331a61cea48308c3940df1d28cfc7fd817c83714e1",
    "3ab9cab6212fabd723a2c5a1949c2ded19980398b56e6080978e796f45cbbc90",
    "ebc18868864ad075548cc1784f4f9a237bb98335f9645ee727dac8332a3e3716",
    "bb61fc17daf8bdd4e16fdcf50137a8d7762bec486ede9249d92e511fcb693676",
    "e1bcb583985325d0ef5f3ef52957d0371c96d4af767b13e48102bca9d5351a9b",
    "947c0d94c8213ac7aaa41c4efc95d854246550298259cf1bb489654d0e969050",
    "cbca32daaae36a872a11da4eaff65d1068ff3f154eedc9d3fc0c214a4e5d32bd",
    "f4c4db3df4ff0de90f44b027fc2e28c16bf7e5c75ea75b0a9762bbb7ac86e7a3",
    "4193474b2f1c72f735b13633b219d9cabdd43c21d9c2bb4dfc4809f104ba4c06",
    "f73e37957c74f554be132986f38b6f1d75339f636dfe2b681a0cf3f88d2733af",
    "a4c44fc5f5bf213e2be6091ccaed49d8bf039d78f6fbd9c4d7b7428cfcb2eda4",
    "cab4875269f44a701c5e58190a1d2f6fcb577ea79d842522dcab20ccb39b7ad2",
    "8ecdb93582b2d5270457b36651b62776256ade3aaa2d7432ae65c14f07432d49",
]


class NucleusDataset(ImageDataset):
    """One class, "nucleus" (class id 1). Use:

    dataset = NucleusDataset()
    dataset.load_nucleus("/path/to/dsb2018", "train")
    dataset.prepare()
    """

    def load_nucleus(
        self, dataset_dir: str | os.PathLike, subset: str, kinds: Collection[str] | None = None
    ) -> None:
        """Add the images of a subset, sorted by image id.

        dataset_dir: folder that holds `stage1_train/` (or `stage1_train.zip`), `stage1_test/`...
        subset: of stage1_train "train" (all but VAL_IMAGE_IDS), "val" (VAL_IMAGE_IDS), "tune"
            and "fit" (the two parts of "train", see subsets.py), or the name of any folder or
            zip file with the same layout. Images without a masks folder are for detection only.
            Images of val and tune that the copy lacks are skipped with a message.
        kinds: only images of these (see kinds.py), as recorded in subsets.csv; None for all.
        Raises UserError if there is nothing to read.
        """
        self.add_class("nucleus", 1, "nucleus")
        part = subset if subset in PARTS else None
        store = open_subset(dataset_dir, "stage1_train" if part else subset)
        entries = {entry.image_id: entry for entry in store.entries}
        image_ids = _part_of(part, entries) if part else sorted(entries)
        if kinds is not None:
            known = subsets.assigned()
            image_ids = [i for i in image_ids if i in known and known[i]["kind"] in kinds]
        if not image_ids:
            raise UserError(f"{dataset_dir}: no images are left in the subset {subset}")
        for image_id in image_ids:
            entry = entries[image_id]
            self.add_image(
                "nucleus", image_id=image_id, path=store.name(entry.image), entry=entry, store=store
            )

    def _files(self, image_id: int) -> tuple[Entry, FolderStore | ZipStore]:
        info = self.image_info[image_id]
        return info["entry"], info["store"]

    def is_labelled(self, image_id: int) -> bool:
        """True if the image has a masks folder (which may be empty: no nuclei)."""
        return self._files(image_id)[0].masks is not None

    def fingerprint(self, image_id: int) -> str:
        """A digest of the names, sizes and times (zip: checksums) of the image and its masks."""
        entry, store = self._files(image_id)
        members = [entry.image, *(entry.masks or [])]
        states = [f"{member} {store.fingerprint(member)}" for member in members]
        return hashlib.sha256("\n".join(states).encode()).hexdigest()

    def open_image(self, image_id: int) -> np.ndarray:
        """The file's own values [H, W, C], which `Segmenter.detect` takes."""
        entry, store = self._files(image_id)
        return decode(store.read(entry.image), store.name(entry.image))

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The truth as label layers.

        Returns layers int32 [H, W, L] and class ids int32 [N], all 1. Nucleus number i has the
        value i + 1 in exactly one layer; only nuclei that share pixels need a second layer.
        Masks without a pixel are left out. Raises UserError for an image without a masks folder,
        and for a mask whose size is not that of the image.
        """
        entry, store = self._files(image_id)
        if entry.masks is None:
            raise UserError(
                f"{store.name(entry.image)}: has no masks folder beside its images "
                "folder; such an image can be used for detect only"
            )
        layers: list[np.ndarray] = []
        # The first size that a header states, of the image or a mask, is required of all: a file
        # that states another is not decoded.
        size = size_of_header(store.read(entry.image))
        count = 0
        for member in entry.masks:
            patch, (y, x), size = mask_of_size(store.read(member), store.name(member), size)
            if patch.size:
                count += 1
                window = (slice(y, y + patch.shape[0]), slice(x, x + patch.shape[1]))
                try:
                    add_to_layers(layers, size, window, patch, count)
                except UserError as error:
                    raise UserError(f"{store.name(entry.image)}: {error}") from None
        if count < len(entry.masks):
            warnings.warn(
                f"{store.name(entry.image)}: {len(entry.masks) - count} of its masks "
                "are empty and left out",
                MRCNNWarning,
                stacklevel=2,
            )
        if not layers:
            layers = [np.zeros(size or self.load_image(image_id).shape[:2], np.int32)]
        return join_layers(layers), np.ones(count, np.int32)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Instance masks bool [H, W, N] and class ids int32 [N]."""
        from mrcnn.pixels.masks import layers_to_masks

        layers, class_ids = self.load_layers(image_id)
        return layers_to_masks(layers, len(class_ids)), class_ids

    def image_reference(self, image_id: int) -> str:
        """The image's id in the data set."""
        info = self.image_info[image_id]
        if info["source"] == "nucleus":
            return info["id"]
        return super().image_reference(image_id)


def read_mask(data: bytes, name: str) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Read one mask image, non-zero inside (in any colour; alpha does not count).

    Returns (patch, (y, x), (height, width)): the bool patch [h, w] of the mask's bounding box,
    its corner, and the size of the image. An empty mask gives a patch of [0, 0]. Cutting the
    patch out at once keeps images of many nuclei fast.
    """
    inside = decode(data, name, labels=True).any(axis=-1)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not rows.size:
        return np.zeros((0, 0), bool), (0, 0), inside.shape
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return inside[window].copy(), (int(rows[0]), int(columns[0])), inside.shape


def size_of_header(data: bytes) -> tuple[int, int] | None:
    """(H, W) as an image file states it, with its orientation tag applied, without decoding pixels;
    None if it states none."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "JPEG", "BMP")) as image:
            # If a PNG has no tag at its start, Pillow would decode it to look for one at the end.
            looked_up = image.format != "PNG" or "exif" in image.info
            turned = looked_up and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # whatever a broken file causes: decoding it says what is wrong
        return None


def mask_of_size(
    data: bytes, name: str, wanted: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """What `read_mask` returns, for a mask of the wanted size (H, W), or of any size if None.

    Raises UserError for any other size, before decoding if the header states the size.
    """
    _require_size(size_of_header(data), wanted, name)
    require_declared_size(data, name)
    patch, corner, size = read_mask(data, name)
    _require_size(size, wanted, name)
    return patch, corner, size


def _require_size(size: tuple[int, int] | None, wanted: tuple[int, int] | None, name: str) -> None:
    if size is not None and wanted is not None and tuple(size) != tuple(wanted):
        shown = " x ".join(map(str, size))
        raise UserError(f"{name}: {shown} pixels, its image has {wanted[0]} x {wanted[1]}")


def _part_of(part: str, image_ids: Collection[str]) -> list[str]:
    """The images of stage1_train that belong to one of PARTS, sorted."""
    chosen = set(VAL_IMAGE_IDS) if part == "val" else subsets.members("tune")
    if part == "train":
        chosen = set(image_ids) - set(VAL_IMAGE_IDS)
    elif part == "fit":
        chosen = set(image_ids) - set(VAL_IMAGE_IDS) - chosen
    absent = chosen - set(image_ids)
    if absent:
        print(
            f"Skipped {len(absent)} of {len(chosen)} images of {part}: not in the data set "
            f"(first: {min(absent)[:12]}...)",
            file=sys.stderr,
        )
    return sorted(chosen - absent)


def load_dataset(
    dataset_dir: str,
    subset: str,
    labelled: bool = False,
    kinds: Collection[str] | None = None,
) -> NucleusDataset:
    """A prepared NucleusDataset.

    Args:
        dataset_dir: folder or zip file of the data set; subset, kinds: see
            `NucleusDataset.load_nucleus`.
        labelled: require a masks folder for every image.

    Raises UserError if images are missing, or masks that are required.
    """
    dataset = NucleusDataset()
    dataset.load_nucleus(dataset_dir, subset, kinds)
    dataset.prepare()
    bare = [i for i in dataset.image_ids if labelled and not dataset.is_labelled(i)]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(dataset.image_ids)} images in {subset} have no "
            f"masks folder (first: {dataset.image_reference(bare[0])}); such images "
            "can be used for detect only"
        )
    return dataset
