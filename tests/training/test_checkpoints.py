import datetime

import keras
import numpy as np
import pytest

from mrcnn.errors import MissingFileError, UserError
from mrcnn.training import checkpoints, state
from mrcnn.training.averaging import WeightAverage
from mrcnn.weights.weight_files import load_weights


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


def test_the_average_is_saved_and_the_weights_that_train_are_kept(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="mrcnn_bbox_fc")])
    model.compile(optimizer="sgd", loss="mse")
    average = WeightAverage(model, 0.9)
    first = model.get_weights()
    model.set_weights([value + 1 for value in first])
    checkpoints.save(model, tmp_path, "tiny", 1, {"epoch": 1}, None, average)
    for value, old in zip(model.get_weights(), first, strict=True):
        np.testing.assert_array_equal(value, old + 1)

    load_weights(model, tmp_path / "mask_rcnn_tiny_0001.h5")
    for value, old in zip(model.get_weights(), first, strict=True):
        np.testing.assert_array_equal(value, old)
    state.load_state(tmp_path / "state_0001.npz", model)
    for value, old in zip(model.get_weights(), first, strict=True):
        np.testing.assert_array_equal(value, old + 1)


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
        ({"layers": "all", "learning_rate": 0.1, "epochs": 4, "freeze_bn": True}, 2, False),
    ],
)
def test_when_the_optimizer_goes_on(stage, epochs_done, expected):
    saved = {"epoch": epochs_done, "stage": {"layers": "all", "learning_rate": 0.1, "epochs": 4}}
    assert checkpoints.continues(saved, stage) == expected


@pytest.mark.parametrize(
    "seconds, rate, expected",
    [
        (59.0, 0.1, True),  # interrupted
        (59.0, 0.2, True),  # another rate midway
        (60.0, 0.1, True),  # more time
        (60.0, 0.2, False),  # the next stage
    ],
)
def test_when_the_optimizer_of_a_stage_with_a_time_goes_on(seconds, rate, expected):
    stage = {"layers": "all", "learning_rate": 0.1, "epochs": 99, "seconds": 60.0}
    saved = {"epoch": 2, "seconds": seconds, "stage": stage}
    wanted = {**stage, "learning_rate": rate, "seconds": 120.0}
    assert checkpoints.continues(saved, wanted) == expected


def test_two_runs_of_one_minute_claim_two_folders(tmp_path):
    folders = {checkpoints.claim_run_folder(str(tmp_path / "logs"), "a") for _ in range(3)}
    assert len(folders) == 3 and all(folder.is_dir() for folder in folders)


def test_the_folder_that_a_run_wants_is_its_own_where_no_other_has_it(tmp_path):
    wanted = tmp_path / "a20260102T0304"
    assert checkpoints.claim_run_folder(str(tmp_path), "a", wanted) == wanted
    other = checkpoints.claim_run_folder(str(tmp_path), "a", wanted)
    assert other != wanted and other.is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "2"},
        {"epoch": 2.5},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"stage": None},
        {"stage": {"layers": "all"}},
        {"stage": {"layers": 3, "epochs": 2, "learning_rate": 0.1}},
        {"stage_start": []},
        {"plateau": {"divisions": 1}},
    ],
)
def test_damaged_progress_is_one_line(change, tmp_path, monkeypatch):
    stage = {"layers": "all", "epochs": 2, "learning_rate": 0.1}
    progress = {"epoch": 2, "seconds": 1.5, "stage": stage}
    monkeypatch.setattr(checkpoints.state, "read_progress", lambda _: progress)
    assert checkpoints.progress_of(tmp_path, 2) == progress
    monkeypatch.setattr(checkpoints.state, "read_progress", lambda _: progress | change)
    with pytest.raises(UserError, match="state_0002.npz is damaged .* delete it"):
        checkpoints.progress_of(tmp_path, 2)
