"""Metrics of ranked leaves, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from eval.splits import Case

RESAMPLES = 2000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval (percentile)."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """`0.150 [0.121, 0.182]`."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean and interval over households; of one value or equal values the interval is that value."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2 or np.ptp(data) == 0:
        mean = float(data.mean()) if len(data) else float("nan")
        return Estimate(mean, mean, mean, len(data))
    generator = np.random.default_rng(seed)
    result = bootstrap((data,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=generator)
    low, high = result.confidence_interval
    return Estimate(float(data.mean()), float(low), float(high), len(data))


def relative(own: Sequence[float], other: Sequence[float], seed: int = 0) -> Estimate:
    """`mean(own) / mean(other) - 1` of paired values, resampled in pairs; of nothing where the other mean is zero."""
    pair = np.asarray(own, dtype=float), np.asarray(other, dtype=float)
    if len(own) < 2 or np.mean(other) == 0:
        return Estimate(*(float("nan"),) * 3, n=0)

    def gain(one: Values, two: Values, axis: int = -1) -> Values:
        return np.asarray(one.mean(axis=axis) / two.mean(axis=axis) - 1)

    generator = np.random.default_rng(seed)
    result = bootstrap(pair, gain, paired=True, n_resamples=RESAMPLES, method="percentile", rng=generator)
    low, high = result.confidence_interval
    return Estimate(float(gain(*pair)), float(low), float(high), n=len(own) if np.isfinite([low, high]).all() else 0)


def hit_rate_at_k(ranked: Sequence[str], case: Case, k: int, new: bool) -> float | None:
    """Share of the target among the first `k` leaves.

    With `new`, only of leaves that the household never bought, and bought ones are taken off the list first; None
    where the basket has no such leaf.
    """
    target = case.target - case.bought if new else case.target
    if not target:
        return None
    shown = [leaf for leaf in dict.fromkeys(ranked) if not (new and leaf in case.bought)][:k]
    return len(target.intersection(shown)) / len(target)
