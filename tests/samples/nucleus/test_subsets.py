"""The parts of stage1_train that settings are chosen by."""

from collections import Counter

import numpy as np
import pytest

from mrcnn.errors import UserError
from samples.nucleus import subsets
from samples.nucleus.dsb2018 import VAL_IMAGE_IDS, NucleusDataset
from samples.nucleus.kinds import KINDS, kind_of


def ids_of(folder, subset):
    dataset = NucleusDataset()
    dataset.load_nucleus(folder, subset)
    return [info["id"] for info in dataset.image_info]


def test_the_written_assignment():
    rows = subsets.assigned()
    assert Counter(row["subset"] for row in rows.values()) == {"fit": 511, "tune": 80, "val": 24}
    tuned = Counter(rows[i]["kind"] for i in subsets.members("tune"))
    assert tuned == subsets.TUNE_COUNTS
    assert set(tuned) <= set(KINDS)
    assert {i for i, row in rows.items() if row["subset"] == "val"} <= set(VAL_IMAGE_IDS)


def test_it_is_what_the_rule_gives():
    rows = subsets.assigned()
    kinds = {i: row["kind"] for i, row in rows.items() if row["subset"] != "val"}
    assert subsets.assign(kinds) == {i: rows[i]["subset"] for i in kinds}


def test_the_order_of_the_images_does_not_matter():
    rng = np.random.default_rng(0)
    kinds = {f"{i:03}": str(rng.choice(list(subsets.TUNE_COUNTS))) for i in range(300)}
    backwards = dict(reversed(kinds.items()))
    assert subsets.assign(kinds) == subsets.assign(backwards)


@pytest.fixture
def copy(tmp_path):
    """A folder with the names of five images of each subset, and one that nobody knows."""
    from PIL import Image

    names = [sorted(subsets.members(s))[:5] for s in ("fit", "tune", "val")]
    for name in [*np.concatenate(names), "unknown"]:
        folder = tmp_path / "stage1_train" / str(name) / "images"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return tmp_path


def test_fit_and_tune_are_parts_of_train(copy, capsys):
    fit, tune, train, val = (ids_of(copy, s) for s in ("fit", "tune", "train", "val"))
    assert [len(fit), len(tune), len(val)] == [6, 5, 5]
    assert "unknown" in fit  # an image that is in no list is trained on
    assert sorted(fit + tune) == train
    assert not set(val) & set(train)
    assert "Skipped 75 of 80 images of tune" in capsys.readouterr().err


def test_a_copy_without_the_subset_is_an_error(tmp_path):
    (tmp_path / "stage1_train" / "x" / "images").mkdir(parents=True)
    (tmp_path / "stage1_train" / "x" / "images" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="tune"):
        ids_of(tmp_path, "tune")


def test_kinds_of_the_real_images(shared_dir):
    dataset = NucleusDataset()
    dataset.load_nucleus(shared_dir / "dsb2018", "tune")
    dataset.prepare()
    for number in dataset.image_ids[::8]:
        layers, _ = dataset.load_layers(number)
        areas = np.bincount(layers.ravel())[1:]
        kind = kind_of(dataset.load_image(number), areas[areas > 0])
        assert subsets.assigned()[dataset.image_reference(number)]["kind"] == kind
