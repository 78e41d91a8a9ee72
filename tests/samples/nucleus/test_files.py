"""The nucleus command line on people's own images and labels."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from mrcnn.cli import detectors
from mrcnn.results.result_files import write_label_image
from mrcnn.weights import description
from samples.nucleus import nucleus
from samples.nucleus.nucleus import main as run
from samples.nucleus.synthesize import synthesize
from tests.support.nucleus_models import FixedModel

SIZE = nucleus.NucleusConfig.OBJECT_SIZE  # pixels


@pytest.fixture
def fixed(monkeypatch):
    """Two squares in every image."""
    monkeypatch.setattr(detectors, "inference_model", lambda options, app, chosen: FixedModel())


@pytest.fixture
def images(tmp_path, rng):
    """A folder with images of many kinds, and two files that cannot be read."""
    folder = tmp_path / "images"
    (folder / "plate").mkdir(parents=True)
    deep = rng.integers(200, 4000, (64, 70)).astype(np.uint16)
    tifffile.imwrite(
        folder / "deep.tif", deep, resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )  # half a micron
    Image.fromarray(rng.integers(0, 255, (60, 64, 3)).astype(np.uint8)).save(folder / "colour.png")
    stack = rng.integers(0, 4000, (2, 3, 66, 64)).astype(np.uint16)
    tifffile.imwrite(
        folder / "plate" / "stack.ome.tif",
        stack,
        metadata={"axes": "ZCYX", "Channel": {"Name": ["DAPI", "FITC", "bright"]}},
    )
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.tif").write_text("not an image either")
    return folder


def test_a_folder_of_images(images, fixed, tmp_path, capsys):
    found = tmp_path / "found"
    assert run(["detect", str(images), "--output", str(found)]) == 2
    output = capsys.readouterr()
    for name in ("broken.png", "notes.tif"):
        assert f"{images / name}: skipped: " in output.err
    assert "stack.ome.tif: skipped: has 3 channels (1 DAPI, 2 FITC, 3 bright)" in output.err
    assert "3 images failed" in output.err and "Nuclei        4\n" in output.out
    labels = {path.stem: tifffile.imread(path) for path in (found / "labels").iterdir()}
    assert {name: map.shape for name, map in labels.items()} == {
        "deep": (64, 70),
        "colour": (60, 64),
    }
    table = pd.read_csv(found / "measurements.csv")
    deep = tifffile.imread(images / "deep.tif")
    rows = table[table["image_id"] == "deep"]
    for row, label in zip(rows.to_dict("records"), (1, 2), strict=True):
        values = deep[labels["deep"] == label]
        assert row["mean_intensity"] == pytest.approx(values.mean(), rel=1e-5)
        assert row["max_intensity"] == values.max()
        assert row["area_um2"] == row["area"] / 4
    assert table[table["image_id"] == "colour"]["area_um2"].isna().all()
    page = (found / "index.html").read_text()
    assert "deep" in page and "notes.tif" in page
    assert {path.stem for path in found.glob("*.png")} == set(labels)


def test_one_channel(images, fixed, tmp_path, capsys):
    found = tmp_path / "found"
    arguments = [str(images / "plate"), "--format", "measurements", "--output", str(found)]
    assert run(["detect", *arguments, "--channel", "FITC"]) == 0
    by_name = pd.read_csv(found / "measurements.csv")
    stack = tifffile.imread(images / "plate" / "stack.ome.tif")
    assert by_name["max_intensity"].max() <= stack[:, 1].max()
    assert run(["detect", *arguments, "--channel", "2", "--overwrite"]) == 0
    assert pd.read_csv(found / "measurements.csv").equals(by_name)
    capsys.readouterr()
    assert run(["detect", *arguments, "--channel", "mCherry"]) == 2
    assert "DAPI" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "detect needs images, or --dataset and --subset"),
        (["a.png", "--dataset", "."], "not both"),
        (["/nowhere/*.tif"], "/nowhere/*.tif"),
        (["--dataset", ".", "--subset", "a", "--channel", "1"], "--channel is for images"),
        (["."], ""),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys, fixed):
    monkeypatch.chdir(tmp_path)
    assert run(["detect", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out
    assert not list(tmp_path.iterdir())


def test_images_in_tiles_and_forced_settings(images, tmp_path, monkeypatch, capsys):
    seen = []

    class Recorder(FixedModel):
        def detect_patches(self, given, probabilities=False, scales=None):
            seen.append((given[0].shape, scales[0]))
            return super().detect_patches(given)

    monkeypatch.setattr(detectors, "inference_model", lambda options, app, chosen: Recorder())
    arguments = ["detect", str(images / "deep.tif"), "--format", "labels", "--output"]
    assert run([*arguments, str(tmp_path / "a"), "--diameter", str(SIZE / 4), "--tile", "200"]) == 0
    assert len(seen) > 4 and {scale for _, scale in seen} == {4.0}
    assert {shape for shape, _ in seen} == {(50, 50, 3)}
    seen.clear()
    assert run([*arguments, str(tmp_path / "b"), "--mpp", "1", "--invert", "yes"]) == 0
    [(shape, scale)] = seen
    assert shape == (64, 70, 3) and SIZE / 24 <= scale <= 4


# ---- Own labels ----------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    """Six synthetic images with label images, in folders of their own."""
    synthesize(tmp_path, 6, 64, 0, "drawn")
    dataset = nucleus.load_dataset(str(tmp_path), "drawn")
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    for i in dataset.image_ids:
        Image.fromarray(dataset.load_image(i)).save(images / f"cell{i}.png")
        write_label_image(labels / f"cell{i}.tif", dataset.load_layers(i)[0].max(axis=-1))
    return images, labels


def test_own_images_and_labels(labelled, tmp_path, small, capsys):
    from mrcnn.model import MaskRCNN

    images, labels = labelled
    start, logs = tmp_path / "start.h5", tmp_path / "logs"
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    own = ["--images", str(images), "--labels", str(labels), "--logs", str(logs)]
    train = ["train", *own, "--steps", "1", "--batch-size", "2", "--schedule", "joint"]
    assert run([*train, "--weights", str(start), "--epochs", "1", "--val-share", "0.3"]) == 0
    output = capsys.readouterr()
    [folder] = logs.iterdir()
    with open(folder / "split.csv", newline="") as file:
        subsets = {row["image"]: row["subset"] for row in csv.DictReader(file)}
    counts = [list(subsets.values()).count(subset) for subset in ("train", "val")]
    assert sum(counts) == 6 and min(counts) > 0
    assert f"{counts[0]} images for training, {counts[1]} for validation" in output.out
    assert description.read(folder / description.RUN_FILE).classes == ("nucleus",)
    # Going on keeps the split, whatever the share would be.
    before = (folder / "split.csv").read_bytes()
    assert run([*train, "--weights", "last", "--epochs", "2"]) == 0
    assert (folder / "split.csv").read_bytes() == before

    scores = tmp_path / "scores"
    assert (
        run(
            [
                "evaluate",
                *own,
                "--weights",
                "last",
                "--split",
                str(folder / "split.csv"),
                "--output",
                str(scores),
                "--no-pictures",
            ]
        )
        == 0
    )
    metrics = json.loads((scores / "metrics.json").read_text())
    assert metrics["images"] == counts[1]
    assert (scores / "index.html").is_file()


def test_data_flags_are_named(labelled, tmp_path, small, capsys):
    from mrcnn.model import MaskRCNN

    images, labels = map(str, labelled)
    start, logs = tmp_path / "start.h5", ["--logs", str(tmp_path / "logs")]
    MaskRCNN("training", nucleus.NucleusConfig(), str(tmp_path)).save_weights(start)
    for arguments, message in [
        (["train", "--weights", "imagenet", "--images", images], "train needs --labels"),
        (
            [
                "train",
                "--weights",
                "imagenet",
                "--images",
                images,
                "--labels",
                labels,
                "--dataset",
                ".",
            ],
            "not both",
        ),
        (["train", "--weights", "imagenet"], "train needs --dataset"),
        (
            [
                "train",
                "--weights",
                str(start),
                "--images",
                images,
                "--labels",
                labels,
                "--split",
                "/nowhere/split.csv",
                *logs,
            ],
            "/nowhere/split.csv: no such file",
        ),
        (["evaluate", "--images", images, "--labels", str(tmp_path / "absent")], "absent"),
    ]:
        assert run(arguments) == 2
        output = capsys.readouterr().err
        assert message in output and output.count("\n") == 1


def test_labels_that_do_not_fit_are_named(labelled, tmp_path, small, capsys):
    images, labels = map(str, labelled)
    write_label_image(labelled[1] / "cell2.tif", np.ones((9, 9), np.int32))
    own = ["--images", images, "--labels", labels]
    assert run(["train", "--weights", "imagenet", *own]) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and "cell2.tif" in output and "9 x 9" in output
