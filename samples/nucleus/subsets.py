"""Which image of stage1_train belongs to which subset, as recorded in subsets.csv.

    val    the 25 validation images of matterport's sample, reported once
    tune   80 images that settings are chosen on
    fit    all others: the training images while choosing
    train  fit and tune: the training images of the shipped weights

`tune` holds a fixed number of images of every kind (see kinds.py). The rare kinds have more than
their share: an unseen set of images may well hold more of them, and few images say little about a
kind.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from samples.nucleus.kinds import BRIGHT_FIELD, LARGE, ON_PURPLE, ON_WHITE, SMALL

SUBSETS_FILE = Path(__file__).with_name("subsets.csv")

TUNE_COUNTS = {SMALL: 36, LARGE: 20, ON_PURPLE: 12, ON_WHITE: 8, BRIGHT_FIELD: 4}
TUNE_SEED = 2018


def assign(kinds: Mapping[str, str]) -> dict[str, str]:
    """Assign "tune" or "fit" to every image.

    kinds: image id -> kind, of all labelled images except the validation images.
    """
    subsets = dict.fromkeys(sorted(kinds), "fit")
    rng = np.random.default_rng(TUNE_SEED)
    for kind, count in TUNE_COUNTS.items():
        of_kind = [image_id for image_id in subsets if kinds[image_id] == kind]
        subsets.update(dict.fromkeys(rng.permutation(of_kind)[:count].tolist(), "tune"))
    return subsets


@cache
def assigned() -> dict[str, dict[str, str]]:
    """The rows of subsets.csv: image id -> {"subset": ..., "kind": ...}."""
    with open(SUBSETS_FILE, newline="", encoding="utf-8") as file:
        return {row.pop("image_id"): row for row in csv.DictReader(file)}


def members(subset: str) -> set[str]:
    """Ids of the images of "fit" or "tune"."""
    return {image_id for image_id, row in assigned().items() if row["subset"] == subset}
