"""The console command, run for real: help, errors, and training from a described network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from skimage.io import imsave

from mrcnn.cli import detect, detectors
from mrcnn.cli.main import EXAMPLES, FLAGS, SUMMARIES, command_of, main
from mrcnn.errors import Terminated, UserError
from mrcnn.presets import MicrographConfig, inference_config
from mrcnn.weights import description
from tests.support.nucleus_models import FixedModel


@pytest.fixture
def labelled(tmp_path, rng):
    """Six images of two bright squares each, and their label images."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for number in range(6):
        label = np.zeros((64, 64), np.uint8)
        label[8:24, 10:26], label[36:52, 30:46] = 1, 2
        image = rng.integers(0, 60, (64, 64)).astype(np.uint8) + 120 * (label > 0).astype(np.uint8)
        imsave(images / f"{number}.png", image, check_contrast=False)
        imsave(labels / f"{number}.png", label, check_contrast=False)
    return images, labels


def test_every_command_has_a_summary_examples_and_flags():
    assert SUMMARIES.keys() == EXAMPLES.keys() == FLAGS.keys()
    assert all(callable(command_of(name)) for name in SUMMARIES)


def test_the_list_of_commands_needs_no_keras(tmp_path):
    code = (
        "import sys\n"
        "from mrcnn.cli.main import build_parser\n"
        "build_parser(['--help']).format_help()\n"
        "heavy = {'keras', 'tensorflow', 'scipy', 'matplotlib', 'pandas', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", SUMMARIES)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"mrcnn {command} " in capsys.readouterr().out


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "mrcnn", "export", "--size", "512"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--output" in done.stderr


def test_detect(labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectors, "inference_model", lambda options, app, chosen: FixedModel())
    found = tmp_path / "found"
    assert main(["detect", str(labelled[0]), "--output", str(found)]) == 0
    table = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: table[name].strip() for name in ("Images", "Nuclei", "Skipped")} == {
        "Images": "6",
        "Nuclei": "12",
        "Skipped": "0",
    }
    assert table["Labels"].strip() == f"{found}/labels/" and "per image" in table["Seconds"]
    assert {path.name for path in found.iterdir()} >= {"index.html", "labels", "measurements.csv"}
    assert not (found / "submit.csv").exists()


def test_detect_for_scripts(labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectors, "inference_model", lambda options, app, chosen: FixedModel())
    detect = ["detect", str(labelled[0]), "--output", str(tmp_path / "found")]
    assert main([*detect, "--quiet"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("12 nuclei. Written to") and output.out.count("\n") == 1
    assert output.err == ""
    assert main([*detect, "--json"]) == 0  # all is there already
    again = json.loads(capsys.readouterr().out)
    assert (again["images"], again["objects"], again["images_this_time"]) == (6, 12, 0)
    (labelled[0] / "broken.png").write_bytes(b"rubbish")
    assert main([*detect, "--overwrite", "--json"]) == 2
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["command"], found["images"], found["objects"]) == ("detect", 6, 12)
    assert found["error"] == "1 image failed" and list(found["skipped"]) == [
        str(labelled[0] / "broken.png")
    ]
    assert found["files"].keys() == again["files"].keys() and found["seconds_per_image"] > 0
    assert Path(found["files"]["measurements"]).is_file()
    assert "broken.png: skipped: is not an image" in output.err and "detect 6/6" not in output.err


@pytest.mark.parametrize(
    "raised, code, error",
    [
        (KeyboardInterrupt, 130, "interrupted"),
        (Terminated, 143, "stopped by SIGTERM"),
        (UserError("a.png: is no\nimage"), 2, "a.png: is no\\nimage"),
        (OSError("No space left"), 2, "No space left"),
        (ZeroDivisionError("by zero"), None, "ZeroDivisionError('by zero')"),
    ],
)
def test_every_end_is_a_document(raised, code, error, monkeypatch, capsys):
    def ends(options, app):
        print("a note")
        raise raised

    monkeypatch.setattr(detect, "detect", ends)
    if code is None:
        with pytest.raises(type(raised)):
            main(["detect", "a.png", "--json"])
    else:
        assert main(["detect", "a.png", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": error, "command": "detect"}


@pytest.mark.parametrize("arguments", [["--json"], ["detect", "--json", "--tile", "x"]])
def test_wrong_flags_are_a_document_too(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 2 and output.err.startswith("usage: mrcnn")
    assert json.loads(output.out)["error"] in output.err


def test_version(monkeypatch, capsys):
    assert main(["--version"]) == 0
    output = capsys.readouterr().out
    assert f"Backend      {keras.backend.backend()} " in output and keras.__version__ in output
    assert "Device       " in output
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--version", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["command"] == "version" and known["device"] is None
    assert "jax is not installed: pip install jax" in known["problem"]


def test_completion():
    pytest.importorskip("argcomplete")
    line = "mrcnn detect --over"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mrcnn 8>&1 9>&2 >/dev/null 2>&1"],
        env={
            **os.environ,
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_IFS": "\n",
        },  # fmt: skip
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["--overwrite"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["detect"], "detect needs images"),
        (["detect", "nowhere.png"], "nowhere.png"),
        (["train", "--images", "a", "--labels", "b"], "train needs --weights"),
        (["train", "--weights", "nucleus", "--images", "a"], "train needs --labels"),
        (["evaluate", "--images", "a"], "evaluate needs --labels"),
        (["evaluate", "--images", "a", "--labels", "b", "--set", "size=3"], "size=3: expected"),
        (["export", "--weights", "none.h5", "--output", "x.onnx"], "none.h5: no such file"),
        (["compress", "--weights", "last", "--rank", "3", "--output", "x.h5"], "no checkpoint"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mrcnn: ")]
    assert len(lines) == 1 and message in lines[0]


class SmallNetwork(MicrographConfig):
    """A network of another application: its sizes and classes are in its description alone."""

    NAME = "cells"
    TOP_DOWN_PYRAMID_SIZE = 16
    RPN_CONV_CHANNELS = 16
    FPN_CLASSIF_FC_LAYERS_SIZE = 32
    MASK_CONV_CHANNELS = 16
    OBJECT_SIZE = 24
    IMAGE_MIN_SCALE = 1.0
    PRECISION = "float32"


@pytest.mark.parametrize(
    "batch, message",
    [
        ("3", "--batch-size 3 cannot be divided among --devices 64"),
        ("64", "GPU_COUNT = 64 (--devices): this process has"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_one_line(labelled, batch, message, capsys):
    images, labels = map(str, labelled)
    train = ["train", "--images", images, "--labels", labels, "--weights", "nucleus"]
    assert main([*train, "--logs", images, "--devices", "64", "--batch-size", batch]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_training_takes_the_network_from_the_description(labelled, tmp_path, capsys):
    from mrcnn.model import MaskRCNN

    images, labels = labelled
    start = tmp_path / "cells.h5"
    config = inference_config(SmallNetwork)()
    MaskRCNN("inference", config, str(tmp_path)).save_weights(start)  # faster made than a training
    known = description.describe(config, ("cell",), {"min_score": 0.1}, "cells")
    description.write(description.own_file(start), known)
    logs = ["--logs", str(tmp_path / "logs")]
    data = ["--images", str(images), "--labels", str(labels)]
    small = ["--config", "IMAGE_MIN_DIM=64", "--config", "IMAGE_MAX_DIM=64"]
    steps = ["--steps", "1", "--batch-size", "1", "--precision", "float32"]
    train = ["train", *data, *logs, *small, *steps, "--schedule", "joint"]
    assert main([*train, "--weights", str(start), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Training all: to epoch 1 of 1" in printed
    assert "Images      5 for training, 1 for validation\nEpochs      1\n" in printed
    assert "Loss        " in printed and "cells_0001.h5\n" in printed
    [run] = (tmp_path / "logs").iterdir()
    assert run.name.startswith("cells")
    written = json.loads((run / description.RUN_FILE).read_text())
    assert written["classes"] == ["cell"] and written["plural"] == "cells"
    assert written["config"]["TOP_DOWN_PYRAMID_SIZE"] == 16
    assert written["config"]["OBJECT_SIZE"] == 24
    assert written["postprocessing"] == {"min_score": 0.1}
    assert written["training"]["config"] == ["IMAGE_MIN_DIM=64", "IMAGE_MAX_DIM=64"]
    scored = tmp_path / "scored"
    evaluate = ["evaluate", *data, *logs, "--precision", "float32", "--limit", "1"]
    assert main([*evaluate, "--weights", "last", "--output", str(scored), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 1 and document["output"] == str(scored)
    metrics = json.loads((scored / "metrics.json").read_text())
    assert metrics["images"] == 1 and metrics["postprocessing"]["min_score"] == 0.1
    assert "by_kind" in metrics and not metrics["by_kind"]
