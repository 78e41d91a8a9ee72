"""The whole network, small: shapes, both backbones, any channels, all backends alike."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network import models
from mrcnn.network.layers import LayerBank
from mrcnn.network.resnet import resnet_graph
from mrcnn.pixels.boxes import scale_boxes
from mrcnn.pixels.image_meta import compose_image_meta
from mrcnn.training.fit import TrainingModel, compile_model, make_optimizer
from mrcnn.weights.weight_files import layer_tensors
from tests.support.tiny import SmallConfig, TinyConfig

GOLDEN = Path(__file__).parents[1] / "data" / "tiny_outputs.npz"
NAMES = ("detections", "classes", "deltas", "masks", "rois", "rpn_class", "rpn_bbox")


def set_weights(model, seed=0):
    """The same weights on every backend: NumPy's random numbers by layer and tensor name."""
    for layer, pairs in sorted(layer_tensors(model).items()):
        for name, variable in pairs:
            rng = np.random.default_rng([seed, *(layer + name).encode()])
            shape = tuple(variable.shape)
            if "kernel" in name:
                value = rng.normal(size=shape) * np.sqrt(0.6 / np.prod(shape[:-1]))
            elif "variance" in name or "gamma" in name:
                value = rng.uniform(0.8, 1.2, shape)
            else:
                value = rng.normal(size=shape) * 0.1
            variable.assign(value.astype("float32"))


def batch(config, rng, images=2):
    shape = tuple(int(n) for n in config.IMAGE_SHAPE)
    molded = rng.normal(scale=40, size=(images, *shape)).astype("float32")
    meta = compose_image_meta(
        0, shape, shape, (0, 0, *shape[:2]), 1.0, np.ones(config.NUM_CLASSES, "int32")
    )
    return molded, np.tile(np.asarray(meta, "float32"), (images, 1))


def training_batch(config, rng, images=2, objects=2):
    molded, metas = batch(config, rng, images)
    ids = np.zeros((images, config.MAX_GT_INSTANCES), "int32")
    boxes = np.zeros((images, config.MAX_GT_INSTANCES, 4), "float32")
    ids[:, :objects] = 1
    boxes[:, :objects] = np.array([[4, 4, 24, 30], [30, 28, 60, 50]])[:objects]
    masks = np.ones((images, config.MAX_GT_INSTANCES, *config.MINI_MASK_SHAPE), "uint8")
    return {
        "input_image": molded,
        "input_image_meta": metas,
        "input_gt_class_ids": ids,
        "input_gt_boxes": boxes,
        "input_gt_masks": masks,
    }


def test_masks_see_enlarged_regions(tiny_config, rng):
    bank = LayerBank("float32")
    shape = (1, 64, 64, tiny_config.TOP_DOWN_PYRAMID_SIZE)
    levels = [
        ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))[:, ::s, ::s]
        for s in (4, 8, 16, 32)
    ]
    metas = ops.convert_to_tensor(batch(tiny_config, rng, 1)[1])
    boxes = np.array([[[0.2, 0.3, 0.5, 0.5], [0.1, 0.1, 0.9, 0.7]]], "float32")

    def masks(regions, scale):
        tiny_config.MASK_ROI_SCALE = scale
        regions = ops.convert_to_tensor(regions)
        return ops.convert_to_numpy(
            models.segment(regions, levels, metas, tiny_config, bank, logits=True)
        )

    larger = scale_boxes(boxes[0], 1.25)[None].astype("float32")
    np.testing.assert_allclose(masks(boxes, 1.25), masks(larger, 1.0), atol=1e-5)
    assert np.abs(masks(boxes, 1.25) - masks(boxes, 1.0)).max() > 1e-3


def training_model(config):
    shape = tuple(int(n) for n in config.IMAGE_SHAPE)
    inputs = models.training_inputs(config, shape)
    model = TrainingModel(
        inputs, models.training_outputs(inputs, config, LayerBank(), shape), config
    )
    compile_model(model, make_optimizer(config, 1e-3))
    return model


@pytest.fixture(scope="module")
def inference():
    config = TinyConfig()
    model = models.inference_model(config, LayerBank(), (64, 64, 3))
    set_weights(model)
    images, metas = batch(config, np.random.default_rng(5))
    outputs = model.predict_on_batch([images, metas])
    return config, model, images, metas, dict(zip(NAMES, map(np.asarray, outputs), strict=True))


@pytest.mark.backend
def test_inference_shapes(inference):
    _, _, _, _, outputs = inference
    assert {name: array.shape for name, array in outputs.items()} == {
        "detections": (2, 10, 6),
        "classes": (2, 40, 3),
        "deltas": (2, 40, 3, 4),
        "masks": (2, 10, 28, 28, 3),
        "rois": (2, 40, 4),
        "rpn_class": (2, 1023, 2),
        "rpn_bbox": (2, 1023, 4),
    }
    assert (outputs["detections"][..., 4] > 0).any()


@pytest.mark.backend
def test_same_weights_same_outputs_on_every_backend(inference):
    outputs = inference[-1]
    golden = np.load(GOLDEN)  # written once, from TensorFlow
    for name in NAMES:
        np.testing.assert_allclose(outputs[name], golden[name], atol=2e-3, err_msg=name)


@pytest.mark.backend
def test_batch_of_two_equals_two_singles(inference):
    _, model, images, metas, outputs = inference
    for i in range(2):
        single = model.predict_on_batch([images[i : i + 1], metas[i : i + 1]])
        for name, array in zip(NAMES, single, strict=True):
            np.testing.assert_allclose(np.asarray(array)[0], outputs[name][i], atol=1e-3)


def test_eager_equals_compiled(inference):
    _, model, images, metas, outputs = inference
    eager = model([ops.convert_to_tensor(images), ops.convert_to_tensor(metas)], training=False)
    for name, tensor in zip(NAMES, eager, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(tensor), outputs[name], atol=1e-3)


def statistics(model):
    """What batch norms keep, by path."""
    return {v.path: ops.convert_to_numpy(v) for v in model.weights if "moving" in v.path}


@pytest.fixture(scope="module")
def training():
    """A training model; a test sets its weights."""
    return training_model(TinyConfig())


@pytest.mark.backend
def test_training_steps_lower_the_loss_and_leave_frozen_batch_norms(training, tiny_config, rng):
    assert tiny_config.TRAIN_BN is False
    set_weights(training)
    data, losses, before = training_batch(tiny_config, rng), [], statistics(training)
    for _ in range(5):
        training.reset_metrics()
        losses.append(float(training.train_on_batch(data, return_dict=True)["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    for path, value in statistics(training).items():
        np.testing.assert_array_equal(value, before[path])
    assert len(before) == len([v for v in training.weights if "gamma" in v.path]) * 2


def test_image_without_objects_trains_as_background(training, tiny_config, rng):
    model = training
    set_weights(model)
    model.reset_metrics()
    data = training_batch(tiny_config, rng, objects=0)
    logs = model.train_on_batch(data, return_dict=True)
    assert logs["rpn_class_loss"] > 0 and logs["mrcnn_class_loss"] > 0
    assert logs["rpn_bbox_loss"] == logs["mrcnn_bbox_loss"] == logs["mrcnn_mask_loss"] == 0
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_shapes_share_their_weights(inference, rng):
    config, model, *_ = inference
    bank = LayerBank()
    small = models.inference_model(config, bank, (64, 64, 3))
    wide = models.inference_model(config, bank, (64, 128, 3))
    assert {id(w) for w in small.weights} == {id(w) for w in wide.weights}
    assert len(small.weights) == len(model.weights)


@pytest.mark.parametrize("architecture, stage4", [("resnet50", "f"), ("resnet101", "w")])
def test_backbones(architecture, stage4):
    image = keras.Input((64, 96, 3))
    stages = resnet_graph(image, architecture, stage5=True)
    assert [s.shape[1:] for s in stages] == [
        (16, 24, 64),
        (16, 24, 256),
        (8, 12, 512),
        (4, 6, 1024),
        (2, 3, 2048),
    ]
    names = {layer.name for layer in keras.Model(image, stages).layers}
    assert f"res4{stage4}_branch2c" in names and f"bn4{stage4}_branch2c" in names
    assert f"res4{chr(ord(stage4) + 1)}_branch2c" not in names
    assert resnet_graph(image, architecture)[4] is None


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts(channels, rng):
    class Channels(TinyConfig):
        IMAGE_CHANNEL_COUNT = channels

    config = Channels()
    model = models.inference_model(config, LayerBank(), tuple(config.IMAGE_SHAPE))
    images, metas = batch(config, rng, 1)
    assert np.isfinite(model.predict_on_batch([images, metas])[1]).all()


def test_callable_backbone(tiny_config, rng):
    def backbone(image, architecture=None, stage5=False, train_bn=True):
        stages, x = [], image
        for width in (8, 8, 8, 8, 8):
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu")(x)
            stages.append(x)
        return stages

    tiny_config.BACKBONE = backbone
    tiny_config.COMPUTE_BACKBONE_SHAPE = lambda shape: np.array(
        [[-(-shape[0] // s), -(-shape[1] // s)] for s in (4, 8, 16, 32, 64)]
    )
    bank = LayerBank()
    model = models.inference_model(tiny_config, bank, (64, 64, 3))
    other = models.inference_model(tiny_config, bank, (64, 128, 3))
    assert len(model.weights) == len(other.weights) < 80
    images, metas = batch(tiny_config, rng, 1)
    assert model.predict_on_batch([images, metas])[0].shape == (1, 10, 6)


@pytest.mark.backend
def test_bfloat16_keeps_boxes_and_losses_in_float32(inference):
    config, _, images, metas, exact = inference
    model = models.inference_model(config, LayerBank("mixed_bfloat16"), (64, 64, 3))
    set_weights(model)
    outputs = model.predict_on_batch([images, metas])
    assert all(str(np.asarray(o).dtype) == "float32" for o in outputs)
    difference = np.abs(np.asarray(outputs[5]) - exact["rpn_class"])
    assert np.median(difference) < 0.02
    assert all(v.dtype == "float32" for v in model.variables)


@pytest.mark.backend
def test_batch_norms_that_learn_move_their_statistics(rng):
    config = SmallConfig()
    config.TRAIN_BN = None
    model = training_model(config)
    set_weights(model)
    before = statistics(model)
    model.train_on_batch(training_batch(config, rng))
    changed = [path for path, value in statistics(model).items() if (value != before[path]).any()]
    assert changed
