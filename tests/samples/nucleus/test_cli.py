"""The nucleus command line, run for real on small synthetic data and a small network."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mrcnn.cli import detectors
from mrcnn.cli import train as training
from mrcnn.cli.detect_images import run_detect
from mrcnn.cli.inputs import of_dataset
from mrcnn.cli.score_images import predictions_of, run_evaluate, ways_of
from mrcnn.errors import UserError
from mrcnn.evaluation.evaluation import Evaluation, figure, paper_figures
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.results import drawing
from samples.nucleus import nucleus
from samples.nucleus.choose import GRID
from samples.nucleus.kinds import KINDS_OF_IMAGES
from samples.nucleus.nucleus import main as run
from samples.nucleus.submission import Submission, SubmissionWriter
from samples.nucleus.synthesize import synthesize
from tests.support.nucleus_models import Finder, FixedModel, segmenter

SCRIPT = Path(nucleus.__file__)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four synthetic images in stage1_train; the same four, one broken, in broken."""
    root = tmp_path_factory.mktemp("data")
    first = synthesize(root, 4, 64, 0, "stage1_train")[0]
    shutil.copytree(root / "stage1_train", root / "broken")
    (root / "broken" / first / "images" / f"{first}.png").write_bytes(b"rubbish")
    return root


@pytest.fixture(scope="module")
def perfect(data, tmp_path_factory):
    """A submission file that holds the truth of stage1_train."""
    path = tmp_path_factory.mktemp("perfect") / "submit.csv"
    dataset = nucleus.load_dataset(str(data), "stage1_train")
    writer = SubmissionWriter(path)
    for i in dataset.image_ids:
        labels = dataset.load_layers(i)[0][..., 0]
        writer.add(dataset.image_reference(i), labels)
    writer.close()
    path.with_name("scores.csv").unlink()
    return path


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "detect",
        "evaluate",
        "choose",
        "generalise",
        "compress",
        "export",
        "synthesize",
    ],
)
def test_help_from_any_directory(command, tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, command, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "examples:" in result.stdout and f"nucleus.py {command} --" in result.stdout


def test_scoring_a_file_does_not_import_keras(data, perfect, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parents[2])!r})\n"
        "from samples.nucleus.nucleus import main\n"
        f"code = main(['evaluate', '--dataset', {str(data)!r}, '--subset', 'stage1_train',"
        f" '--submission', {str(perfect)!r}, '--output', 'out'])\n"
        "assert not {'keras', 'tensorflow', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "evaluate 4/4" in result.stderr and "Competition score" in result.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["detect", "--subset", "x", "--weights", "last"], "detect needs --dataset"),
        (["train", "--dataset", "absent", "--subset", "x"], "train needs --weights"),
        (["detect", "--dataset", "absent", "--subset", "x", "--weights", "last"], "no such folder"),
        (
            ["train", "--dataset", "DATA", "--subset", "y", "--weights", "imagenet"],
            "neither a folder",
        ),
        (
            ["detect", "--dataset", "DATA", "--subset", "stage1_train", "--weights", "absent.h5"],
            "absent.h5: no such file",
        ),
        (
            ["detect", "--dataset", "DATA", "--subset", "stage1_train", "--weights", "imagenet"],
            "train from it first",
        ),
        (
            [
                "train",
                "--dataset",
                "DATA",
                "--subset",
                "stage1_train",
                "--weights",
                "imagenet",
                "--cache",
                __file__,
            ],
            "CACHE_DIR",
        ),
        (
            [
                "train",
                "--dataset",
                "DATA",
                "--subset",
                "stage1_train",
                "--weights",
                "imagenet",
                "--cache",
                "",
            ],
            "CACHE_DIR",
        ),
        (
            [
                "detect",
                "--dataset",
                "DATA",
                "--subset",
                "stage1_train",
                "--weights",
                "last",
                "--set",
                "size=3",
            ],
            "size=3: expected NAME=VALUE",
        ),
        (
            ["choose", "--dataset", "DATA", "--subset", "stage1_train", "--weights", "absent.h5"],
            "absent.h5: no such file",
        ),
        (
            [
                "evaluate",
                "--dataset",
                "DATA",
                "--subset",
                "stage1_train",
                "--submission",
                "absent.csv",
                "--plain",
            ],
            "no effect with --submission",
        ),
        (["synthesize", "--output", "DATA"], "not an empty folder"),
        (
            [
                "train",
                "--dataset",
                "DATA",
                "--subset",
                "stage1_train",
                "--weights",
                "imagenet",
                "--config",
                "ROI_POLING=pool",
            ],
            "did you mean ROI_POOLING",
        ),
        (
            [
                "detect",
                "--dataset",
                "DATA",
                "--subset",
                "stage1_train",
                "--config",
                "POOL_SIZE=seven",
            ],
            "POOL_SIZE = 'seven' is not allowed",
        ),
        (
            ["compress", "--weights", "absent.h5", "--rank", "3", "--output", "x.h5"],
            "absent.h5: no such file",
        ),
    ],
)
def test_wrong_input_is_one_line_and_code_2(arguments, message, data, capsys):
    assert run([a.replace("DATA", str(data)) for a in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["detect", "--limit", "0"],
        ["detect", "--min-confidence", "1.5"],
        ["train", "--seed", "-1"],
        ["train", "--epochs", "many"],
        ["train", "--time-budget", "0"],
        ["train", "--time-budget", "an hour"],
        ["train", "--workers", "0"],
        ["detect", "--tta", "spiral"],
        ["synthesize", "--weights", "last"],
        ["synthesize", "--logs", "logs"],
    ],
)
def test_wrong_flags(arguments):
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 2


def test_flags_may_stand_before_the_command(data, perfect, tmp_path):
    assert (
        run(
            [
                "--dataset",
                str(data),
                "--subset=stage1_train",
                "evaluate",
                "--submission",
                str(perfect),
                "--output",
                str(tmp_path),
                "--no-pictures",
            ]
        )
        == 0
    )


def test_evaluate_a_perfect_file(data, perfect, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        run(
            [
                "evaluate",
                "--dataset",
                str(data),
                "--subset",
                "stage1_train",
                "--submission",
                str(perfect),
                "--output",
                str(out),
            ]
        )
        == 0
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["score"] == metrics["mean_iu"] == metrics["panoptic_quality"] == 1.0
    assert metrics["images"] == 4 and metrics["complete"] and metrics["failed"] == []
    assert metrics["coco_ap"] is None  # needs confidences
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(float(row["ap_95"]) == 1 for row in rows)
    assert {p.stem for p in out.glob("*.png")} == {"worst", *(row["image_id"] for row in rows)}
    assert "TP / (TP + FP + FN)" in capsys.readouterr().out


def test_bad_images_are_named_and_skipped(data, perfect, tmp_path, capsys):
    assert (
        run(
            [
                "evaluate",
                "--dataset",
                str(data),
                "--subset",
                "broken",
                "--submission",
                str(perfect),
                "--output",
                str(tmp_path),
                "--no-pictures",
            ]
        )
        == 2
    )
    errors = capsys.readouterr().err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 3 and len(metrics["failed"]) == 1
    assert f"{metrics['failed'][0]}: skipped" in errors and "1 image failed" in errors
    assert not list(tmp_path.glob("*.png"))


def test_images_absent_from_a_file(data, perfect, tmp_path, capsys):
    lines = perfect.read_text().splitlines()
    first = lines[1].split(",")[0]
    part = tmp_path / "part.csv"
    part.write_text("\n".join([lines[0]] + [n for n in lines if n.startswith(first)]) + "\n")
    arguments = [
        "evaluate",
        "--dataset",
        str(data),
        "--subset",
        "stage1_train",
        "--output",
        str(tmp_path / "out"),
        "--no-pictures",
        "--submission",
    ]
    no_weights = ["--weights", "last", "--logs", str(tmp_path / "none")]  # none are needed
    assert run([*arguments, str(part), *no_weights]) == 0
    assert "3 of 4 images are not in it" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["score"] == 0.25
    part.write_text(lines[0] + "\nother,\n")
    assert run([*arguments, str(part)]) == 2


def test_train_detect_evaluate(data, tmp_path, small, monkeypatch, capsys):
    """The whole way: random weights, two stages, going on, detection, scores."""
    from mrcnn.model import MaskRCNN

    start = tmp_path / "start.h5"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    logs = tmp_path / "logs"
    common = ["--dataset", str(data), "--subset", "stage1_train", "--logs", str(logs)]
    train = ["train", *common, "--steps", "1", "--batch-size", "2"]
    cache = tmp_path / "cache"
    assert (
        run(
            [*train, "--weights", str(start), "--epochs", "2", "--seed", "3", "--cache", str(cache)]
        )
        == 0
    )
    assert len(list(cache.iterdir())) == 4
    output = capsys.readouterr()
    assert "Training heads: to epoch 1 of 2" in output.out
    assert "Training all: to epoch 2 of 2" in output.out
    assert "No validation" in output.err  # the data set has none of the 25 images
    assert run([*train, "--weights", "last", "--epochs", "3"]) == 0
    output = capsys.readouterr()
    assert "Training heads" not in output.out and "to epoch 3 of 3" in output.out
    assert len(list(logs.glob("*/mask_rcnn_nucleus_*.h5"))) == 3
    assert run([*train, "--weights", "last", "--epochs", "3"]) == 0
    assert "Nothing to train" in capsys.readouterr().out

    found = tmp_path / "found"
    assert (
        run(
            [
                "detect",
                *common,
                "--weights",
                "last",
                "--output",
                str(found),
                "--limit",
                "2",
                "--min-confidence",
                "0",
            ]
        )
        == 0
    )
    submission = Submission(found / "submit.csv")
    assert len(submission.image_ids) == 2 == len(list(found.glob("*.png")))
    for image_id in submission.image_ids:
        labels = submission.labels(image_id, (64, 64))  # raises where masks overlap
        assert len(np.unique(labels)) - 1 == len(submission.scores(image_id))

    scores = tmp_path / "scores"
    assert run(["evaluate", *common, "--weights", "last", "--output", str(scores)]) == 0
    metrics = json.loads((scores / "metrics.json").read_text())
    assert metrics["images"] == 4 and metrics["seconds_per_image"] > 0
    assert metrics["postprocessing"] == dataclasses.asdict(DEFAULTS)
    assert metrics["variants"] == ["as it is"]
    again = tmp_path / "again"
    assert (
        run(
            [
                "evaluate",
                *common,
                "--submission",
                str(scores / "submit.csv"),
                "--output",
                str(again),
            ]
        )
        == 0
    )
    second = json.loads((again / "metrics.json").read_text())
    assert second["score"] == metrics["score"] and second["detected"] == metrics["detected"]

    flipped = tmp_path / "flipped"
    assert (
        run(
            [
                "evaluate",
                *common,
                "--weights",
                "last",
                "--output",
                str(flipped),
                "--plain",
                "--min-confidence",
                "0",
                "--tta",
                "flips",
                "--set",
                "min_area=4",
                "--no-pictures",
            ]
        )
        == 0
    )
    metrics = json.loads((flipped / "metrics.json").read_text())
    assert metrics["postprocessing"] == dataclasses.asdict(
        dataclasses.replace(PostProcessing.plain(), min_score=0, min_area=4)
    )
    assert len(metrics["variants"]) == 4 and metrics["images"] == 4

    capsys.readouterr()
    chosen = tmp_path / "chosen"
    assert (
        run(
            [
                "choose",
                *common,
                "--weights",
                "last",
                "--output",
                str(chosen),
                "--limit",
                "2",
                "--set",
                "min_score=0",
            ]
        )
        == 0
    )
    output = capsys.readouterr()
    assert "2 images, start from: min_score=0.0" in output.out and "Chosen: " in output.out
    assert "one at a time" in output.err and "combine" in output.err
    with open(chosen / "choose.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    alone = [row for row in rows if row["stage"] == "alone"]
    assert len(alone) == sum(map(len, GRID.values()))
    [same] = [row for row in alone if row["setting"] == "largest_piece=on"]
    assert float(same["difference"]) == 0 and float(same["min_score"]) == 0


def test_train_on_other_images_too(data, tmp_path, small, monkeypatch, capsys):
    """--also: a folder in Kaggle's layout, and one with images/ and labels/."""
    from skimage.io import imsave

    from mrcnn.model import MaskRCNN

    start = tmp_path / "start.h5"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    synthesize(tmp_path / "other", 2, 64, 5, "drawn")
    own = tmp_path / "own"
    for folder, value in (("images", 90), ("labels", 1)):
        (own / folder).mkdir(parents=True)
        array = np.zeros((64, 64), np.uint8)
        array[20:40, 20:40] = value
        imsave(own / folder / "a.png", array, check_contrast=False)
    mixtures = []
    monkeypatch.setattr(
        training, "train_in_stages", lambda model, dataset, *_, **__: mixtures.append(dataset)
    )
    train = [
        "train",
        "--dataset",
        str(data),
        "--subset",
        "stage1_train",
        "--weights",
        str(start),
        "--logs",
        str(tmp_path / "logs"),
    ]
    assert (
        run([*train, "--also", f"{tmp_path / 'other' / 'drawn'}=.25", "--also", f"{own}=.1"]) == 0
    )
    [mixture] = mixtures
    weights = [mixture.sampling_weight(i) for i in mixture.image_ids]
    np.testing.assert_allclose(weights, [0.65 / 4] * 4 + [0.125] * 2 + [0.1])
    assert mixture.load_image(6).max() == 90 and mixture.load_layers(6)[0].max() == 1
    capsys.readouterr()
    assert run([*train, "--also", "nowhere=.1"]) == 2
    assert "--also nowhere: no such folder" in capsys.readouterr().err
    for wrong in ("nowhere", "nowhere=2", "=.1"):
        with pytest.raises(SystemExit):
            run([*train, "--also", wrong])


def test_train_within_a_time_budget(data, tmp_path, small, capsys):
    """A budget that the first step uses up, as it compiles: a checkpoint after that one step."""
    from mrcnn.model import MaskRCNN

    start, logs = tmp_path / "start.h5", tmp_path / "logs"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    train = [
        "train",
        "--dataset",
        str(data),
        "--subset",
        "stage1_train",
        "--logs",
        str(logs),
        "--steps",
        "50",
        "--batch-size",
        "1",
        "--time-budget",
        "0.001",
    ]
    assert run([*train, "--weights", str(start)]) == 0
    output = capsys.readouterr().out
    assert "Training heads: to minute" in output and "Training all: to minute" in output
    assert output.count("done already") == 1
    assert len(list(logs.glob("*/mask_rcnn_nucleus_*.h5"))) == 1
    assert run([*train, "--weights", "last"]) == 0
    assert capsys.readouterr().out.count("done already") == 2
    assert len(list(logs.glob("*/mask_rcnn_nucleus_*.h5"))) == 1


def test_a_longer_run_goes_on_in_the_stage_it_is_in(data, tmp_path, small, monkeypatch, capsys):
    """And a stage may freeze the batch norms: here the second."""
    from mrcnn.model import MaskRCNN

    monkeypatch.setattr(nucleus.NucleusConfig, "STEPS_PER_EPOCH", 1)
    seen = []

    def train(epochs, stages=(("heads", 0.6), ("all", 1.0, 0.1, True))):
        monkeypatch.setattr(nucleus, "STAGES", stages)
        model = MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path))
        moving = model.keras_model.get_layer("mrcnn_class_bn1").moving_mean
        if epochs > 1:
            model.load_weights(model.find_last())
        layers = model.resumed_layers
        seen.append(np.array(moving))
        nucleus.train(model, str(data), "stage1_train", epochs)
        seen.append(np.array(moving))
        assert model.resumed_layers is None and model.epoch == epochs
        lines = capsys.readouterr().out.splitlines()
        return layers, [
            line for line in lines if line.startswith(("Training", "Resuming", "A new"))
        ]

    assert train(1, (("heads", 1.0),)) == (None, ["Training heads: to epoch 1 of 1"])
    assert (seen[0] != seen[1]).any()
    assert train(3) == (
        "heads",
        [
            "Training heads: to epoch 2 of 3",
            "Resuming with the saved optimizer",
            "Training all: to epoch 3 of 3",
        ],
    )
    # The heads' share of seven epochs is four.
    assert train(7) == (
        "all",
        ["Training all: to epoch 7 of 7", "Resuming with the saved optimizer"],
    )
    assert (seen[4] == seen[5]).all()


class StoppingModel(Finder):
    """Finds nothing, and is interrupted at the second image."""

    calls = 0

    def detect_patches(self, images, probabilities=False, scales=None):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return [{"patches": [], "scores": np.zeros(0)}]


def evaluated(dataset, folder, detector):
    """`run_evaluate` as the command calls it."""
    return run_evaluate(
        dataset,
        folder,
        predictions_of(detector),
        nouns=detector.nouns,
        kinds=KINDS_OF_IMAGES,
        extra=[SubmissionWriter(folder / "submit.csv")],
        ways=ways_of(detector, "a model"),
    )


def test_an_interrupted_run_says_where_its_rows_are(data, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        nucleus.detect(StoppingModel(), str(data), "stage1_train", tmp_path)
    assert "submit.csv.partial" in capsys.readouterr().err
    assert len(Submission(tmp_path / "submit.csv.partial").image_ids) == 1
    assert not (tmp_path / "submit.csv").exists()


def test_an_interrupted_evaluation_keeps_its_scores(data, tmp_path, capsys):
    dataset = nucleus.load_dataset(str(data), "stage1_train")
    with pytest.raises(KeyboardInterrupt):
        evaluated(dataset, tmp_path, segmenter(StoppingModel()))
    assert "scores of the 1 images so far" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 1 and not metrics["complete"]
    assert len(list(tmp_path.glob("*.png"))) == 1


class ThresholdModel(Finder):
    """Finds what is bright; it needs no training, and its patches overlap."""

    def detect_patches(self, images, probabilities=False, scales=None):
        results = []
        for image in images:
            inside = image.mean(axis=-1) > image.mean()
            corners = [(y, x) for y in range(0, 50, 10) for x in range(0, 50, 7)]
            patches = [(y, x, inside[y : y + 12, x : x + 9]) for y, x in corners]
            results.append({"patches": patches, "scores": np.linspace(0.5, 1, len(patches))})
        return results


def test_overlapped_runs_write_what_a_plain_loop_writes(data, tmp_path):
    dataset = nucleus.load_dataset(str(data), "stage1_train")
    plain, detected, scored = (tmp_path / name for name in ("plain", "detected", "scored"))
    writer, evaluation, figures = (
        SubmissionWriter(plain / "submit.csv"),
        Evaluation(KINDS_OF_IMAGES),
        [],
    )
    for i in dataset.image_ids:
        image, truth, image_id = (
            dataset.load_image(i),
            dataset.load_layers(i)[0],
            dataset.image_reference(i),
        )
        result = segmenter(ThresholdModel()).detect(image)
        labels, scores = result.labels, result.scores
        writer.add(image_id, labels, scores)
        title = f"{len(scores)} nuclei   {image_id}"
        drawn = drawing.detections_only(*result.preview(), title)
        drawing.save_png(plain / f"{image_id}.png", drawn)
        row = evaluation.add(image_id, image, truth, labels, scores)
        figures.append(figure(image, truth, labels, scores, row, evaluation.ious[-1]))
    writer.close()

    assert nucleus.detect(ThresholdModel(), str(data), "stage1_train", detected) == []
    names = sorted(path.name for path in plain.iterdir())
    assert len(names) == 6
    assert {*names, "index.html"} == {path.name for path in detected.glob("[!.]*")}
    for name in names:
        assert (plain / name).read_bytes() == (detected / name).read_bytes()

    assert evaluated(dataset, scored, segmenter(ThresholdModel())).failed == {}
    assert (plain / "submit.csv").read_bytes() == (scored / "submit.csv").read_bytes()
    with open(scored / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, evaluation.rows, strict=True):
        assert {**row, "seconds": ""} == {**{k: str(v) for k, v in expected.items()}, "seconds": ""}
    for row, drawn in zip(rows, figures, strict=True):
        with Image.open(scored / f"{row['image_id']}.png") as written:
            np.testing.assert_array_equal(np.asarray(written), drawn)


def test_an_image_that_could_not_be_drawn_is_not_on_the_sheet(data, tmp_path, monkeypatch, capsys):
    dataset = nucleus.load_dataset(str(data), "stage1_train")
    save_png, hidden = drawing.save_png, {dataset.image_reference(0)}

    def save(path, image):
        if path.stem in hidden:
            raise MemoryError
        save_png(path, image)

    monkeypatch.setattr(drawing, "save_png", save)
    detector = segmenter(ThresholdModel())
    scored = evaluated(dataset, tmp_path / "part", detector)
    assert scored.failed.keys() == hidden and "worst.png (the 3 worst)" in scored.result
    with Image.open(tmp_path / "part" / "worst.png") as sheet:
        assert sheet.size == (3 * 480, 480)
    hidden.update(map(dataset.image_reference, dataset.image_ids))
    scored = evaluated(dataset, tmp_path / "none", detector)
    assert len(scored.failed) == 4 and "worst.png" not in scored.result
    assert "Competition score" in capsys.readouterr().out
    assert not list((tmp_path / "none").glob("*.png"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_run_with_one_error(data, tmp_path, capsys):
    (tmp_path / "submit.csv.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="submit.csv: cannot be written .No space"):
        nucleus.detect(ThresholdModel(), str(data), "stage1_train", tmp_path)
    output = capsys.readouterr()
    assert "skipped" not in output.err and "Submission:" not in output.out
    assert not (tmp_path / "submit.csv").exists() and not list(tmp_path.glob("*.png"))


def test_a_broken_image_gets_an_empty_row(data, tmp_path, capsys):
    class Blind(StoppingModel):
        calls = 2

    failed = nucleus.detect(Blind(), str(data), "broken", tmp_path, pictures=False)
    assert len(failed) == 1
    assert sorted(Submission(tmp_path / "submit.csv").image_ids) == sorted(
        p.name for p in (data / "broken").iterdir()
    )


def test_configurations_are_valid():
    config, inference = nucleus.NucleusConfig(), nucleus.NucleusInferenceConfig()
    assert config.exact_pixels and config.BATCH_SIZE == 4
    assert inference.BATCH_SIZE == 1 and inference.IMAGE_RESIZE_MODE == "pad64"
    assert config.MAX_GT_INSTANCES >= 375 and inference.DETECTION_MAX_INSTANCES >= 375


# --- images and the progress line ---------------------------------------------------------


def test_figure_colours():
    image = np.full((40, 60, 3), 200, np.uint8)
    truth, labels = np.zeros((40, 60, 1), int), np.zeros((40, 60), int)
    truth[5:15, 5:15, 0] = 1
    labels[5:15, 5:15] = 4  # the same outline: yellow
    truth[20:30, 20:30, 0] = 2
    labels[20:30, 40:50] = 7
    evaluation = Evaluation(KINDS_OF_IMAGES)
    row = evaluation.add("a", image, truth, labels, np.array([0.9, 0.5]))
    drawn = figure(image, truth, labels, np.array([0.9, 0.5]), row, evaluation.ious[0])
    zoom = drawing.zoom_for(image.shape)
    assert drawn.shape == (40 * zoom + drawing.HEADER_PIXELS, 60 * zoom, 3)

    def colour(y, x):
        return tuple(drawn[int(y * zoom) + drawing.HEADER_PIXELS, x * zoom])

    assert colour(14.75, 10) == drawing.YELLOW
    assert colour(29.75, 25) == drawing.GREEN
    assert colour(29.75, 45) == drawing.RED
    assert colour(35, 5) == (200, 200, 200)


def test_outline():
    labels = np.zeros((5, 6), int)
    labels[:, 1:5] = [1, 1, 2, 2]
    assert drawing.outline(labels)[2].tolist() == [False, True, True, True, True, False]
    whole = drawing.outline(np.ones((5, 5), int))
    assert whole.sum() == 16 and not whole[1:4, 1:4].any()
    assert drawing.outline(np.ones((7, 7), int), 2).sum() == 49 - 9
    assert not drawing.outline(np.zeros((3, 3), int)).any()


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_outline_is_what_erosion_takes_away(thickness):
    rng = np.random.default_rng(thickness)
    labels = rng.integers(0, 4, (6, 7)).repeat(6, 0).repeat(5, 1)
    cross = ndimage.generate_binary_structure(2, 1)
    inner = [ndimage.binary_erosion(labels == label, cross, thickness) for label in (1, 2, 3)]
    np.testing.assert_array_equal(
        drawing.outline(labels, thickness), (labels > 0) & ~np.any(inner, axis=0)
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (33, 20)])
def test_saved_images_decode_to_themselves(shape, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    drawing.save_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as decoded:
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), image)


def test_images_without_nuclei(tmp_path):
    image, nothing = np.full((30, 30, 3), 9, np.uint8), np.zeros((30, 30), int)
    evaluation = Evaluation(KINDS_OF_IMAGES)
    row = evaluation.add("a", image, nothing[..., None], nothing)
    assert row["score"] == 1
    figure(image, nothing[..., None], nothing, None, row, evaluation.ious[0])
    drawing.save_png(tmp_path / "a.png", drawing.detections_only(image, nothing, "none"))
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (120, 120 + drawing.HEADER_PIXELS)


def test_evaluation_summary_means():
    evaluation = Evaluation(KINDS_OF_IMAGES)
    image = np.zeros((10, 10, 3), np.uint8)
    truth = np.zeros((10, 10, 1), int)
    truth[2:4, 2:4] = 1
    evaluation.add("right", image, truth, truth[..., 0], np.array([0.9]), 1.0)
    evaluation.add("missed", image, truth, np.zeros((10, 10), int), np.zeros(0), 3.0)
    summary = evaluation.summary()
    assert summary["score"] == 0.5 and summary["f1"] == [0.5] * 10
    assert summary["pooled_tp_fp_fn"][0] == [1, 0, 1]
    assert summary["pixel_accuracy"] == pytest.approx(196 / 200)
    assert summary["coco_ap"] == pytest.approx(51 / 101)
    assert summary["seconds_per_image"] == 2.0
    assert summary["by_kind"] == {
        "fluorescence, small nuclei": {
            "images": 2,
            "score": 0.5,
            "score_interval": [0.0, 1.0],
            "ap_50": 0.5,
        }
    }
    assert summary["score_interval"] == [0.0, 1.0]
    assert "(95 %: 0.000 to 1.000)" in evaluation.table()


def test_contact_sheet(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, colour in zip(paths, colours, strict=True):
        drawing.save_png(path, np.full((200, 50, 3), colour, np.uint8))
    sheet = drawing.contact_sheet(paths, columns=2, side=100)
    assert sheet.shape == (200, 200, 3)
    corners = [(5, 5), (5, 105), (105, 5), (150, 150)]
    assert [tuple(sheet[c].tolist()) for c in corners] == [*colours, (255, 255, 255)]


def test_groups_of_kinds_are_summed_up_where_several_of_their_kinds_occur():
    evaluation = Evaluation(KINDS_OF_IMAGES)
    dark = np.zeros((60, 60, 3), np.uint8)
    small, large = np.zeros((2, 60, 60, 1), int)
    small[2:6, 2:6], large[2:40, 2:40] = 1, 1
    evaluation.add("a", dark, small, small[..., 0])
    assert set(evaluation.by_kind()) == {"fluorescence, small nuclei"}
    evaluation.add("b", dark, large, np.zeros((60, 60), int))
    group = evaluation.by_kind()["all fluorescence"]
    assert group["images"] == 2 and group["score"] == 0.5 and group["ap_50"] == 0.5
    assert "all stained tissue" not in evaluation.by_kind()


def test_other_networks_train_and_are_remembered(data, tmp_path, small, capsys):
    """A run with changes of the configuration, its checkpoint, and a compressed copy of it."""
    from mrcnn.model import MaskRCNN

    start, logs = tmp_path / "start.h5", tmp_path / "logs"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    common = ["--dataset", str(data), "--subset", "stage1_train", "--logs", str(logs)]
    changes = ["--config", "ROI_POOLING=pool", "--config", "FPN_CLASSIF_FC_LAYERS_SIZE=32"]
    assert (
        run(
            [
                "train",
                *common,
                "--weights",
                str(start),
                "--steps",
                "1",
                "--batch-size",
                "2",
                "--epochs",
                "1",
                "--schedule",
                "joint",
                *changes,
            ]
        )
        == 0
    )
    assert "Training all: to epoch 1 of 1" in capsys.readouterr().out
    [saved] = logs.glob("*/model.json")
    assert json.loads(saved.read_text())["training"] == {
        "preset": None,
        "config": ["ROI_POOLING=pool", "FPN_CLASSIF_FC_LAYERS_SIZE=32"],
        "schedule": "joint",
        "augment": [],
    }
    kinds = []
    build = detectors.inference_config

    def recorded(*arguments):
        kinds.append(build(*arguments))
        return kinds[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors, "inference_config", recorded)
        small_file = tmp_path / "small.h5"
        assert (
            run(
                [
                    "compress",
                    "--weights",
                    "last",
                    "--logs",
                    str(logs),
                    "--rank",
                    "3",
                    "--output",
                    str(small_file),
                ]
            )
            == 0
        )
        assert "Ranks 3 and 3" in capsys.readouterr().out
        assert (
            run(
                [
                    "detect",
                    *common,
                    "--weights",
                    str(small_file),
                    "--limit",
                    "1",
                    "--output",
                    str(tmp_path / "found"),
                ]
            )
            == 0
        )
        exported = tmp_path / "exported"
        assert (
            run(
                [
                    "export",
                    "--weights",
                    str(small_file),
                    "--format",
                    "saved_model",
                    "--size",
                    "64",
                    "--output",
                    str(exported),
                ]
            )
            == 0
        )
        assert json.loads((exported / "metadata.json").read_text())["classes"] == ["nucleus"]
        assert f"Written to {exported}" in capsys.readouterr().out
        found = tmp_path / "figures"
        assert (
            run(
                [
                    "evaluate",
                    *common,
                    "--weights",
                    "last",
                    "--limit",
                    "2",
                    "--figures",
                    "--no-pictures",
                    "--output",
                    str(found),
                ]
            )
            == 0
        )
    assert [k.ROI_POOLING for k in kinds] == ["pool"] * 4
    assert [tuple(k.FPN_CLASSIF_FC_RANKS) for k in kinds] == [(0, 0), (3, 3), (3, 3), (0, 0)]
    assert len(list(found.glob("figure7_*.png"))) == len(list(found.glob("figure8_*.png"))) == 2


def test_alternating_training_by_quarters(data, tmp_path, small, monkeypatch):
    from mrcnn.model import MaskRCNN
    from mrcnn.training import alternating

    start, calls = tmp_path / "start.h5", []
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    monkeypatch.setattr(alternating, "train_alternating", lambda *a: calls.append(a[4:]))
    train = [
        "train",
        "--dataset",
        str(data),
        "--subset",
        "stage1_train",
        "--weights",
        str(start),
        "--logs",
        str(tmp_path),
        "--schedule",
        "alternating",
    ]
    assert run([*train, "--epochs", "8"]) == 0
    assert run([*train, "--epochs", "8", "--time-budget", "2"]) == 0
    assert [(ends, seconds) for ends, _, seconds in calls] == [
        ([2, 4, 6, 8], [None] * 4),
        ([2, 4, 6, 8], [30, 60, 90, 120]),
    ]


def test_alternating_needs_an_epoch_a_step(data, tmp_path, small, capsys):
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
                "stage1_train",
                "--weights",
                str(start),
                "--logs",
                str(tmp_path),
                "--epochs",
                "3",
                "--schedule",
                "alternating",
            ]
        )
        == 2
    )
    assert "3 epochs are too few" in capsys.readouterr().err


def test_figures_of_the_paper():
    image = np.full((20, 30, 3), 200, np.uint8)
    labels = np.zeros((20, 30), np.int32)
    labels[3:9, 4:12], labels[12:18, 20:28] = 1, 2
    truth = np.zeros((20, 30, 1), np.int32)
    truth[2:9, 4:14] = 1
    drawn = paper_figures(image, truth, labels, np.array([0.9, 0.8]), np.array([[0.7, 0.0]]))
    zoom, header = drawing.zoom_for(image.shape), drawing.HEADER_PIXELS
    seven, eight = (drawn[name][header:] for name in ("figure7", "figure8"))
    assert seven.shape == (20 * zoom, 30 * zoom, 3)
    # The frames lie inside their boxes: the lower right corners are not under captions.
    assert tuple(seven[9 * zoom - 1, 14 * zoom - 1]) == drawing.GREEN
    assert tuple(seven[9 * zoom - 1, 12 * zoom - 1]) == drawing.RED
    assert tuple(seven[18 * zoom - 1, 28 * zoom - 1]) == drawing.RED
    assert tuple(seven[15 * zoom, 24 * zoom]) == (200, 200, 200)
    corners = {tuple(eight[y * zoom - 1, x * zoom - 1]) for y, x in ((9, 12), (18, 28))}
    assert len(corners) == 2 and (200, 200, 200) not in corners
    empty = paper_figures(image, truth * 0, labels * 0, None, np.zeros((0, 0)))
    assert (empty["figure8"][header:] == 200).all()


def test_every_format_has_the_same_nuclei(data, tmp_path, monkeypatch, capsys):
    import pandas as pd
    import tifffile

    monkeypatch.setattr(detectors, "inference_model", lambda options, app, chosen: FixedModel())
    found = tmp_path / "found"
    arguments = [
        "detect",
        "--dataset",
        str(data),
        "--subset",
        "stage1_train",
        "--output",
        str(found),
        "--mpp",
        "0.5",
        "--quiet",
        "--format",
    ]
    names = ("submission", "pictures", "labels", "geojson", "coco", "measurements")
    assert run([*arguments, ",".join(names)]) == 0
    assert (
        "pictures, labels/, geojson/, coco.json, measurements.csv, submit.csv"
        in capsys.readouterr().out
    )
    submission = Submission(found / "submit.csv")
    coco = json.loads((found / "coco.json").read_text())
    table = pd.read_csv(found / "measurements.csv")
    assert len(submission.image_ids) == 4 == len(list(found.glob("*.png")))
    assert [image["id"] for image in coco["images"]] == [1, 2, 3, 4]
    assert [a["id"] for a in coco["annotations"]] == list(range(1, 9))
    for number, image_id in enumerate(submission.image_ids, 1):
        labels = submission.labels(image_id, (64, 64))
        assert np.count_nonzero(labels == 1) == 80 and np.count_nonzero(labels == 2) == 108
        np.testing.assert_array_equal(tifffile.imread(found / "labels" / f"{image_id}.tif"), labels)
        features = json.loads((found / "geojson" / f"{image_id}.geojson").read_text())["features"]
        assert [f["properties"]["measurements"]["score"] for f in features] == [0.9, 0.8]
        rows = table[table["image_id"] == image_id]
        assert rows["area"].tolist() == [80, 108] and rows["area_um2"].tolist() == [20, 27]
        assert rows["score"].tolist() == [0.9, 0.8]
        assert [a["area"] for a in coco["annotations"] if a["image_id"] == number] == [80, 108]


def test_only_what_is_asked_for_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectors, "inference_model", lambda options, app, chosen: FixedModel())
    common = ["detect", "--dataset", str(data), "--subset", "stage1_train", "--limit", "1"]
    assert run([*common, "--output", str(tmp_path / "a"), "--format", "labels"]) == 0
    assert [path.name for path in (tmp_path / "a").glob("[!.]*")] == ["labels"]
    assert run([*common, "--output", str(tmp_path / "b")]) == 0
    assert {path.suffix for path in (tmp_path / "b").glob("[!.]*")} == {".csv", ".png", ".html"}
    with pytest.raises(SystemExit):
        run([*common, "--format", "labels,tiff"])
    assert "'tiff' is not one of" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "roifile", None)
    assert run([*common, "--output", str(tmp_path / "c"), "--format", "rois"]) == 2
    assert "pip install roifile" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_an_interrupted_run_keeps_its_table(data, tmp_path):
    class Interrupted(FixedModel):
        calls = 0

        def detect_patches(self, *arguments, **keywords):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().detect_patches(*arguments, **keywords)

    inputs = of_dataset(nucleus.load_dataset(str(data), "stage1_train"))
    with pytest.raises(KeyboardInterrupt):
        run_detect(segmenter(Interrupted()), inputs, tmp_path, ("measurements", "labels", "coco"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"measurements.csv.partial", "labels"}
    assert len((tmp_path / "measurements.csv.partial").read_text().splitlines()) == 1 + 2 * 2
    assert len(list((tmp_path / "labels").iterdir())) == 2
