"""Corrections become a training set, in which nothing is lost."""

import numpy as np
import pytest
import tifffile

from mrcnn.data.labelled import LabelledImages
from mrcnn.data.pairs import check_pairs, find_pairs
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.training import corrections
from mrcnn.training.corrections import add_to_training_set

LABELS = np.zeros((40, 50), int)
LABELS[3:9, 4:12], LABELS[20:30, 20:30] = 1, 70_000


@pytest.mark.parametrize("kind", ["bool", "uint8", "uint16", "int64", "float16", "float32"])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_what_is_added_is_what_training_reads(kind, channels, tmp_path, rng):
    image = rng.integers(0, 100, (40, 50, *channels)).astype(kind)
    added = add_to_training_set(tmp_path, "cells", image, LABELS)
    assert added.name == "cells" and added.objects == 2
    pairs = find_pairs(tmp_path / "images", tmp_path / "labels")
    assert not check_pairs(pairs)
    dataset = LabelledImages()
    dataset.load_pairs(pairs)
    dataset.prepare()
    read = np.asarray(dataset.open_image(0)[:, :])
    colours = image[..., :3] if channels in ((3,), (4,)) else image.reshape(40, 50, 1)
    np.testing.assert_array_equal(read.astype(float), colours.astype(float))
    layers, class_ids = dataset.load_layers(0)
    np.testing.assert_array_equal(layers.max(-1) > 0, LABELS > 0)
    assert class_ids.tolist() == [1, 1]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "Cells.ome.png").touch()  # somebody's own, of that name to a reader
    names = [
        add_to_training_set(tmp_path, name, np.full((40, 50), value), LABELS).name
        for value, name in enumerate(["cells", "cells", "../a/b:c.", "", "cells"])
    ]
    assert names == ["cells_2", "cells_3", "_a_b_c", "image", "cells_4"]
    values = [tifffile.imread(tmp_path / "images" / f"{name}.tif").max() for name in names]
    assert values == [0, 1, 2, 3, 4]
    assert {path.name for path in tmp_path.iterdir()} <= {"images", "labels", ".mrcnn-lock"}


@pytest.mark.parametrize(
    "image, labels, message",
    [
        (np.zeros((40, 51)), LABELS, "labels of shape .40, 50. for an image of 40 x 51 pixels"),
        (np.zeros((40, 50, 2)), LABELS, "not an image"),
        (np.zeros((40, 50), complex), LABELS, "complex128 are not an image"),
        (np.zeros((40, 50)), LABELS / 2, "whole numbers"),
        (np.zeros((40, 50)), LABELS - 1, "from 0"),
    ],
)
def test_what_does_not_fit_is_one_line(image, labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        add_to_training_set(tmp_path / "new", "cells", image, labels)
    assert not (tmp_path / "new").exists()


def test_labels_without_their_image_do_not_stay(tmp_path, monkeypatch):
    def full(path, image):
        raise UserError(f"{path}: could not be written: No space left on device")

    monkeypatch.setattr(corrections, "_write_image", full)
    with pytest.raises(UserError, match="No space left"):
        add_to_training_set(tmp_path, "cells", LABELS, LABELS)
    assert not list((tmp_path / "labels").iterdir())


def test_one_number_for_two_objects_is_said(tmp_path):
    labels = LABELS.copy()
    labels[35:38, 1:4] = 1
    with pytest.warns(MRCNNWarning, match="'cells': separate pieces .* one object; numbers: 1$"):
        assert add_to_training_set(tmp_path, "cells", labels, labels).objects == 2
