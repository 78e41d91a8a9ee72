"""Config: matterport's defaults, derived keys, validation and display."""

import json
import warnings

import numpy as np
import pytest

from mrcnn import config_rules
from mrcnn.config import Config
from mrcnn.errors import MRCNNWarning, UserError

# Names and defaults of matterport's Config 2.1.
MATTERPORT_DEFAULTS = {
    "NAME": None,
    "GPU_COUNT": 1,
    "IMAGES_PER_GPU": 2,
    "STEPS_PER_EPOCH": 1000,
    "VALIDATION_STEPS": 50,
    "BACKBONE": "resnet101",
    "COMPUTE_BACKBONE_SHAPE": None,
    "BACKBONE_STRIDES": [4, 8, 16, 32, 64],
    "FPN_CLASSIF_FC_LAYERS_SIZE": 1024,
    "TOP_DOWN_PYRAMID_SIZE": 256,
    "NUM_CLASSES": 1,
    "RPN_ANCHOR_SCALES": [32, 64, 128, 256, 512],
    "RPN_ANCHOR_RATIOS": [0.5, 1, 2],
    "RPN_ANCHOR_STRIDE": 1,
    "RPN_NMS_THRESHOLD": 0.7,
    "RPN_TRAIN_ANCHORS_PER_IMAGE": 256,
    "PRE_NMS_LIMIT": 6000,
    "POST_NMS_ROIS_TRAINING": 2000,
    "POST_NMS_ROIS_INFERENCE": 1000,
    "USE_MINI_MASK": True,
    "MINI_MASK_SHAPE": [56, 56],
    "IMAGE_RESIZE_MODE": "square",
    "IMAGE_MIN_DIM": 800,
    "IMAGE_MAX_DIM": 1024,
    "IMAGE_MIN_SCALE": 0,
    "IMAGE_CHANNEL_COUNT": 3,
    "MEAN_PIXEL": [123.7, 116.8, 103.9],
    "TRAIN_ROIS_PER_IMAGE": 200,
    "ROI_POSITIVE_RATIO": 0.33,
    "POOL_SIZE": 7,
    "MASK_POOL_SIZE": 14,
    "MASK_SHAPE": [28, 28],
    "MAX_GT_INSTANCES": 100,
    "RPN_BBOX_STD_DEV": [0.1, 0.1, 0.2, 0.2],
    "BBOX_STD_DEV": [0.1, 0.1, 0.2, 0.2],
    "DETECTION_MAX_INSTANCES": 100,
    "DETECTION_MIN_CONFIDENCE": 0.7,
    "DETECTION_NMS_THRESHOLD": 0.3,
    "LEARNING_RATE": 0.001,
    "LEARNING_MOMENTUM": 0.9,
    "WEIGHT_DECAY": 0.0001,
    "LOSS_WEIGHTS": {
        "rpn_class_loss": 1.0,
        "rpn_bbox_loss": 1.0,
        "mrcnn_class_loss": 1.0,
        "mrcnn_bbox_loss": 1.0,
        "mrcnn_mask_loss": 1.0,
    },
    "USE_RPN_ROIS": True,
    "TRAIN_BN": False,
    "GRADIENT_CLIP_NORM": 5.0,
    "BATCH_SIZE": 2,
    "IMAGE_SHAPE": [1024, 1024, 3],
    "IMAGE_META_SIZE": 13,
}


def changed(**keys):
    """Create a configuration with other values, as a sub-class in user code does."""
    return type("Changed", (Config,), keys)()


def test_matterport_keys_keep_their_defaults():
    values = Config().to_dict()
    assert {key: values[key] for key in MATTERPORT_DEFAULTS} == MATTERPORT_DEFAULTS


def test_every_key_has_a_rule():
    keys = {name for name in vars(Config) if name.isupper()}
    assert keys == set(config_rules.RULES)


def test_derived_keys():
    config = changed(GPU_COUNT=2, IMAGES_PER_GPU=3, NUM_CLASSES=4, IMAGE_CHANNEL_COUNT=1)
    assert config.BATCH_SIZE == 6
    assert config.IMAGE_META_SIZE == 12 + 4
    assert config.IMAGE_SHAPE.tolist() == [1024, 1024, 1]
    crop = changed(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=256)
    assert crop.IMAGE_SHAPE.tolist() == [256, 256, 3]


def test_pixel_convention():
    assert not Config().exact_pixels
    assert changed(PIXEL_CONVENTION="exact").exact_pixels


@pytest.mark.parametrize(
    ("channels", "mean"),
    [
        (1, [114.8]),
        (2, [114.8, 114.8]),
        (3, [123.7, 116.8, 103.9]),
        (5, [123.7, 116.8, 103.9, 114.8, 114.8]),
    ],
)
def test_default_mean_pixel_follows_the_channel_count(channels, mean):
    np.testing.assert_allclose(changed(IMAGE_CHANNEL_COUNT=channels).MEAN_PIXEL, mean)


@pytest.mark.parametrize("mean", [7, np.float32(7), [7.0], np.array([7.0, 8.0])])
def test_own_mean_pixel_is_kept(mean):
    assert changed(IMAGE_CHANNEL_COUNT=2, MEAN_PIXEL=mean).MEAN_PIXEL is mean


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("GPU_COUNT", 0),
        ("IMAGES_PER_GPU", 1.5),
        ("STEPS_PER_EPOCH", True),
        ("BACKBONE", "resnet34"),
        ("BACKBONE", lambda image: image),
        ("COMPUTE_BACKBONE_SHAPE", "resnet50"),
        ("CACHE_DIR", ""),
        ("CACHE_DIR", 3),
        ("NUM_CLASSES", 0),
        ("RPN_ANCHOR_SCALES", (8, 16)),
        ("RPN_ANCHOR_SCALES", ((8, 16), 32, 64, 128, 256)),
        ("RPN_ANCHOR_RATIOS", []),
        ("RPN_ANCHOR_RATIOS", [0.5, -1]),
        ("RPN_NMS_THRESHOLD", 1.7),
        ("RPN_NMS_THRESHOLD", float("nan")),
        ("RPN_BBOX_STD_DEV", [0.1, 0.1, 0.2]),
        ("IMAGE_RESIZE_MODE", "stretch"),
        ("IMAGE_RESIZE_MODE", ["square"]),
        ("IMAGE_MAX_DIM", 1000),
        ("IMAGE_MIN_SCALE", -1),
        ("OBJECT_SIZE", 0),
        ("SCALE_LIMITS", (2.0, 1.0)),
        ("SCALE_LIMITS", (0, 4.0)),
        ("INTENSITY_PERCENTILES", (99, 1)),
        ("INTENSITY_PERCENTILES", (1, 101)),
        ("DARK_GROUND", "yes"),
        ("IMAGE_SCALE_JITTER", (2.0, 0.5)),
        ("IMAGE_CHANNEL_COUNT", 0),
        ("MEAN_PIXEL", [1.0, 2.0]),
        ("MEAN_PIXEL", None),
        ("PIXEL_CONVENTION", "centred"),
        ("PRECISION", "float16"),
        ("MASK_SHAPE", [56, 56]),
        ("MASK_SHAPE", 28),
        ("MINI_MASK_SHAPE", (56, 0)),
        ("USE_MINI_MASK", 1),
        ("TRAIN_BN", "no"),
        ("LOSS_WEIGHTS", {"mask_loss": 1.0}),
        ("LOSS_WEIGHTS", {"rpn_class_loss": -1.0}),
        ("LEARNING_RATE", 0),
        ("LEARNING_MOMENTUM", 1),
        ("OPTIMIZER", "rmsprop"),
        ("LEARNING_SCHEDULE", "linear"),
        ("LEARNING_DROPS", 0.5),
        ("LEARNING_DROPS", (0.8, 0.6)),
        ("LEARNING_DROPS", (0.5, 1.0)),
        ("WEIGHT_AVERAGING", 1),
        ("WEIGHT_AVERAGING", 0),
        ("DETECTION_MIN_CONFIDENCE", 70),
        ("MASK_THRESHOLD", 1.0),
        ("MASK_ROI_SCALE", 0.9),
        ("CHECKPOINTS_TO_KEEP", 0),
        ("LEARNING_RATE", 10**24),
        ("LEARNING_RATE", 10**400),
        ("RPN_BBOX_STD_DEV", (1, 1, 1, 10**30)),
        ("LEARNING_RATE", 1e-320),
        ("LEARNING_RATE", float("inf")),
        ("WEIGHT_DECAY", 1e300),
        ("STEPS_PER_EPOCH", 10**24),
        ("SEED", 10**24),
        ("IMAGE_CHANNEL_COUNT", 10**11),
        ("IMAGE_MIN_DIM", 64 * 10**24),
        ("IMAGE_MIN_SCALE", 10**24),
        ("OBJECT_SIZE", 10**24),
        ("NUM_CLASSES", 10**9),
        ("DATA_WORKERS", 10**6),
        ("MINI_MASK_SHAPE", (10**24, 10**24)),
        ("FPN_CLASSIF_FC_RANKS", (10**24, 0)),
        ("RPN_ANCHOR_RATIOS", (1,) * 100_000),
        ("LOSS_WEIGHTS", {"rpn_class_loss": 10**400}),
    ],
)
def test_wrong_value_names_the_key_on_one_line(key, value):
    # A callable backbone on its own is refused under the key that it lacks.
    named = "COMPUTE_BACKBONE_SHAPE" if callable(value) else key
    with pytest.raises(UserError, match=rf"^{named} = .* is not allowed: \S") as caught:
        changed(**{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "key"),
    [("square", "IMAGE_MAX_DIM"), ("pad64", "IMAGE_MIN_DIM"), ("crop", "IMAGE_MIN_DIM")],
)
def test_sizes_must_suit_the_pyramid(mode, key):
    with pytest.raises(UserError, match=f"^{key} = 500 .*multiple of 64"):
        changed(IMAGE_RESIZE_MODE=mode, **{key: 500})


@pytest.mark.parametrize("mode", ["none", "pad64"])
def test_size_limits_that_a_mode_does_not_use_are_free(mode):
    changed(IMAGE_RESIZE_MODE=mode, IMAGE_MIN_DIM=0, IMAGE_MAX_DIM=1000)


def test_sequences_may_be_lists_tuples_or_arrays():
    for kind in (list, tuple, np.array):
        changed(
            RPN_ANCHOR_SCALES=kind([8, 16, 32, 64, 128]),
            RPN_ANCHOR_RATIOS=kind([0.5, 1, 2]),
            BACKBONE_STRIDES=kind([4, 8, 16, 32, 64]),
            MINI_MASK_SHAPE=kind([28, 28]),
            MASK_SHAPE=kind([28, 28]),
            BBOX_STD_DEV=kind([0.1, 0.1, 0.2, 0.2]),
            MEAN_PIXEL=kind([1.0, 2.0, 3.0]),
            IMAGE_SCALE_JITTER=kind([0.5, 2.0]),
            LEARNING_DROPS=kind([0.5, 0.75]),
        )


def test_matterport_ways_of_switching_things_off():
    changed(
        DETECTION_MIN_CONFIDENCE=0,
        IMAGE_MIN_SCALE=None,
        IMAGE_MIN_DIM=None,
        TRAIN_BN=None,
        LOSS_WEIGHTS={"rpn_class_loss": 2},
        NUM_CLASSES=np.int64(3),
    )


def test_callable_backbone():
    changed(BACKBONE=staticmethod(len), COMPUTE_BACKBONE_SHAPE=staticmethod(len))


def test_values_set_on_an_instance_are_validated_on_request():
    config = Config()
    config.POOL_SIZE = 0
    with pytest.raises(UserError, match="^POOL_SIZE = 0 "):
        config.validate()


def test_unknown_key_warns_once_with_the_nearest_name(monkeypatch):
    monkeypatch.setattr(config_rules, "_warned_keys", set())
    with pytest.warns(MRCNNWarning, match="NUM_CLASES .*NUM_CLASSES") as caught:
        config = changed(NUM_CLASES=3)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert config.NUM_CLASES == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed(NUM_CLASES=4)


def test_known_keys_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config().validate()


def test_to_dict_survives_json():
    values = changed(
        BACKBONE=staticmethod(len), COMPUTE_BACKBONE_SHAPE=staticmethod(len), SEED=np.int64(5)
    ).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["BACKBONE"] == "len" and values["SEED"] == 5


def test_display_prints_every_key(capsys):
    config = Config()
    config.display()
    printed = capsys.readouterr().out
    for key in config.to_dict():
        assert f"\n{key} " in printed
