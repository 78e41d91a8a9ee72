"""Resampling of axes that are too long for a dense matrix of weights."""

import numpy as np
import pytest

from mrcnn.pixels import resampling


@pytest.mark.parametrize("length", [87, 1201])
def test_long_axes_are_resized_as_short_ones(monkeypatch, length):
    image = np.random.default_rng(0).random((1, 301), np.float32)
    dense = resampling.resize_smooth(image, (1, length))
    resampling._sparse_weights.cache_clear()
    monkeypatch.setattr(resampling, "DENSE_WEIGHTS", 0)
    sparse = resampling.resize_smooth(image, (1, length))
    resampling._sparse_weights.cache_clear()
    np.testing.assert_allclose(sparse, dense, atol=1e-6)
    assert sparse.dtype == np.float32
