"""The spatial transformer: equations 8 to 11 of the paper by loops, and the identity."""

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network.layers import LayerBank
from mrcnn.network.spatial_transformer import (
    IDENTITY,
    AffineSampler,
    affine_points,
    sample_points,
    transform_regions,
)

pytestmark = pytest.mark.backend


def kernel(distance):
    return max(0.0, 1.0 - abs(distance))


def equation_8(features, y, x):
    """One sample of features [H, W, C]."""
    total = np.zeros(features.shape[-1])
    for n in range(features.shape[0]):
        for m in range(features.shape[1]):
            total += features[n, m] * kernel(x - m) * kernel(y - n)
    return total


def equation_9(shape, y, x):
    """Derivatives of a sample by every cell [H, W]."""
    return np.array(
        [[kernel(x - m) * kernel(y - n) for m in range(shape[1])] for n in range(shape[0])]
    )


def side(position, cell):
    """The braces of equations 10 and 11."""
    if abs(cell - position) >= 1:
        return 0.0
    return 1.0 if cell >= position else -1.0


def equation_10(features, y, x):
    """Derivative of a sample by x, [C]; the paper's cases, in the order of the literature."""
    return sum(
        features[n, m] * kernel(y - n) * side(x, m)
        for n in range(features.shape[0])
        for m in range(features.shape[1])
    )


def equation_11(features, y, x):
    return sum(
        features[n, m] * kernel(x - m) * side(y, n)
        for n in range(features.shape[0])
        for m in range(features.shape[1])
    )


def places(rng, count=9):
    """Positions inside, between the edge and half a cell beyond it, and far outside."""
    y, x = rng.uniform(-0.9, 4.9, (2, 2, count)).astype("float32")
    y[0, 0], x[0, 0], x[1, 1] = 17.3, 1.2, -8.4
    return y, x


def test_sampling_is_equation_8(rng):
    features = rng.normal(size=(2, 5, 6, 3)).astype("float32")
    y, x = places(rng)
    got = ops.convert_to_numpy(sample_points(*map(ops.convert_to_tensor, (features, y, x))))
    for region in range(2):
        for point in range(9):
            expected = equation_8(features[region], y[region, point], x[region, point])
            np.testing.assert_allclose(got[region, point], expected, atol=1e-5)


def gradients(features, y, x, upstream):
    """By automatic differentiation of sum(upstream * samples)."""
    backend = keras.backend.backend()
    arrays = (features, y, x)
    if backend == "jax":
        import jax

        found = jax.grad(lambda *a: ops.sum(sample_points(*a) * upstream), argnums=(0, 1, 2))(
            *map(ops.convert_to_tensor, arrays)
        )
        return [np.asarray(g) for g in found]
    if backend == "torch":
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        (sample_points(*tensors) * torch.tensor(upstream)).sum().backward()
        return [t.grad.numpy() for t in tensors]
    import tensorflow as tf

    tensors = [tf.Variable(a) for a in arrays]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(sample_points(*map(tf.convert_to_tensor, tensors)) * upstream)
    return [tf.convert_to_tensor(g).numpy() for g in tape.gradient(total, tensors)]


def test_gradients_are_equations_9_to_11(rng):
    features = rng.normal(size=(2, 5, 6, 3)).astype("float32")
    y, x = places(rng)
    upstream = rng.normal(size=(2, 9, 3)).astype("float32")
    by_features, by_y, by_x = gradients(features, y, x, upstream)
    for region in range(2):
        expected = np.zeros((5, 6, 3))
        for point in range(9):
            place = y[region, point], x[region, point]
            expected += equation_9((5, 6), *place)[..., None] * upstream[region, point]
            of_x = equation_10(features[region], *place) @ upstream[region, point]
            of_y = equation_11(features[region], *place) @ upstream[region, point]
            np.testing.assert_allclose(by_x[region, point], of_x, atol=1e-4)
            np.testing.assert_allclose(by_y[region, point], of_y, atol=1e-4)
        np.testing.assert_allclose(by_features[region], expected, atol=1e-4)


def test_gradients_at_whole_numbers_are_those_to_the_right(rng):
    # Where the identity puts every point; the equations are ambiguous there.
    features = rng.normal(size=(1, 5, 6, 2)).astype("float32")
    y, x = np.array([[1, 3]], "float32"), np.array([[2, 4]], "float32")
    upstream = rng.normal(size=(1, 2, 2)).astype("float32")
    _, by_y, by_x = gradients(features, y, x, upstream)
    for point, (row, column) in enumerate([(1, 2), (3, 4)]):
        here = features[0, row, column]
        np.testing.assert_allclose(
            by_y[0, point], (features[0, row + 1, column] - here) @ upstream[0, point], atol=1e-5
        )
        np.testing.assert_allclose(
            by_x[0, point], (features[0, row, column + 1] - here) @ upstream[0, point], atol=1e-5
        )


def test_points_of_a_transform():
    turn = np.array([[0.0, -1.0, 0.0, 1.0, 0.0, 0.0]], "float32")  # a quarter turn
    y, x = map(ops.convert_to_numpy, affine_points(ops.convert_to_tensor(turn), 4, 4))
    rows, columns = np.mgrid[:4, :4]
    np.testing.assert_allclose(y[0], columns.ravel(), atol=1e-5)
    np.testing.assert_allclose(x[0], (3 - rows).ravel(), atol=1e-5)
    shift = np.array([[1.0, 0.0, 0.5, 0.0, 1.0, 0.0]], "float32")  # a quarter of the width
    y, x = map(ops.convert_to_numpy, affine_points(ops.convert_to_tensor(shift), 4, 8))
    np.testing.assert_allclose(x[0].reshape(4, 8)[0], np.arange(8) + 2, atol=1e-5)
    np.testing.assert_allclose(y[0].reshape(4, 8)[:, 0], np.arange(4), atol=1e-5)


def test_a_quarter_turn_turns_the_features(rng):
    features = rng.normal(size=(1, 5, 5, 2)).astype("float32")
    turn = np.array([[0.0, -1.0, 0.0, 1.0, 0.0, 0.0]], "float32")
    got = ops.convert_to_numpy(AffineSampler()([features, turn]))
    np.testing.assert_allclose(got[0], np.rot90(features[0]), atol=1e-5)


def test_starts_as_the_identity(rng):
    features = rng.normal(size=(3, 7, 7, 4)).astype("float32")
    bank = LayerBank()
    got = ops.convert_to_numpy(transform_regions(ops.convert_to_tensor(features), bank))
    np.testing.assert_allclose(got, features, atol=1e-5)
    assert not np.any(ops.convert_to_numpy(bank.layers["roi_transformer_affine"].kernel))
    bias = ops.convert_to_numpy(bank.layers["roi_transformer_affine"].bias)
    assert tuple(bias) == IDENTITY
