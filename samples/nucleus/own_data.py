"""Pictures and labels of the user's own as a data set, and its split for training and validation.

    pairs = find_pairs("pictures", "labels")
    subsets = split(pairs, val_share=0.2, seed=0)
    dataset = OwnDataset()
    dataset.load_pairs([pair for pair in pairs if subsets[pair.name] == "train"])
    dataset.prepare()

Shapes: H, W pixels, N instances, L label layers.
"""

from __future__ import annotations

import csv
import hashlib
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.data.dataset import Dataset
from mrcnn.errors import MRCNNWarning, UserError
from samples.nucleus.own_pairs import Pair, check_pairs, find_pairs, picture_name, warn_of
from samples.nucleus.own_pictures import file_state, read_picture
from samples.nucleus.pictures import to_uint8_rgb

__all__ = ["OwnDataset", "Pair", "check_pairs", "find_pairs", "read_split", "split", "write_split"]

SUBSETS = ("train", "val")


# ---- Training and validation pictures ----------------------------------------------------------


def split(pairs: Sequence[Pair], val_share: float, seed: int) -> dict[str, str]:
    """Say "train" or "val" of every picture's name.

    val_share: about this share of many pictures becomes "val", from 0 to below 1; 0 means none.
    A picture's name and the seed decide, whatever other pictures there are, so that new ones do not
    move the old. Only where all would be in one subset, the one nearest to the other changes over.
    Raises UserError for another share.
    """
    if not 0 <= val_share < 1:
        raise UserError(
            f"a share of {val_share:g} for validation: it must be 0, or between 0 and "
            "1, such as 0.2"
        )
    places = {pair.name: _place(pair.name, seed) for pair in pairs}
    subsets = {name: _subset(place, val_share) for name, place in places.items()}
    if subsets and "train" not in subsets.values():
        subsets[max(places, key=places.__getitem__)] = "train"
    if val_share and len(subsets) > 1 and "val" not in subsets.values():
        subsets[min(places, key=places.__getitem__)] = "val"
    return subsets


def _place(name: str, seed: int) -> float:
    """A number from 0 to 1 that looks random, but is the same on every machine."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _subset(place: float, val_share: float) -> str:
    return "val" if place < val_share else "train"


def write_split(path: str | Path, subsets: Mapping[str, str]) -> None:
    """A CSV file with the columns image and subset, sorted by name."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "subset"])
        writer.writerows(sorted(subsets.items()))


def read_split(
    path: str | Path,
    pairs: Sequence[Pair],
    val_share: float,
    seed: int,
) -> dict[str, str]:
    """What `write_split` wrote, or a person has made of it: "train" or "val" of every picture.

    Names may have their ending, and columns may be separated by semicolons. Pictures that the file
    does not list come where `split` puts new ones, with a warning; rows of pictures that are not
    there are left out, with a warning.
    Raises UserError where the file cannot be read, names other subsets, puts a picture in both,
    lists none of the pictures, or where none is left to train on.
    """
    names = dict.fromkeys(pair.name for pair in pairs)
    listed = _listed(Path(path), names)
    new = [name for name in names if name not in listed]
    if len(new) == len(names):
        raise UserError(
            f"{path}: lists none of the {len(names)} pictures (first: {new[0]}); "
            "remove it, and the pictures are divided anew"
        )
    warn_of(
        [name for name in listed if name not in names],
        f"{path}: rows of pictures that are not there, left out",
    )
    warn_of(new, f"{path}: pictures that it does not list, divided at random")
    subsets = {name: listed.get(name) or _subset(_place(name, seed), val_share) for name in names}
    if "train" not in subsets.values():
        raise UserError(f"{path}: leaves no picture for training")
    return subsets


def _listed(path: Path, names: Mapping[str, Any]) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not in UTF-8; save it as CSV UTF-8") from None
    lines = text.splitlines()
    delimiter = ";" if lines and ";" in lines[0] else ","
    rows = csv.DictReader(lines, delimiter=delimiter)
    if not {"image", "subset"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}: the first line must name the columns image and subset")
    listed: dict[str, str] = {}
    for row in rows:
        image, subset = (row["image"] or "").strip(), (row["subset"] or "").strip().lower()
        if subset not in SUBSETS:
            raise UserError(
                f"{path}, line {rows.line_num}: the subset of {image} is "
                f"{subset or 'missing'}; it must be train or val"
            )
        name = image if image in names else picture_name(PurePosixPath(image))
        if listed.setdefault(name, subset) != subset:
            raise UserError(f"{path}, line {rows.line_num}: {image} is in both subsets")
    return listed


# ---- The data set ------------------------------------------------------------------------------


class OwnDataset(Dataset):
    """One class, "nucleus" (class id 1), as in `dsb2018.NucleusDataset`."""

    def __init__(self, class_map: Any = None) -> None:
        super().__init__(class_map)
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def load_pairs(self, pairs: Iterable[Pair]) -> None:
        """Add pictures; their names are their ids."""
        self.add_class("nucleus", 1, "nucleus")
        for pair in pairs:
            self.add_image("nucleus", image_id=pair.name, path=str(pair.image), pair=pair)

    def _pair(self, image_id: int) -> Pair:
        return self.image_info[image_id]["pair"]

    def is_labelled(self, image_id: int) -> bool:
        """True: a pair has labels, though they may be those of a picture without nuclei."""
        return True

    def fingerprint(self, image_id: int) -> str:
        """A digest of the names, sizes and times of the files, or of COCO's annotations."""
        pair = self._pair(image_id)
        states = f"{file_state(pair.image)}\n{pair.labels.state()}"
        return hashlib.sha256(states.encode()).hexdigest()

    def load_image(self, image_id: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]; deeper pictures are scaled, see `pictures.to_uint8_rgb`."""
        path = self._pair(image_id).image
        return to_uint8_rgb(read_picture(path), str(path))

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The truth as label layers int32 [H, W, L] and class ids int32 [N], all 1.

        Warns, once each, of label images with but one value and of outlines without a pixel.
        Raises UserError where the labels cannot be read or have another size than the picture.
        """
        pair = self._pair(image_id)
        layers, count = pair.labels.layers(pair.size(), self._warn_once)
        return layers, np.ones(count, np.int32)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Instance masks bool [H, W, N] and class ids int32 [N]."""
        from mrcnn.pixels.masks import layers_to_masks

        layers, class_ids = self.load_layers(image_id)
        return layers_to_masks(layers, len(class_ids)), class_ids

    def image_reference(self, image_id: int) -> str:
        """The picture's name."""
        return self.image_info[image_id]["id"]

    def _warn_once(self, topic: str, text: str) -> None:
        with self._lock:  # loading may go on in several threads
            first = topic not in self._warned
            self._warned.add(topic)
        if first:
            warnings.warn(text, MRCNNWarning, stacklevel=2)
