import csv

import numpy as np
import pytest

from mrcnn.cli import detectors, train
from mrcnn.errors import UserError
from samples.nucleus import dsb2018, generalise, nucleus, subsets
from samples.nucleus.kinds import KINDS, LEFT_OUT, ON_PURPLE, SMALL
from samples.nucleus.nucleus import main as run
from samples.nucleus.synthesize import synthesize
from tests.support.nucleus_models import FixedModel, segmenter


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Six images, tissue and fluorescence by turns: fit, fit, tune, tune, val, val."""
    names = synthesize(
        tmp_path / "data", 6, 64, 0, "stage1_train", ["tissue", "fluorescence-small"]
    )
    table = {
        name: {"subset": subset, "kind": kind}
        for name, subset, kind in zip(
            names, ("fit", "fit", "tune", "tune", "val", "val"), 3 * (ON_PURPLE, SMALL), strict=True
        )
    }
    monkeypatch.setattr(subsets, "assigned", lambda: table)
    monkeypatch.setattr(dsb2018, "VAL_IMAGE_IDS", names[4:])
    return tmp_path / "data"


def scores(folder, fold, values):
    (folder / fold).mkdir(parents=True)
    generalise.write_rows(
        folder / fold / generalise.SCORES,
        [{"image_id": name, "score": score} for name, score in values.items()],
    )


def test_every_kind_is_left_out_once():
    left_out = [kind for kinds in LEFT_OUT.values() for kind in kinds]
    assert len(set(left_out)) == len(left_out) and set(left_out) <= set(KINDS)


def test_kinds_are_chosen_by_the_written_table(data):
    tissue = nucleus.load_dataset(str(data), "train", True, [ON_PURPLE])
    rows = [subsets.assigned()[tissue.image_reference(i)] for i in tissue.image_ids]
    assert {row["kind"] for row in rows} == {ON_PURPLE}
    assert sorted(row["subset"] for row in rows) == ["fit", "tune"]


def test_a_kind_that_is_left_out_is_scored_and_nothing_is_run_twice(
    data, tmp_path, small, monkeypatch, capsys
):
    from mrcnn.model import MaskRCNN

    start, output = tmp_path / "start.h5", tmp_path / "out"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    trained = []
    train_in_stages = train.train_in_stages

    def record(model, dataset, *arguments, **named):
        trained.append([dataset.image_reference(i) for i in dataset.image_ids])
        return train_in_stages(model, dataset, *arguments, **named)

    monkeypatch.setattr(train, "train_in_stages", record)
    command = [
        "generalise",
        "--dataset",
        str(data),
        "--weights",
        str(start),
        "--output",
        str(output),
        "--steps",
        "1",
        "--leave-out",
        "tissue",
        "--augment",
        "stain=.5",
    ]
    assert run(command) == 0
    table = subsets.assigned()
    [shown] = trained
    assert [table[name] for name in shown] == [{"subset": "fit", "kind": SMALL}]
    with open(output / "tissue" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {table[row["image_id"]]["subset"] for row in rows} == {"tune", "val"}
    assert {table[row["image_id"]]["kind"] for row in rows} == {ON_PURPLE}
    capsys.readouterr()
    assert run(command) == 0 and len(trained) == 1
    assert "mean of kinds" in capsys.readouterr().out
    # An interrupted fold resumes with its checkpoint: there is nothing left to train.
    (output / "tissue" / "scores.csv").unlink()
    assert run(command) == 0
    assert "Nothing to train" in capsys.readouterr().out
    assert run([*command[:-1], "stain=.6"]) == 2
    assert "holds folds of other settings" in capsys.readouterr().err


def test_the_mean_counts_every_kind_the_same(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    scores(one, "tissue", {"a": 0.5, "b": 0.7})
    scores(one, "large", {"c": 0.9})
    scores(one, generalise.NOTHING, {"d": 0.1})
    scores(other, "tissue", {"a": 0.4, "b": 0.6})
    scores(other, "large", {"c": 0.7})
    lines = generalise.table(one, other).splitlines()
    assert lines[-1].split()[:4] == ["mean", "of", "kinds", "0.7500"]  # (.6 + .9) / 2
    assert "difference +0.1500" in lines[-1]  # (.1 + .2) / 2
    low, high = (float(v) for v in lines[-1].rsplit("(", 1)[1].rstrip(")").split(" to "))
    np.testing.assert_allclose([low, high], 0.15, atol=1e-3)  # all differences of a fold are alike
    assert lines[1].startswith("tissue") and "difference +0.1000" in lines[1]
    [nothing] = [line for line in lines if line.startswith("nothing")]
    assert nothing.split()[1:3] == ["1", "0.1000"]


@pytest.mark.parametrize(
    "text", ["", "image_id\na\n", "image_id,score\na,x\n", "image_id,score\na,nan\n", "\xff"]
)
def test_damaged_scores_are_one_line(tmp_path, text):
    scores(tmp_path, "tissue", {"a": 0.5})
    (tmp_path / "tissue" / "scores.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="scores.csv is damaged.*delete it, and the same command"):
        generalise.table(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_damaged_settings_are_one_line(tmp_path, text):
    facts = {"also": [("a", 0.5)]}
    generalise.check_same_run(tmp_path, facts)
    generalise.check_same_run(tmp_path, facts)
    (tmp_path / "settings.json").write_bytes(text)
    with pytest.raises(UserError, match="settings.json is damaged: delete it if"):
        generalise.check_same_run(tmp_path, facts)


def test_a_fold_with_images_that_cannot_be_scored_is_not_done(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", lambda *_: 0)
    monkeypatch.setattr(detectors, "segmenter", lambda *_: segmenter(FixedModel()))
    tissue = [name for name, row in subsets.assigned().items() if row["kind"] == ON_PURPLE]
    broken = data / "stage1_train" / tissue[1] / "images" / f"{tissue[1]}.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    command = ["generalise", "--dataset", str(data), "--weights", "w", "--leave-out", "tissue"]
    command += ["--output", str(tmp_path / "out")]
    # The only image of its subset, or one of several: neither is left out in silence.
    assert run(command) == 2
    assert tissue[1] in capsys.readouterr().err
    assert not (tmp_path / "out" / "tissue" / "scores.csv").exists()
    broken.write_bytes(whole)
    assert run(command) == 0
    assert (tmp_path / "out" / "tissue" / "scores.csv").exists()


def test_other_images_are_not_compared(tmp_path):
    scores(tmp_path / "one", "tissue", {"a": 0.5})
    scores(tmp_path / "other", "tissue", {"b": 0.5})
    assert "difference" not in generalise.table(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("wrong", ["stian=.5", "stain=much"])
def test_a_wrong_augmentation_is_one_line(data, tmp_path, small, capsys, wrong):
    from mrcnn.model import MaskRCNN

    start = tmp_path / "start.h5"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    assert (
        run(
            [
                "train",
                "--dataset",
                str(data),
                "--subset",
                "fit",
                "--weights",
                str(start),
                "--logs",
                str(tmp_path),
                "--augment",
                wrong,
            ]
        )
        == 2
    )
    assert wrong in capsys.readouterr().err
