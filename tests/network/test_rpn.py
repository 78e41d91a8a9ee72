"""The region proposal network at sampled anchors against the same network run over whole levels."""

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network.layers import LayerBank
from mrcnn.network.losses import rpn_anchor_box_loss, rpn_class_loss_graph
from mrcnn.network.models import LossLayer, training_inputs, training_outputs
from mrcnn.network.rpn import SampledRpn, build_rpn_model, window_cells
from mrcnn.training.fit import TrainingModel, set_trainable
from mrcnn.weights.weight_files import layer_tensors
from tests.support.tiny import TinyConfig

pytestmark = pytest.mark.backend

DEPTH, RATIOS = 4, 3
EVEN = ((16, 12), (8, 6), (4, 3))
ODD = ((7, 5), (3, 3), (1, 1))


class SumOfLosses(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return sum(y_pred)


def anchor_count(shapes, stride):
    return sum(-(-h // stride) * -(-w // stride) for h, w in shapes) * RATIOS


def make_models(shapes, stride, samples, dtype="float32"):
    """(dense, sampled): losses from whole levels and from sampled anchors only, and a layer below
    whose kernel says what gradient reaches the levels."""
    images = [keras.Input((h, w, DEPTH)) for h, w in shapes]
    index = keras.Input((samples,), dtype="int32")
    match = keras.Input((samples,), dtype="int32")
    targets = keras.Input((samples, 4))
    models = []
    for sampled in (False, True):
        below = [
            keras.layers.Conv2D(DEPTH, 1, name=f"below{i}", dtype=dtype)(image)
            for i, image in enumerate(images)
        ]
        rpn = build_rpn_model(stride, RATIOS, DEPTH, 5, dtype)
        if sampled:
            layer = SampledRpn(rpn, stride, RATIOS, dtype=dtype)
            logits, deltas = layer([index, *below])
        else:
            whole = [ops.concatenate(parts, axis=1) for parts in zip(*map(rpn, below), strict=True)]
            logits, deltas = (
                ops.take_along_axis(whole[i], index[..., None], axis=1) for i in (0, 2)
            )
        losses = [
            LossLayer(rpn_class_loss_graph, name="class")([match, logits]),
            LossLayer(rpn_anchor_box_loss, name="box")([targets, match, deltas]),
        ]
        # The proposals' path keeps the model's layers among the graph's.
        whole = ops.stop_gradient(rpn(below[0])[0])
        model = SumOfLosses([*images, index, match, targets], [*losses, 0.0 * ops.sum(whole)])
        model.logits_and_deltas = keras.Model(model.inputs, [logits, deltas])
        model.compile(keras.optimizers.SGD(1.0), jit_compile=False)
        models.append(model)
    for layer, pairs in layer_tensors(models[0]).items():
        rng = np.random.default_rng([*layer.encode()])
        for (_, ours), (_, theirs) in zip(pairs, layer_tensors(models[1])[layer], strict=True):
            value = rng.normal(size=ours.shape).astype("float32")
            ours.assign(value)
            theirs.assign(value)
    return models


def make_batch(rng, shapes, stride, samples, objects=True):
    levels = [rng.normal(size=(2, h, w, DEPTH)).astype("float32") for h, w in shapes]
    count = anchor_count(shapes, stride)
    index = np.stack([rng.choice(count, samples, replace=False) for _ in range(2)])
    index[:, :4] = [0, 1, count - 2, count - 1]  # the corners
    match = rng.choice([-1, 0, 1] if objects else [-1, 0], (2, samples))
    targets = rng.normal(size=(2, samples, 4)).astype("float32")
    return [*levels, index.astype("int32"), match.astype("int32"), targets]


def weights_of(model):
    return {
        (layer, name): ops.convert_to_numpy(variable)
        for layer, pairs in layer_tensors(model).items()
        for name, variable in pairs
    }


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("shapes", [EVEN, ODD])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_outputs_losses_and_gradients(shapes, stride, objects, rng):
    samples = min(40, anchor_count(shapes, stride))
    dense, sampled = make_models(shapes, stride, samples)
    data = make_batch(rng, shapes, stride, samples, objects)
    for one, two in zip(
        dense.logits_and_deltas.predict_on_batch(data),
        sampled.logits_and_deltas.predict_on_batch(data),
        strict=True,
    ):
        np.testing.assert_allclose(two, one, atol=1e-5)
    before = weights_of(dense)
    expected, got = dense.train_on_batch(data), sampled.train_on_batch(data)
    assert float(got) == pytest.approx(float(expected), rel=1e-5)
    # At a rate of 1 the weights have moved by their gradients.
    after, moved = weights_of(dense), weights_of(sampled)
    for key, value in after.items():
        np.testing.assert_allclose(moved[key], value, atol=2e-5, err_msg=str(key))
        untouched = key[0] == "rpn_bbox_pred" and not objects
        assert (value != before[key]).any() != untouched


def test_bfloat16_gives_float32_near_the_same(rng):
    dense, sampled = make_models(EVEN, 1, 40, "mixed_bfloat16")
    data = make_batch(rng, EVEN, 1, 40)
    for one, two in zip(
        dense.logits_and_deltas.predict_on_batch(data),
        sampled.logits_and_deltas.predict_on_batch(data),
        strict=True,
    ):
        assert str(np.asarray(two).dtype) == "float32"
        np.testing.assert_allclose(two, one, atol=0.05 * np.abs(one).max())


def test_windows_at_the_border():
    windows = window_cells([(2, 3), (1, 1)], 1)
    assert windows.shape == (7, 9)
    assert windows[0].tolist() == [7, 7, 7, 7, 0, 1, 7, 3, 4]
    assert windows[6].tolist() == [7, 7, 7, 7, 6, 7, 7, 7, 7]


def test_no_second_copy_of_the_weights():
    config = TinyConfig()
    inputs = training_inputs(config, (64, 64, 3))
    outputs = training_outputs(inputs, config, LayerBank(), (64, 64, 3))
    model = TrainingModel(inputs, outputs, config)
    assert not model.get_layer("rpn_sampled").weights
    assert [w.path for w in model.weights if "rpn_conv_shared" in w.path] == [
        "rpn_conv_shared/kernel",
        "rpn_conv_shared/bias",
    ]
    assert "rpn_conv_shared" in set_trainable(model, "rpn_.*")
    trained = {v.path for v in model.trainable_variables}
    assert trained == {
        f"{layer}/{name}"
        for name in ("kernel", "bias")
        for layer in ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")
    }
