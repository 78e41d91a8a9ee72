"""Which labelled images are for training and which for validation."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mrcnn.atomic import atomic_path
from mrcnn.data.pairs import Pair, image_name, warn_of
from mrcnn.errors import UserError, quoted
from mrcnn.files import read_bytes

SUBSETS = ("train", "val")


def split(pairs: Sequence[Pair], val_share: float, seed: int) -> dict[str, str]:
    """Return "train" or "val" for every image's name.

    val_share: about this share of many images becomes "val", from 0 to below 1; 0 means none.
    An image's name and the seed decide, whatever other images there are, so that new ones do not
    move the old. Only where all would be in one subset, the one nearest to the other changes sides.
    Raises UserError for other shares.
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
    """Write a CSV file with the columns image and subset, sorted by name."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "subset"])
        writer.writerows(sorted(subsets.items()))


def read_split(
    path: str | Path,
    pairs: Sequence[Pair],
    val_share: float,
    seed: int,
) -> dict[str, str]:
    """What `write_split` wrote, or a person made of it: "train" or "val" for every image.

    Names may have their ending, and columns may be separated by semicolons. Images that the file
    does not list go where `split` puts new ones, with a warning; rows of images that do not exist
    are left out, with a warning.
    Raises UserError where the file cannot be read, names other subsets, puts an image in both,
    lists none of the images, or where none is left to train on.
    """
    names = dict.fromkeys(pair.name for pair in pairs)
    listed = _listed(Path(path), names)
    new = [name for name in names if name not in listed]
    if len(new) == len(names):
        raise UserError(
            f"{path}: lists none of the {len(names)} images (first: {new[0]}); "
            "remove it to divide the images again"
        )
    warn_of(
        [name for name in listed if name not in names],
        f"{path}: rows of images that do not exist, left out",
    )
    warn_of(new, f"{path}: images that it does not list, divided at random")
    subsets = {name: listed.get(name) or _subset(_place(name, seed), val_share) for name in names}
    if "train" not in subsets.values():
        raise UserError(f"{path}: leaves no image for training")
    return subsets


def _listed(path: Path, names: Mapping[str, Any]) -> dict[str, str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not in UTF-8; save it as CSV UTF-8") from None
    try:
        return _listed_in(text, path, names)
    except csv.Error as error:  # fields of more characters than any name has, and the like
        raise UserError(f"{path}: not a readable CSV file ({error})") from None


def _listed_in(text: str, path: Path, names: Mapping[str, Any]) -> dict[str, str]:
    delimiter = ";" if ";" in (text.splitlines() or [""])[0] else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    # Names as `write_split` writes them where they are bytes that are not UTF-8.
    written = {name.encode("utf-8", "backslashreplace").decode(): name for name in names}
    if not {"image", "subset"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}: the first line must name the columns image and subset")
    listed: dict[str, str] = {}
    for row in rows:
        image, subset = (row["image"] or "").strip(), (row["subset"] or "").strip().lower()
        if subset not in SUBSETS:
            raise UserError(
                f"{path}, line {rows.line_num}: the subset of {quoted(image)} is "
                f"{quoted(subset) if subset else 'missing'}; it must be train or val"
            )
        name = written.get(image) or image_name(PurePosixPath(image))
        if listed.setdefault(name, subset) != subset:
            raise UserError(f"{path}, line {rows.line_num}: {quoted(image)} is in both subsets")
    return listed
