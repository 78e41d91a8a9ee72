"""The fused updates against those of Keras."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow's optimizers", allow_module_level=True)

from mrcnn.training import tensorflow_optimizers

SHAPES = ((3, 3, 2, 4), (4,), (5, 6))


def run(kind, steps=4, **options):
    """Variables and optimizer after some steps on fixed gradients, small ones and huge ones."""
    variables = [
        keras.Variable(np.random.default_rng(i).normal(size=shape), dtype="float32", name=f"v{i}")
        for i, shape in enumerate(SHAPES)
    ]
    optimizer = kind(keras.optimizers.schedules.CosineDecay(0.1, 10), **options)
    optimizer.build(variables)
    for step in range(steps):
        rng = np.random.default_rng(100 + step)
        gradients = [rng.normal(size=shape) * 100.0 ** (step % 2) for shape in SHAPES]
        optimizer.apply([keras.ops.cast(g, "float32") for g in gradients], variables)
    return [*variables, *optimizer.variables]


@pytest.mark.parametrize("clipnorm", [None, 5.0])
@pytest.mark.parametrize(
    "name, options",
    [
        ("SGD", {"momentum": 0.9}),
        ("SGD", {}),
        ("Adam", {"epsilon": 1e-8}),
        ("Adam", {"beta_1": 0.5}),
    ],
)
def test_same_steps_and_same_state_as_keras(name, options, clipnorm):
    ours = run(getattr(tensorflow_optimizers, name), clipnorm=clipnorm, **options)
    theirs = run(getattr(keras.optimizers, name), clipnorm=clipnorm, **options)
    for one, two in zip(ours, theirs, strict=True):
        assert one.path.split("/")[-1] == two.path.split("/")[-1]
        np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-4, atol=1e-5, err_msg=one.path)


def test_state_files_of_keras_optimizers_fit():
    # Keras counts its optimizers: adam, adam_1, ...
    for name in ("SGD", "Adam"):
        ours = getattr(tensorflow_optimizers, name)()
        assert ours.name.split("_")[0] == getattr(keras.optimizers, name)().name.split("_")[0]


def test_sum_of_squares_and_its_gradient():
    import tensorflow as tf

    x = tf.Variable([[1.0, -2.0], [3.0, 0.5]])
    with tf.GradientTape() as tape:
        total = tensorflow_optimizers.sum_of_squares(x)
    np.testing.assert_allclose(total, 14.25)
    np.testing.assert_allclose(tape.gradient(total, x), 2 * x.numpy())
