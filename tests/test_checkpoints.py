import datetime

import keras
import numpy as np
import pytest

from mrcnn import checkpoints
from mrcnn.errors import MissingFileError


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/logs/coco20171029T2315/mask_rcnn_coco_0012.h5", ((2017, 10, 29, 23, 15), 12)),
        (r"C:\logs\my_cells20171029T0001\mask_rcnn_my_cells_0001.h5", ((2017, 10, 29, 0, 1), 1)),
        ("/logs/mask_rcnn_coco.h5", None),
        ("/logs/coco20171029T2315/other_0012.h5", None),
        (None, None),
    ],
)
def test_what_a_path_says(path, expected):
    found = checkpoints.run_of(path)
    assert found == (expected and (datetime.datetime(*expected[0]), expected[1]))


def test_new_runs_never_share_a_folder(tmp_path):
    first = checkpoints.new_run_folder(tmp_path, "tiny")
    assert checkpoints.new_run_folder(tmp_path, "tiny") == first  # nothing in it yet
    first.mkdir()
    (first / "mask_rcnn_tiny_0001.h5").touch()
    second = checkpoints.new_run_folder(tmp_path, "tiny")
    assert second != first and checkpoints.run_of(second / "mask_rcnn_tiny_0001.h5")


def test_saving_keeps_the_newest(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="mrcnn_bbox_fc")])
    model.compile(optimizer="sgd", loss="mse")
    for epoch in (1, 2, 3):
        checkpoints.save(model, tmp_path, "tiny", epoch, {"epoch": epoch}, keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["mask_rcnn_tiny_0002.h5", "mask_rcnn_tiny_0003.h5", "state_0003.npz"]
    assert checkpoints.newest(tmp_path).endswith("0003.h5")
    with np.load(tmp_path / "state_0003.npz", allow_pickle=False) as file:
        assert "header" in file.files


def test_find_last_where_there_is_nothing(tmp_path):
    with pytest.raises(MissingFileError, match="train first"):
        checkpoints.find_last(tmp_path / "absent", "tiny")


@pytest.mark.parametrize(
    "stage, epochs_done, expected",
    [
        ({"layers": "all", "learning_rate": 0.1, "epochs": 4}, 2, True),  # interrupted
        ({"layers": "all", "learning_rate": 0.1, "epochs": 9}, 4, True),  # more epochs
        ({"layers": "all", "learning_rate": 0.2, "epochs": 4}, 2, True),  # another rate midway
        ({"layers": "all", "learning_rate": 0.2, "epochs": 9}, 4, False),  # the next stage
        ({"layers": "heads", "learning_rate": 0.1, "epochs": 4}, 2, False),  # other layers
    ],
)
def test_when_the_optimizer_goes_on(stage, epochs_done, expected):
    saved = {"epoch": epochs_done, "stage": {"layers": "all", "learning_rate": 0.1, "epochs": 4}}
    assert checkpoints.continues(saved, stage) == expected
