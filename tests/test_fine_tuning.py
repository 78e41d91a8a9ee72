"""Fine-tuning: what it changes and leaves, from Python and from the command line."""

import json

import numpy as np
import pytest

import mrcnn
from mrcnn import fine_tuning
from mrcnn.cli.main import main
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.presets import FineTuneConfig, inference_config
from mrcnn.segmenter import Segmenter
from mrcnn.weights import description
from tests.cli.test_main import SmallNetwork
from tests.support.nucleus_models import Finder, FixedModel, segmenter


@pytest.fixture
def corrected(tmp_path, rng):
    """A training set of two images of two bright squares each."""
    labels = np.zeros((64, 64), np.uint8)
    labels[8:24, 10:26], labels[36:52, 30:46] = 1, 2
    for number in range(2):
        image = rng.integers(0, 60, (64, 64)).astype(np.uint8) + 120 * (labels > 0)
        mrcnn.add_to_training_set(tmp_path / "set", str(number), image, labels)
    return tmp_path / "set"


def small_weights(folder):
    """A weight file of a small network, and its description; returns its path."""
    from mrcnn.model import MaskRCNN

    config = inference_config(SmallNetwork)()
    MaskRCNN("inference", config, str(folder)).save_weights(folder / "cells.h5")
    known = description.describe(config, ("cell",), {"min_score": 0.1}, "cells")
    description.write(description.own_file(folder / "cells.h5"), known)
    return folder / "cells.h5"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def quick(monkeypatch):
    """Small crops, and a network that finds two squares in what is rehearsed."""
    monkeypatch.setattr(FineTuneConfig, "IMAGE_MIN_DIM", 64)
    monkeypatch.setattr(FineTuneConfig, "IMAGE_MAX_DIM", 64)
    monkeypatch.setattr(FineTuneConfig, "IMAGES_PER_GPU", 1)
    monkeypatch.setattr(fine_tuning, "load", lambda path: Segmenter(FixedModel(), ("cell",)))


def values_of(path):
    import h5py

    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


def test_from_the_command_line(corrected, weights, quick, tmp_path, capsys):
    before, bytes_before = values_of(weights), weights.read_bytes()
    data = ["--images", str(corrected / "images"), "--labels", str(corrected / "labels")]
    logs = ["--logs", str(tmp_path / "logs"), "--weights", str(weights)]
    tune = ["train", "--fine-tune", *data, *logs, "--steps", "2", "--precision", "float32"]
    assert main([*tune, "--json"]) == 0
    [run] = (tmp_path / "logs").iterdir()
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 2 and told["checkpoint"] == str(run / "mask_rcnn_cells_0001.h5")
    assert description.read(run / "model.json") == description.beside(weights)
    assert weights.read_bytes() == bytes_before and not list(run.glob("state*"))
    after = values_of(run / "mask_rcnn_cells_0001.h5")
    assert after.keys() == before.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert any("mrcnn_mask" in name for name in changed)
    assert any("res4" in name for name in changed) and any("res5" in name for name in changed)
    assert not any("moving" in name for name in changed)  # the statistics of the batch norms


def test_none_of_the_way_are_the_old_weights(corrected, weights, quick, tmp_path):
    new = mrcnn.fine_tune(
        corrected / "images",
        corrected / "labels",
        weights,
        steps=1,
        logs=tmp_path,
        recipe=fine_tuning.Recipe(way=0),
    )
    old, found = values_of(weights), values_of(new)
    assert all(np.array_equal(old[name], found[name]) for name in old)


def test_cancelled_it_leaves_nothing(corrected, weights, quick, tmp_path):
    seen = []

    def cancel(done, total):
        seen.append((done, total))
        if len(seen) > fine_tuning.REHEARSED:  # the run's folder is there by now
            assert list((tmp_path / "logs").glob("cells*/model.json"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mrcnn.fine_tune(
            corrected / "images",
            corrected / "labels",
            weights,
            logs=tmp_path / "logs",
            steps=7,
            progress=cancel,
        )
    assert set(seen) == {(0, 7)}
    assert not list((tmp_path / "logs").iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "3"], "--epochs has no effect with --fine-tune"),
        (["--config", "OBJECT_SIZE=9"], "--config has no effect with --fine-tune"),
        (["--weights", "imagenet"], "imagenet cannot be fine-tuned"),
    ],
)
def test_flags_without_effect_are_refused(flags, message, capsys):
    data = ["--images", "a", "--labels", "b", "--weights", "nucleus"]
    assert main(["train", "--fine-tune", *data, *flags]) == 2
    assert message in capsys.readouterr().err


def test_rehearsal_without_fine_tuning_is_refused(capsys):
    data = ["--images", "a", "--labels", "b", "--weights", "nucleus"]
    assert main(["train", *data, "--rehearse", "c"]) == 2
    assert "--rehearse needs --fine-tune" in capsys.readouterr().err


def test_weights_without_description_are_refused(corrected, tmp_path):
    (tmp_path / "bare.h5").touch()
    with pytest.raises(UserError, match="no description bare.json"):
        mrcnn.fine_tune(corrected / "images", corrected / "labels", tmp_path / "bare.h5")


# ---- Rehearsal ---------------------------------------------------------------------------------


class Blind(Finder):
    """Finds nothing."""

    def detect_patches(self, images, probabilities=False, scales=None):
        return [{"scores": np.zeros(0), "patches": []} for _ in images]


def test_what_is_rehearsed_has_the_detections_as_labels(corrected):
    found = fine_tuning.rehearsal(segmenter(FixedModel()), corrected / "images")
    layers, class_ids = found.load_layers(1)
    assert len(found.image_ids) == 2 and class_ids.tolist() == [1, 1]
    assert layers[..., 0].max() == 2 and layers[5, 8, 0] and layers[35, 45, 0]
    assert found.class_names == ["BG", "nucleus"]


def test_nothing_found_is_nothing_rehearsed(corrected):
    assert fine_tuning.rehearsal(segmenter(Blind()), None) is None
    with pytest.raises(UserError, match="finds nothing in these images"):
        fine_tuning.rehearsal(segmenter(Blind()), corrected / "images")


def test_rehearsed_images_are_few_and_not_large(tmp_path, monkeypatch):
    for number in range(5):
        mrcnn.add_to_training_set(
            tmp_path, str(number), np.full((9, 30), number), np.zeros((9, 30), int)
        )
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(fine_tuning, "REHEARSED", 2)
    monkeypatch.setattr(fine_tuning, "MIDDLE", 20)
    with pytest.warns(MRCNNWarning, match="1 images are not rehearsed; .*broken.png"):
        images = fine_tuning.images_of(tmp_path / "images")
    assert [fine_tuning.middle(one).max() for one in images] == [0, 3]
    assert fine_tuning.middle(images[0]).shape[:2] == (9, 20)
