"""The second stage's fully connected layers."""

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network.layers import FullWindowConv2D


@pytest.mark.backend
@pytest.mark.parametrize(
    "window, dtype, atol", [(7, "float32", 1e-5), (1, "float32", 1e-5), (7, "mixed_bfloat16", 0.1)]
)
def test_full_window_convolution_equals_convolution(window, dtype, atol, rng):
    inputs = rng.normal(size=(5, window, window, 6)).astype("float32")
    plain = keras.layers.Conv2D(4, window)
    product = FullWindowConv2D(4, window, dtype=dtype)
    plain.build(inputs.shape)
    product.build(inputs.shape)
    kernel, _ = plain.get_weights()
    bias = rng.normal(size=4)
    plain.set_weights([kernel, bias])
    product.set_weights([kernel, bias])
    expected, got = plain(inputs), product(inputs)
    assert tuple(got.shape) == (5, 1, 1, 4)
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(got, "float32")), ops.convert_to_numpy(expected), atol=atol
    )
