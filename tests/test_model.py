"""The `MaskRCNN` class: modes, files, detection of any images, and looking inside."""

import copy
import os
import pickle
import select

import h5py
import keras
import numpy as np
import pytest

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.model import MaskRCNN
from mrcnn.segmenter import Segmenter
from tests.network.test_defaults import other_settings
from tests.network.test_models import set_weights
from tests.support.tiny import TinyConfig

__all__ = ["other_settings"]


class Pad64Config(TinyConfig):
    IMAGES_PER_GPU = 2
    IMAGE_RESIZE_MODE = "pad64"
    IMAGE_MIN_DIM = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = MaskRCNN("inference", Pad64Config(), str(tmp_path_factory.mktemp("logs")))
    set_weights(model.keras_model)
    return model


def make_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_any_number_of_images_of_any_sizes(model):
    images = [
        make_image(64, 64),
        make_image(40, 100, 1),
        make_image(64, 64, 2),
        make_image(64, 64, 3),
    ]
    with pytest.warns(MRCNNWarning, match="DETECTION_MAX_INSTANCES"):
        results = model.detect(images)
    assert len(results) == 4
    for image, result in zip(images, results, strict=True):
        count = len(result["scores"])
        assert count and result["rois"].shape == (count, 4)
        assert result["masks"].shape == (*image.shape[:2], count)
        assert (result["class_ids"] > 0).all()
        assert (result["rois"][:, 2:] <= image.shape[:2]).all() and (result["rois"] >= 0).all()
        [alone] = model.detect([image])
        np.testing.assert_array_equal(alone["rois"], result["rois"])
        np.testing.assert_allclose(alone["scores"], result["scores"], atol=1e-4)
    assert model.detect([]) == []


def test_warning_counts_what_is_dropped(model):
    with pytest.warns(MRCNNWarning) as caught:
        results = model.detect(
            [make_image(40, 100, 1), make_image(64, 64, 2), make_image(64, 64, 3)]
        )
    full = [r for r in results if len(r["scores"]) == model.config.DETECTION_MAX_INSTANCES]
    totals = [int(str(w.message).split()[0]) for w in caught]
    assert 1 <= len(totals) <= len(full) and min(totals) > model.config.DETECTION_MAX_INSTANCES


def test_nothing_found(model):
    fresh = MaskRCNN("inference", Pad64Config(), model.model_dir)
    for weight, value in zip(
        fresh.keras_model.weights, model.keras_model.get_weights(), strict=True
    ):
        weight.assign(value)
    logits = fresh.keras_model.get_layer("mrcnn_class_logits")
    logits.kernel.assign(np.zeros(logits.kernel.shape))
    logits.bias.assign([5.0, 0.0, 0.0])
    [result] = fresh.detect([make_image(30, 50)])
    assert result["masks"].shape == (30, 50, 0) and len(result["rois"]) == 0


def test_weights_round_trip(model, tmp_path):
    path = tmp_path / "mask_rcnn_tiny_0003.h5"
    model.save_weights(path)
    other = MaskRCNN("inference", Pad64Config(), str(tmp_path))
    report = other.load_weights(path)
    assert not report.left_over and not report.initial
    for a, b in zip(model.keras_model.get_weights(), other.keras_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    report = other.load_weights(path, by_name=True, exclude=["mrcnn_mask"])
    assert report.left_over == ["mrcnn_mask"] or "mrcnn_mask" in str(report.summary())


def test_wrong_use_is_one_line(tmp_path):
    with pytest.raises(UserError, match="mode = 'predict'"):
        MaskRCNN("predict", TinyConfig(), str(tmp_path))

    class Crop(TinyConfig):
        IMAGE_RESIZE_MODE = "crop"

    with pytest.raises(UserError, match="training only"):
        MaskRCNN("inference", Crop(), str(tmp_path))
    model = MaskRCNN("inference", TinyConfig(), str(tmp_path))
    with pytest.raises(UserError, match='mode="training"'):
        model.train(None, None, 0.1, 1, "heads")
    with pytest.raises(FileNotFoundError, match="no checkpoint") as caught:
        model.find_last()
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def test_find_last_and_the_run_it_belongs_to(tmp_path):
    model = MaskRCNN("inference", TinyConfig(), str(tmp_path))
    for run, files in {
        "tiny20260101T0000": ["mask_rcnn_tiny_0009.h5"],
        "tiny20260102T1230": ["mask_rcnn_tiny_0001.h5", "mask_rcnn_tiny_0012.h5", "state.npz"],
        "tiny20260103T0000": [],
        "other20260109T0000": ["mask_rcnn_other_0001.h5"],
    }.items():
        (tmp_path / run).mkdir()
        for name in files:
            (tmp_path / run / name).touch()
    last = model.find_last()
    assert last == str(tmp_path / "tiny20260102T1230" / "mask_rcnn_tiny_0012.h5")
    model.set_log_dir(last)
    assert model.epoch == 12 and model.log_dir == str(tmp_path / "tiny20260102T1230")
    assert model.checkpoint_path.format(epoch=13).endswith("mask_rcnn_tiny_0013.h5")
    model.set_log_dir("/somewhere/weights.h5")
    assert model.epoch == 0 and os.path.dirname(model.log_dir) == str(tmp_path)


def test_looking_inside(model):
    keras_model = model.keras_model
    detections = keras_model.get_layer("mrcnn_detection").output
    assert model.ancestor(detections, "ROI").shape == (None, 40, 4)
    assert model.ancestor(detections, "ROI/rpn_anchors:0") is model.ancestor(detections, "ROI")
    assert model.ancestor(detections, "no_such_layer") is None
    layers = model.get_trainable_layers()
    assert {"conv1", "rpn_model", "mrcnn_mask"} <= {layer.name for layer in layers}
    assert model.find_trainable_layer(layers[0]) is layers[0]
    wanted = [
        ("probs", keras_model.get_layer("rpn_class").output),
        ("masks", keras_model.get_layer("mrcnn_mask").output),
    ]
    found = model.run_graph([make_image(64, 64)], wanted)
    assert found["probs"].shape == (1, 1023, 2) and found["masks"].shape == (1, 10, 28, 28, 3)
    assert found["masks"].min() >= 0 and found["masks"].max() <= 1
    with pytest.raises(UserError, match="keras_model takes"):
        model.run_graph([make_image(64, 128)], wanted)


def test_anchors_of_a_shape(model):
    anchors = model.get_anchors((64, 128, 3))
    assert anchors.shape[1] == 4 and model.get_anchors((64, 128, 3)) is anchors
    assert model.anchors.shape == anchors.shape  # in pixels


def test_one_channel_images(tmp_path):
    class Grey(Pad64Config):
        IMAGE_CHANNEL_COUNT = 1
        DETECTION_MAX_INSTANCES = 40

    model = MaskRCNN("inference", Grey(), str(tmp_path))
    colour = make_image(64, 64)
    assert model.detect([colour[..., :1]])[0]["masks"].shape[:2] == (64, 64)


# ---- What other programs do with models ----------------------------------------------------------


def outcome(result):
    return {key: value.tolist() for key, value in result.items()}


def test_a_model_without_first_values_gets_all_of_them_from_a_file(model, tmp_path):
    model.save_weights(tmp_path / "whole.h5")
    bare = MaskRCNN("inference", model.config, tmp_path, first_values=False)
    for name in ("conv1", "res5c_branch2c", "mrcnn_class_conv1", "mrcnn_mask_deconv", "mrcnn_mask"):
        assert model.keras_model.get_layer(name).get_weights()[0].any()
        assert not bare.keras_model.get_layer(name).get_weights()[0].any()
    bare.load_weights(tmp_path / "whole.h5").demand_all()
    for ours, theirs in zip(bare.keras_model.weights, model.keras_model.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        )
    assert outcome(bare.detect([make_image(64, 64)])[0]) == outcome(
        model.detect([make_image(64, 64)])[0]
    )


def test_weights_that_fill_the_network_in_part_do_not_detect(model, tmp_path, monkeypatch):
    model.save_weights(tmp_path / "whole.h5")
    model.save_weights(tmp_path / "part.h5")
    with h5py.File(tmp_path / "part.h5", "r+") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = np.array([b"conv1"])
    monkeypatch.setattr(model.bank, "unfilled", None)
    before = outcome(model.detect([make_image(64, 64)])[0])  # nothing was loaded, as in matterport
    report = model.load_weights(tmp_path / "part.h5", by_name=True)
    with pytest.raises(UserError, match="fills 2 of .* tensors.* leaves .*bn_conv1"):
        report.demand_all()
    for use in (lambda: model.detect([make_image(64, 64)]), lambda: pickle.dumps(model)):
        with pytest.raises(UserError, match=r"layers \(bn_conv1, .* more\) at random values"):
            use()
    model.load_weights(tmp_path / "whole.h5", by_name=True, exclude=["mrcnn_mask"])
    with pytest.raises(UserError, match="leave mrcnn_mask at random values"):
        model.detect([make_image(64, 64)])
    mask = model.keras_model.get_layer("mrcnn_mask")
    kernel, bias = mask.get_weights()
    mask.set_weights([kernel, bias + 1])  # by other means than a file
    model.detect([make_image(64, 64)])
    mask.set_weights([kernel, bias])
    model.load_weights(tmp_path / "whole.h5")
    assert outcome(model.detect([make_image(64, 64)])[0]) == before


def test_a_pickled_detector_finds_the_same(model):
    image = make_image(64, 64)
    detector = Segmenter(model, ("a", "b"), plural="things")
    expected = detector.detect(image)
    again = pickle.loads(pickle.dumps(detector))  # as deepcopy does it
    np.testing.assert_array_equal(again.detect(image).labels, expected.labels)
    assert (again.nouns, again.settings) == (detector.nouns, detector.settings)
    assert again.exposure_config.to_dict() == model.config.to_dict()
    assert copy.copy(model).bank is model.bank


def test_a_model_that_trains_is_not_pickled(model):
    training = copy.copy(model)
    training.mode = "training"
    for use in (pickle.dumps, copy.deepcopy):
        with pytest.raises(UserError, match="cannot be copied or pickled: use save_weights"):
            use(training)


def test_keras_cannot_write_the_whole_model_and_says_what_can(model, tmp_path):
    ways = [
        lambda: model.keras_model.save(tmp_path / "a.keras"),
        lambda: model.keras_model.save(tmp_path / "a.h5"),
        lambda: model.keras_model.to_json(),
        lambda: copy.deepcopy(model.keras_model),
        lambda: keras.saving.save_model(model.keras_model, tmp_path / "a.keras"),
    ]
    for way in ways:
        with pytest.raises(UserError, match=r"save_weights.*mrcnn export") as error:
            way()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.usefixtures("other_settings")
def test_settings_of_keras_for_other_networks_change_nothing(model, tmp_path):
    other = MaskRCNN("inference", model.config, str(tmp_path))
    other.keras_model.set_weights(model.keras_model.get_weights())
    expected, found = (outcome(m.detect([make_image(64, 64)])[0]) for m in (model, other))
    assert found == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_says_what_to_do(model):
    image = make_image(64, 64)
    model.detect([image])
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        ways = (lambda: model.detect([image]), lambda: MaskRCNN("inference", TinyConfig(), "x"))
        for way in ways:
            try:
                way()
            except UserError as error:
                os.write(writing, f"{error}\n".encode())
        os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], 60)[0], "it hangs"
        with open(reading) as said:
            lines = said.read().splitlines()
        assert len(lines) == 2 and all('start method "spawn"' in line for line in lines)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
