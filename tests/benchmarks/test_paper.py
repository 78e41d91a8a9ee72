"""The comparison of the paper's variants: what it runs, what it keeps, its table."""

import csv
import json
import types
from pathlib import Path

import pytest

from benchmarks import paper
from mrcnn.errors import UserError


class Application:
    """Stands in for the nucleus application: writes the files that it would."""

    def __init__(self):
        self.calls = []

    def __call__(self, arguments):
        self.calls.append(arguments)
        value = {arguments[i]: arguments[i + 1] for i in range(1, len(arguments) - 1)}
        if arguments[0] == "train":
            run = Path(value["--logs"]) / "nucleus20260101T0000"
            run.mkdir(parents=True, exist_ok=True)
            (run / "mask_rcnn_nucleus_0001.h5").touch()
            (run / "training.csv").write_text("epoch,loss,seconds\n1,2.0,60\n2,1.5,40\n")
        elif arguments[0] == "evaluate":
            folder = Path(value["--output"])
            folder.mkdir(parents=True, exist_ok=True)
            better = 0.1 if "pool" in folder.name else 0.0
            scores = {"a": 0.4 + better, "b": 0.6 + better}
            with open(folder / "metrics.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([("image_id", "score"), *reversed(scores.items())])
            summary = {
                "score": sum(scores.values()) / 2,
                "score_interval": [0.4, 0.7],
                "tp_over_tp_fp_fn": [0.8, 0.7],
                "seconds_per_image": 0.25,
                "complete": True,
                "failed": [],
            }
            (folder / "metrics.json").write_text(json.dumps(summary))


def options(folder, **changes):
    values = {
        "dataset": "data",
        "weights": "nucleus",
        "steps": 100,
        "batch_size": 2,
        "subset": "val",
        "config": ["IMAGE_MAX_DIM=128"],
        "output": folder,
        "limit": None,
        "variants": ("fpn", "pool", "alternating"),
    }
    return types.SimpleNamespace(**{**values, **changes})


def test_every_variant_is_trained_and_scored(tmp_path):
    run = Application()
    table = paper.measure(options(tmp_path), run)
    commands = [call[0] for call in run.calls]
    assert commands == ["train", "evaluate"] * 3 + ["compress", "evaluate"] * 2
    joined = [" ".join(call) for call in run.calls]
    assert all("--subset fit" in text and "--epochs 2 --steps 50" in text for text in joined[:5:2])
    assert all("IMAGE_MAX_DIM=128" in text for text in joined[:5:2])
    assert all("--subset val" in text for text in joined[1::2])
    assert "ROI_POOLING=pool" in joined[2] and "--schedule alternating" in joined[4]
    lines = table.splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + 3 + 2
    assert "| 0.500 (0.400 to 0.700) |  |" in table and "**+0.100** (+0.100 to +0.100)" in table
    assert "+0.000 (+0.000 to +0.000)" in table and "| 1.00 | 0.25 |" in table


def test_what_is_done_is_not_done_again(tmp_path):
    first = Application()
    table = paper.measure(options(tmp_path), first)
    again = Application()
    assert paper.measure(options(tmp_path), again) == table and not again.calls


def test_half_an_evaluation_is_done_again(tmp_path):
    table = paper.measure(options(tmp_path), Application())
    for change in ({"complete": False}, {"failed": ["a"]}):
        path = tmp_path / "pool_scores" / "metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        again = Application()
        assert paper.measure(options(tmp_path), again) == table
        assert [call[0] for call in again.calls] == ["train", "evaluate"]


def test_rows_of_other_images_are_not_compared(tmp_path):
    paper.measure(options(tmp_path), Application())
    path = tmp_path / "pool_scores" / "metrics.csv"
    path.write_text(path.read_text().replace("a,", "c,"))
    with pytest.raises(UserError, match="other images"):
        paper.measure(options(tmp_path), Application())


def test_the_first_row_is_always_the_one_compared_with(tmp_path):
    table = paper.measure(options(tmp_path, variants=("pool",)), Application())
    assert table.splitlines()[4].startswith(f"| {paper.VARIANTS['fpn'].title} |")


def test_an_interrupted_training_goes_on(tmp_path):
    class Cut(Application):
        def __call__(self, arguments):
            super().__call__(arguments)
            if arguments[0] == "train":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paper.measure(options(tmp_path), Cut())
    run = Application()
    paper.measure(options(tmp_path), run)
    assert run.calls[0][run.calls[0].index("--weights") + 1] == "last"
    assert run.calls[2][run.calls[2].index("--weights") + 1] == "nucleus"


def test_a_failing_command_is_one_line(tmp_path, capsys):
    code = paper.main(["--dataset", str(tmp_path / "absent"), "--output", str(tmp_path / "out")])
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "paper.py: nucleus.py train ended with exit code 2"
    with pytest.raises(UserError):
        paper.run_nucleus(["detect", "--dataset", str(tmp_path / "absent"), "--subset", "x"])


def test_steps_are_whole_epochs(tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        paper.main(["--dataset", "data", "--output", str(tmp_path), "--steps", "70"])
    assert refusal.value.code == 2
    assert "70 is not a multiple of 50" in capsys.readouterr().err
