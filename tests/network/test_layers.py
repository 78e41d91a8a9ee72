"""Batch normalization, fused or frozen, against Keras's own."""

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network.layers import BatchNorm

pytestmark = pytest.mark.backend


def make(kind, shape, dtype="float32", training=None, trainable=True):
    """A model that scales and normalises its input; loss: the mean of sin(output) * weight."""
    image, weight = keras.Input(shape[1:]), keras.Input(shape[1:])
    scaled = (
        keras.layers.Conv2D(shape[-1], 1, name="below", dtype=dtype)(image)
        if len(shape) == 4
        else keras.layers.Dense(shape[-1], name="below", dtype=dtype)(image)
    )
    layer = kind(name="norm", dtype=dtype, trainable=trainable)
    outputs = layer(scaled, training=training)

    class Weighted(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            # Not linear, so that no gradient can be had without the outputs.
            return ops.mean(ops.sin(ops.cast(y_pred, "float32")) * ops.cast(x[1], "float32"))

    model = Weighted([image, weight], outputs)
    model.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    rng = np.random.default_rng(3)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, v.shape)
            if v.path.endswith(("gamma", "variance"))
            else rng.normal(size=v.shape)
            for v in model.weights
        ]
    )
    return model


def assert_same_model(ours, theirs, data, tolerance):
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(ours.predict_on_batch(data), "float32")),
        ops.convert_to_numpy(ops.cast(theirs.predict_on_batch(data), "float32")),
        rtol=tolerance,
        atol=tolerance,
    )
    losses = [float(model.train_on_batch(data)) for model in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    for one, two in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(two), atol=tolerance, err_msg=one.path
        )


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (1, 2, 1, 6), (8, 6)])
@pytest.mark.parametrize("trainable", [True, False])
def test_as_keras_in_values_gradients_and_moving_statistics(shape, trainable, rng):
    data = [rng.normal(2, 3, shape).astype("float32") for _ in range(2)]
    ours = make(BatchNorm, shape, trainable=trainable)
    theirs = make(keras.layers.BatchNormalization, shape, trainable=trainable)
    before = [ops.convert_to_numpy(w) for w in ours.weights]
    assert_same_model(ours, theirs, data, 2e-4)
    moved = {
        w.path: (ops.convert_to_numpy(w) != old).any()
        for w, old in zip(ours.weights, before, strict=True)
    }
    assert moved["norm/moving_variance"] == moved["norm/gamma"] == trainable


def test_a_single_value_a_channel_stays_finite(rng):
    data = [rng.normal(size=(1, 1, 1, 6)).astype("float32") for _ in range(2)]
    model = make(BatchNorm, (1, 1, 1, 6))
    model.train_on_batch(data)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_bfloat16_rounds_once_and_keeps_float32_statistics(rng):
    data = [rng.normal(2, 3, (3, 5, 4, 6)).astype("float32") for _ in range(2)]
    ours = make(BatchNorm, (3, 5, 4, 6), "mixed_bfloat16")
    theirs = make(keras.layers.BatchNormalization, (3, 5, 4, 6), "mixed_bfloat16")
    assert_same_model(ours, theirs, data, 0.03)
    assert all(v.dtype == "float32" for v in ours.variables)


def test_frozen_by_the_graph_but_gamma_and_beta_learn(rng):
    data = [rng.normal(2, 3, (3, 5, 4, 6)).astype("float32") for _ in range(2)]
    model = make(BatchNorm, (3, 5, 4, 6), training=False)
    before = {w.path: ops.convert_to_numpy(w) for w in model.weights}
    expected = make(keras.layers.BatchNormalization, (3, 5, 4, 6)).predict_on_batch(data)
    np.testing.assert_allclose(model.predict_on_batch(data), expected, atol=1e-4)
    model.train_on_batch(data)
    moved = {
        w.path.split("/")[1]
        for w in model.weights
        if (ops.convert_to_numpy(w) != before[w.path]).any()
    }
    assert moved == {"kernel", "bias", "gamma", "beta"}
