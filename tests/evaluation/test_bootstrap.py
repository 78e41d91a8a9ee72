"""Bootstrap intervals of mean scores."""

import numpy as np
import pytest

from mrcnn.evaluation import bootstrap
from mrcnn.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference


def naive_interval(values, seed):
    """One resample after the other, sorted, ends read off the list."""
    rng = np.random.default_rng(seed)
    means = sorted(sum(rng.choice(values) for _ in values) / len(values) for _ in range(4000))
    return means[100], means[3899]


@pytest.mark.parametrize("seed", range(3))
def test_as_the_naive_bootstrap(seed):
    values = np.random.default_rng(seed).beta(2, 1, 20)
    found = bootstrap_interval(values, seed)
    np.testing.assert_allclose(found, naive_interval(values, seed + 10), atol=0.02)
    assert found.low < values.mean() < found.high


def test_of_many_values_as_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_interval(values, 1)
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(found, [values.mean() - half, values.mean() + half], atol=0.02)


def test_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [bootstrap_interval(rng.normal(0, 1, 60), i) for i in range(100)]
    assert 88 <= sum(low <= 0 <= high for low, high in intervals) <= 99


def test_seeded_and_independent_of_how_it_is_chunked(monkeypatch):
    values = np.random.default_rng(0).random(50)
    first = bootstrap_interval(values, 3)
    assert bootstrap_interval(values.tolist(), 3) == first != bootstrap_interval(values, 4)
    monkeypatch.setattr(bootstrap, "_CHUNK", 777)
    assert bootstrap_interval(values, 3) == first


def test_few_values():
    assert np.isnan(bootstrap_interval([])).all()
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.5] * 9) == (0.5, 0.5)
    with pytest.raises(ValueError, match="one number per image"):
        bootstrap_interval(np.zeros((2, 3)))


def test_paired_difference_is_narrower_than_the_scatter_of_the_images():
    rng = np.random.default_rng(0)
    baseline = rng.random(40)
    values = baseline + 0.02 + rng.normal(0, 0.01, 40)
    difference, interval = paired_difference(values, baseline, 1)
    assert difference == pytest.approx(values.mean() - baseline.mean())
    assert interval.low < difference < interval.high and interval.excludes_zero
    single = bootstrap_interval(values, 1)
    assert interval.high - interval.low < (single.high - single.low) / 10
    back, reverse = paired_difference(baseline, values, 1)
    assert back == -difference
    np.testing.assert_allclose(reverse, (-interval.high, -interval.low), atol=1e-3)


def test_no_difference_is_called_none():
    baseline = np.random.default_rng(0).random(40)
    assert paired_difference(baseline, baseline) == (0, (0, 0))
    assert not paired_difference(baseline, baseline)[1].excludes_zero
    assert not Interval(-0.01, 0.03).excludes_zero and Interval(-0.03, -0.01).excludes_zero
    difference, interval = paired_difference([], [])
    assert np.isnan(difference) and np.isnan(interval).all() and not interval.excludes_zero
    with pytest.raises(ValueError, match="not of the same images"):
        paired_difference([1, 2], [1])
