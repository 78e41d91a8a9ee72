"""The average of the weights, against the sum that it stands for."""

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.training.averaging import WeightAverage, decay_after

pytestmark = pytest.mark.backend


def build():
    keras.utils.set_random_seed(3)
    image = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(5)(image))
    return keras.Model(image, keras.layers.Dense(1)(x))


def values(model):
    return [value.copy() for value in model.get_weights()]


def put(model, rng):
    model.set_weights([rng.uniform(0.5, 2, v.shape).astype("float32") for v in model.weights])


def assert_close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_decay_adapts_to_short_runs_and_counts_steps():
    assert decay_after(0.999, 0, 1) == pytest.approx(0.1)
    assert decay_after(0.999, 8, 1) == pytest.approx(0.5)
    assert decay_after(0.999, 8, 4) == pytest.approx(0.5**4)
    assert decay_after(0.99, 10_000, 8) == pytest.approx(0.99**8)


def test_is_the_weighted_sum_of_the_weights_seen(rng):
    model = build()
    average = WeightAverage(model, 0.9)
    seen, shares = [values(model)], [1.0]
    step = 0
    for steps in (1, 8, 8, 3, 8, 80):
        step += steps
        put(model, rng)
        average.update(step, steps)
        kept = min(0.9, (1 + step) / (10 + step)) ** steps
        seen.append(values(model))
        shares = [share * kept for share in shares] + [1 - kept]
    assert sum(shares) == pytest.approx(1)
    expected = [
        sum(s * v for s, v in zip(shares, column, strict=True))
        for column in zip(*seen, strict=True)
    ]
    with average.applied():
        assert_close(values(model), expected)
    assert_close(values(model), seen[-1])


def test_batch_norm_statistics_are_averaged_too(rng):
    model = build()
    average = WeightAverage(model, 0.5)
    before = ops.convert_to_numpy(model.get_layer("norm").moving_variance).copy()
    put(model, rng)
    after = ops.convert_to_numpy(model.get_layer("norm").moving_variance).copy()
    average.update(100, 1)
    with average.applied():
        now = ops.convert_to_numpy(model.get_layer("norm").moving_variance)
        np.testing.assert_allclose(now, (before + after) / 2, rtol=1e-6)


def test_weights_that_stay_are_not_changed_by_rounding():
    model = build()
    before = values(model)
    average = WeightAverage(model, 0.999)
    for step in range(8, 200, 8):
        average.update(step, 8)
    average.apply()
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_apply_and_restore_twice_do_it_once(rng):
    model = build()
    average = WeightAverage(model, 0.999)
    first = values(model)
    put(model, rng)
    second = values(model)
    average.restore()
    assert_close(values(model), second)
    for _ in range(2):
        average.apply()
        assert_close(values(model), first)
    for _ in range(2):
        average.restore()
        assert_close(values(model), second)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert_close(values(model), second)
