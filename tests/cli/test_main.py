"""The console command, run for real: help, errors, and training from a described network."""

import json
import subprocess
import sys

import numpy as np
import pytest
from skimage.io import imsave

from mrcnn.cli import commands
from mrcnn.cli.main import EXAMPLES, FLAGS, SUMMARIES, main
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
    assert all(callable(getattr(commands, name)) for name in SUMMARIES)


def test_the_list_of_commands_needs_no_keras(tmp_path):
    code = (
        "import sys\n"
        "from mrcnn.cli.main import build_parser\n"
        "build_parser(['--help']).format_help()\n"
        "heavy = {'keras', 'tensorflow', 'scipy', 'matplotlib', 'pandas'}\n"
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
    monkeypatch.setattr(commands, "inference_model", lambda options, app, chosen: FixedModel())
    found = tmp_path / "found"
    assert main(["detect", str(labelled[0]), "--output", str(found)]) == 0
    assert "12 nuclei. Written to" in capsys.readouterr().out
    assert {path.name for path in found.iterdir()} >= {"index.html", "labels", "measurements.csv"}
    assert not (found / "submit.csv").exists()


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
    assert "Training all: to epoch 1 of 1" in capsys.readouterr().out
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
    assert main([*evaluate, "--weights", "last", "--output", str(scored)]) == 0
    metrics = json.loads((scored / "metrics.json").read_text())
    assert metrics["images"] == 1 and metrics["postprocessing"]["min_score"] == 0.1
    assert "by_kind" in metrics and not metrics["by_kind"]
