"""The C4 architecture: one map, all anchors on it, the fifth stage in the heads."""

import numpy as np
import pytest
from keras import ops

from mrcnn.config_rules import mask_side
from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.network import anchors, models
from mrcnn.network.architecture import architecture_of
from mrcnn.network.layers import LayerBank
from mrcnn.network.resnet import stage5_graph
from mrcnn.weights.weight_files import layer_tensors
from tests.network.test_models import batch, set_weights, training_batch, training_model
from tests.support.tiny import TinyConfig


class C4Config(TinyConfig):
    ARCHITECTURE = "c4"
    RPN_ANCHOR_SCALES = (8, 16, 32)  # another number than the pyramid has levels


class DilatedConfig(C4Config):
    DILATED_STAGE5 = True


def test_records():
    pyramid, single = architecture_of(TinyConfig()), architecture_of(C4Config())
    assert pyramid.strides == (4, 8, 16, 32, 64) and pyramid.pooled_maps == 4
    assert pyramid.scales == ((8,), (16,), (32,), (64,), (128,))
    assert pyramid.anchors_per_cell == 3 and pyramid.channels == 16
    assert single == ((16,), ((8, 16, 32),), 1024, 1, 9)


@pytest.mark.parametrize(
    "kind, pool, mask", [(TinyConfig, 7, 28), (C4Config, 14, 14), (DilatedConfig, 14, 28)]
)
def test_sizes_follow_the_architecture(kind, pool, mask):
    config = kind()
    assert config.POOL_SIZE == pool and list(config.MASK_SHAPE) == [mask, mask]
    assert mask_side(config) == mask


def test_sizes_that_are_set_stay():
    class Own(C4Config):
        POOL_SIZE, MASK_POOL_SIZE, MASK_SHAPE = 6, 7, (8, 8)

    assert Own().POOL_SIZE == 6 and tuple(Own().MASK_SHAPE) == (8, 8)


@pytest.mark.parametrize(
    "keys, name",
    [
        ({"DILATED_STAGE5": True}, "DILATED_STAGE5"),
        ({"ARCHITECTURE": "c4", "MASK_SHAPE": (20, 20)}, "MASK_SHAPE"),
        ({"ARCHITECTURE": "c4", "FPN_CLASSIF_FC_RANKS": (4, 4)}, "FPN_CLASSIF_FC_RANKS"),
        (
            {
                "ARCHITECTURE": "c4",
                "BACKBONE": lambda *a, **k: None,
                "COMPUTE_BACKBONE_SHAPE": lambda shape: None,
            },
            "ARCHITECTURE",
        ),
        ({"ARCHITECTURE": "C4"}, "ARCHITECTURE"),
    ],
)
def test_wrong_combinations_are_named(keys, name):
    keys = {key: staticmethod(v) if callable(v) else v for key, v in keys.items()}
    with pytest.raises(UserError, match=f"^{name} = ") as error:
        type("Wrong", (TinyConfig,), keys)()
    assert "\n" not in str(error.value)


def test_all_anchors_lie_on_one_map():
    config = C4Config()
    boxes = anchors.image_anchors(config, (64, 96, 3))
    assert boxes.shape == (4 * 6 * 9, 4)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).reshape(24, 9)
    np.testing.assert_allclose(sides, np.tile([8, 16, 32], (24, 3)), rtol=1e-5)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres[:9], 0, atol=1e-5)
    np.testing.assert_allclose(centres[-9:], np.tile([48, 80], (9, 1)), atol=1e-5)


@pytest.mark.backend
def test_dilated_stage_holds_the_strided_one(rng):
    # Paper section 3.5.1: what the strided stage gives, and the values between.
    bank = LayerBank()
    features = ops.convert_to_tensor(rng.normal(size=(1, 6, 8, 1024)).astype("float32"))
    strided = stage5_graph(features, False, bank)
    names = dict(bank.layers)
    dilated_bank = LayerBank()
    dilated = stage5_graph(features, False, dilated_bank, dilated=True)
    for name, layer in names.items():
        dilated_bank.layers[name].set_weights(layer.get_weights())
    dilated = stage5_graph(features, False, dilated_bank, dilated=True)
    assert tuple(strided.shape) == (1, 3, 4, 2048) and tuple(dilated.shape) == (1, 6, 8, 2048)
    strided, dilated = ops.convert_to_numpy(strided), ops.convert_to_numpy(dilated)
    np.testing.assert_allclose(dilated[:, ::2, ::2], strided, atol=1e-3 * np.abs(strided).max())


@pytest.mark.backend
def test_inference(rng):
    config, side = C4Config(), 14
    model = models.inference_model(config, LayerBank(), (64, 64, 3))
    set_weights(model)
    images, metas = batch(config, rng)
    outputs = [np.asarray(o) for o in model.predict_on_batch([images, metas])]
    assert [o.shape for o in outputs] == [
        (2, 10, 6),
        (2, 40, 3),
        (2, 40, 3, 4),
        (2, 10, side, side, 3),
        (2, 40, 4),
        (2, 144, 2),
        (2, 144, 4),
    ]
    swapped = model.predict_on_batch([images[::-1].copy(), metas])  # images do not mix
    for one, both in zip(swapped, outputs, strict=True):
        np.testing.assert_allclose(np.asarray(one)[::-1], both, atol=2e-3)


@pytest.mark.backend
def test_training_step_lowers_the_loss(rng):
    config = C4Config()
    model = training_model(config)
    set_weights(model)
    data = training_batch(config, rng)
    losses = []
    for _ in range(4):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(data, return_dict=True)["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_heads_share_the_fifth_stage_and_the_names_are_those_of_the_files():
    config = C4Config()
    bank = LayerBank()
    model = models.inference_model(config, bank, (64, 64, 3))
    kernels = [v.path for v in model.weights if "res5c_branch2c/kernel" in v.path]
    assert len(kernels) == 1
    names = set(layer_tensors(model))
    assert {"res5a_branch1", "bn5c_branch2b", "res4f_branch2c"} <= names
    assert not [name for name in names if name.startswith("fpn")]


def test_fast_network_equals_the_plain_one(rng, tmp_path):
    config = DilatedConfig()
    model = MaskRCNN("inference", config, str(tmp_path))
    set_weights(model.keras_model)
    model.bank.layers["mrcnn_class_logits"].bias.assign([0.0, 9.0, 0.0])  # not only background
    images, metas = batch(config, rng)
    plain = model.keras_model.predict_on_batch([images, metas])
    found = model._fast()(images, metas)
    np.testing.assert_allclose(found.detections, plain[0], atol=2e-3)
    count = found.masks.shape[1]
    assert count and plain[3].shape[2] == mask_side(config)
    np.testing.assert_allclose(found.masks, plain[3][:, :count], atol=5e-3)


def test_weights_save_and_load(rng, tmp_path):
    model = MaskRCNN("inference", C4Config(), str(tmp_path))
    set_weights(model.keras_model)
    model.save_weights(tmp_path / "c4.h5")
    other = MaskRCNN("inference", C4Config(), str(tmp_path))
    report = other.load_weights(tmp_path / "c4.h5")
    assert report.assigned == report.total and not report.left_over


def test_spatial_transformer_starts_as_the_identity():
    class Transformed(TinyConfig):
        ROI_SPATIAL_TRANSFORMER = True

    outputs = []
    for kind in (TinyConfig, Transformed):
        config, bank = kind(), LayerBank()
        model = models.inference_model(config, bank, (64, 64, 3))
        identity = bank.layers.get("roi_transformer_affine")
        kept = identity.get_weights() if identity else None
        set_weights(model)
        if identity:
            identity.set_weights(kept)
        outputs.append(model.predict_on_batch(list(batch(config, np.random.default_rng(3)))))
    for plain, transformed in zip(*outputs, strict=True):
        np.testing.assert_allclose(np.asarray(plain), np.asarray(transformed), atol=2e-3)
