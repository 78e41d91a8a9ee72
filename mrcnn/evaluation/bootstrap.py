"""How far a mean score over images can be trusted: percentile bootstrap over the images.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 2**22  # numbers drawn at once, to bound the memory


class Interval(NamedTuple):
    """The ends of a confidence interval, low <= high."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval counts as one."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """95 % interval of the mean of `values` [N], one number per image.

    N images are drawn with replacement, 10,000 times; the ends are percentiles of the means. The
    same seed gives the same interval. NaN for no values; for a single value both ends are that
    value, which says nothing about how far to trust it.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"values: one number per image is needed, not an array {values.shape}")
    if not len(values):
        return Interval(np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    rows = max(1, _CHUNK // len(values))
    for start in range(0, RESAMPLES, rows):
        chunk = means[start : start + rows]
        chunk[:] = values[rng.integers(len(values), size=(len(chunk), len(values)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    return Interval(*np.quantile(means, [tail, 1 - tail]).tolist())


def paired_difference(
    values: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of `values` - `baseline` over the same images [N], and its `bootstrap_interval`.

    Images differ far more than two settings on one image do: the interval of the difference is
    much narrower than those of the two means would suggest.
    """
    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if values.shape != baseline.shape:
        raise ValueError(
            f"values {values.shape} and baseline {baseline.shape} are not of the same images"
        )
    difference = values - baseline
    mean = float(difference.mean()) if len(difference) else float("nan")
    return mean, bootstrap_interval(difference, seed)
