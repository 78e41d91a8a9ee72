"""The paper's settings, alone and over another configuration."""

import json

import numpy as np
import pytest
from keras import ops

from mrcnn.cli.application import Application
from mrcnn.cli.settings import OLD_FILE, Settings, beside
from mrcnn.config import Config
from mrcnn.config_rules import RULES
from mrcnn.data.examples import crop_scale
from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.network.layers import first_values
from mrcnn.pixels import molding
from mrcnn.presets import PaperConfig
from mrcnn.weights import description
from mrcnn.weights.description import Description
from samples.nucleus import nucleus
from tests.support.tiny import TinyConfig


def test_paper_config_is_valid_and_says_what_the_paper_says():
    config = PaperConfig()
    assert config.BATCH_SIZE * config.TRAIN_ROIS_PER_IMAGE == 128
    assert config.ROI_POSITIVE_RATIO == 0.25 and config.ROI_BACKGROUND_IOU == (0.1, 0.5)
    assert config.LOSS_WEIGHTS["rpn_bbox_loss"] == 10
    assert config.LOSS_WEIGHTS["mrcnn_bbox_loss"] == 1
    assert config.POOL_SIZE == 14 and config.MASK_SHAPE == [14, 14]
    assert set(vars(PaperConfig)) & set(RULES) == {k for k in vars(PaperConfig) if k.isupper()}


def test_defaults_stay_matterports():
    assert (Config.ARCHITECTURE, Config.ROI_POOLING, Config.ROI_SAMPLES) == ("fpn", "align", 1)
    assert Config.ROI_BACKGROUND_IOU == (0.0, 0.5) and Config.LEARNING_BIAS_FACTOR == 1
    assert not (Config.GAUSSIAN_HEADS or Config.ROI_SPATIAL_TRANSFORMER or Config.DILATED_STAGE5)
    assert Config.BOX_LOSS_MEAN == "positives" and Config.FPN_CLASSIF_FC_RANKS == (0, 0)


def test_first_values(rng):
    values = ops.convert_to_numpy(first_values(True, 0.01)((200, 200)))
    assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(0.01, rel=0.05)
    assert first_values(False, 0.01) == "glorot_uniform"


def test_gaussian_heads(tmp_path):
    class Gaussian(TinyConfig):
        GAUSSIAN_HEADS = True

    bank = MaskRCNN("inference", Gaussian(), str(tmp_path)).bank
    rpn = bank.layers["rpn_model"]
    for layer, deviation in [
        (bank.layers["mrcnn_class_logits"], 0.01),
        (bank.layers["mrcnn_bbox_fc"], 0.001),
        (rpn.get_layer("rpn_conv_shared"), 0.01),
        (rpn.get_layer("rpn_bbox_pred"), 0.01),
    ]:
        kernel = ops.convert_to_numpy(layer.kernel)
        assert kernel.std() == pytest.approx(deviation, rel=0.3), layer.name
        assert not np.any(ops.convert_to_numpy(layer.bias))


def test_changes_from_the_command_line():
    kind = Settings(
        config=("ROI_POOLING=pool", "RPN_ANCHOR_RATIOS=[1]", "LEARNING_RATE=.01", "TRAIN_BN=None")
    ).applied_to(nucleus.NucleusConfig)
    config = kind()
    assert config.ROI_POOLING == "pool" and config.RPN_ANCHOR_RATIOS == [1]
    assert config.LEARNING_RATE == 0.01 and config.TRAIN_BN is None
    assert nucleus.NucleusConfig.ROI_POOLING == "align"


def test_the_preset_over_the_application_and_changes_over_it():
    settings = Settings("paper", ("TRAIN_ROIS_PER_IMAGE=32",))
    config = settings.applied_to(nucleus.NucleusConfig)()
    assert config.ARCHITECTURE == "c4" and config.OPTIMIZER == "sgd" and config.BATCH_SIZE == 2
    assert config.MASK_SHAPE == [14, 14] and config.NUM_CLASSES == 2
    assert config.TRAIN_ROIS_PER_IMAGE == 32
    base = nucleus.NucleusInferenceConfig
    config = settings.applied_to(base, keep=vars(base))()
    assert config.BATCH_SIZE == 1 and config.IMAGE_RESIZE_MODE == "pad64"
    assert config.ARCHITECTURE == "c4"


@pytest.mark.parametrize(
    "setting, message",
    [
        ("ROI_POLING=pool", "did you mean ROI_POOLING"),
        ("ROI_POOLING", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("STEPS_PER_EPOCH=3", "use --steps"),
        ("IMAGES_PER_GPU=0", "use --batch-size"),
        ("NAME=other", "part of the application"),
        ("ROI_POOLING=mean", "ROI_POOLING = 'mean' is not allowed"),
        ("MASK_SHAPE=28", "MASK_SHAPE = 28 is not allowed"),
        ("POOL_SIZE={[]:1}", "POOL_SIZE = '{"),
    ],
)
def test_wrong_settings(setting, message):
    for preset in (None, "paper"):
        with pytest.raises(UserError, match=message) as error:
            Settings(preset, (setting,)).applied_to(nucleus.NucleusConfig)
        assert "\n" not in str(error.value)


def test_new_settings_lie_over_the_remembered_ones():
    older = Settings("paper", ("POOL_SIZE=7",), "alternating")
    assert Settings().over(older) == older
    newer = Settings(None, ("POOL_SIZE=8",), "joint").over(older)
    assert newer == Settings("paper", ("POOL_SIZE=8",), "joint")
    assert newer.applied_to(nucleus.NucleusConfig).POOL_SIZE == 8


def test_files_and_runs_remember_their_settings(tmp_path):
    weights = tmp_path / "run" / "mask_rcnn_nucleus_0001.h5"
    assert beside(weights) == beside(None) == Settings()
    of_run, own = Settings("paper", ("POOL_SIZE=7",), "joint"), Settings(config=("POOL_SIZE=9",))
    described = Description(("nucleus",), training=of_run.to_dict())
    description.write(weights.parent / description.RUN_FILE, described)
    assert beside(weights) == of_run
    own_file = description.own_file(weights)
    description.write(own_file, Description(("nucleus",), training=own.to_dict()))
    assert beside(weights) == own
    for training, message in [
        ({"preset": None}, "damaged"),
        ({"preset": "own", "config": [], "schedule": None}, "no preset own"),
    ]:
        description.write(own_file, Description(("nucleus",), training=training))
        with pytest.raises(UserError, match=message) as error:
            beside(weights)
        assert "\n" not in str(error.value)


def test_settings_of_earlier_versions_are_read(tmp_path):
    weights = tmp_path / "run" / "mask_rcnn_nucleus_0001.h5"
    weights.parent.mkdir()
    old = {"preset": None, "config": ["POOL_SIZE=7"], "schedule": "joint"}
    (weights.parent / OLD_FILE).write_text(json.dumps(old))
    assert beside(weights) == Settings(None, ("POOL_SIZE=7",), "joint")
    old["config"] = ["POOL_SIZE=9"]
    (tmp_path / "run" / f"{weights.name}.{OLD_FILE}").write_text(json.dumps(old))
    assert beside(weights) == Settings(None, ("POOL_SIZE=9",), "joint")
    (tmp_path / "run" / f"{weights.name}.{OLD_FILE}").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        beside(weights)


def test_the_side_of_training_crops_has_no_effect_on_detection():
    from mrcnn.presets import MicrographConfig, inference_config

    class LargeCrops(MicrographConfig):
        IMAGE_MIN_DIM = IMAGE_MAX_DIM = 512

    assert inference_config(LargeCrops)().IMAGE_MIN_DIM == 0


@pytest.mark.parametrize(
    "preset, config",
    [
        ("paper", ()),
        (None, ("OBJECT_SIZE=None",)),
        (None, ("OBJECT_SIZE=None", "IMAGE_MIN_DIM=128", "IMAGE_MAX_DIM=128")),
    ],
)
def test_without_object_size_images_are_detected_at_the_scale_of_training(preset, config, tmp_path):
    app, chosen = Application(), Settings(preset, config)
    training, new = app.training_class(None, chosen)(), app.inference_class(None, chosen)()
    about = description.describe(new, ("cell",), training=chosen.to_dict())
    description.write(tmp_path / description.RUN_FILE, about)
    path = str(tmp_path / "cells_0001.h5")
    loaded = app.inference_class(path, beside(path))()
    for shape in ((64, 300, 3), (256, 256, 3), (520, 696, 3)):
        layers, ids = np.zeros((*shape[:2], 1), np.int32), np.zeros(0, np.int32)
        scale = crop_scale(np.zeros(shape, np.uint8), layers, ids, training)
        for found in (new, loaded):
            assert found.IMAGE_RESIZE_MODE == "pad64" and found.OBJECT_SIZE is None
            ours = found.IMAGE_MIN_DIM, None, found.IMAGE_MIN_SCALE, "pad64"
            assert molding.scale_factor(shape, *ours) == scale


@pytest.mark.parametrize("setting", ["LEARNING_RATE='.true'", "NO_KEY=1", "SEED=1"])
def test_a_wrong_setting_in_a_file_names_the_file(setting, tmp_path):
    how = {"preset": None, "config": [setting], "schedule": None}
    (tmp_path / OLD_FILE).write_text(json.dumps(how))
    with pytest.raises(UserError, match=f"{OLD_FILE}: its settings are damaged"):
        beside(tmp_path / "weights.h5")
