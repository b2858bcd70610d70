"""Traffic allocation between channels (section 8): which candidates are exposed, and how much.

    maximise   sum_i s_i x_i - (lambda / 2) |x|^2
    subject to sum_i (o_i - floor) x_i >= 0,  least <= sum_i x_i <= most,  0 <= x_i <= 1

`s` is what a candidate is worth to the mix, `o` its chance of conversion, `floor` the mean conversion that the exposed
must keep. With the multipliers alpha >= 0 of the floor and r of the bounds, the conditions of Karush, Kuhn and Tucker
give `x_i = clip(h_i / lambda, 0, 1)` in the composite score `h_i = s_i + alpha (o_i - floor) + r`; what the report puts
into production is `x_i = 1 iff h_i > lambda`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.errors import SettingError

Vector = NDArray[np.float64]
ROUNDING = 1e-9
"""A bound that is missed by less is met."""
STEPS = 64
"""Halvings of an interval: what a double can tell apart."""


@dataclass(frozen=True)
class Program:
    """One allocation problem over n candidates."""

    scores: Vector
    """s, (n,)."""
    conversion: Vector
    """o, (n,)."""
    floor: float
    least: float
    """Q: exposures at least."""
    most: float
    """P: exposures at most."""
    smoothing: float = 1.0
    """lambda > 0: how much an even spread is worth."""

    def __post_init__(self) -> None:
        """Refuse bounds that no exposure can meet.

        Raises:
            SettingError: which bound, and what is possible.
        """
        count = len(self.scores)
        if self.conversion.shape != self.scores.shape:
            raise SettingError(f"{count} scores but {len(self.conversion)} conversions; one of each a candidate")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.conversion).all()):
            raise SettingError("scores and conversions must be finite numbers")
        if self.smoothing <= 0:
            raise SettingError(f"the smoothing must be above 0, found {self.smoothing}")
        if not 0 <= self.least <= self.most:
            raise SettingError(f"exposures from {self.least} to {self.most}: expected 0 <= least <= most")
        if self.least > count:
            raise SettingError(f"at least {self.least} exposures were asked for and there are {count} candidates")
        if (best := self._best_surplus()) < -ROUNDING * max(1.0, self.least):
            raise SettingError(
                f"no {self.least} of {count} candidates convert at {self.floor:.4f} on average; their best misses it "
                f"by {-best / self.least:.4f}: lower the floor or the least number of exposures"
            )

    def _best_surplus(self) -> float:
        """Of `least` exposures, the most that `sum_i (o_i - floor) x_i` can be."""
        surplus = np.sort(self.conversion - self.floor)[::-1]
        whole = int(self.least)
        rest = surplus[whole] * (self.least - whole) if whole < len(surplus) else 0.0
        return float(surplus[:whole].sum() + rest)


def solve_in_closed_form(program: Program) -> Vector:
    """x, (n,), from the multipliers: the one of the floor by halving, and within it the one of the bounds."""
    alpha, r = multipliers(program)
    return _exposures(program, alpha, r)


def threshold(program: Program) -> NDArray[np.bool_]:
    """The hard rule `h_i > lambda`, (n,): what the optimum exposes whole; it may stay below `least`."""
    alpha, r = multipliers(program)
    return np.asarray(composite_scores(program, alpha, r) > program.smoothing)


def worth(program: Program, exposures: Vector) -> float:
    """What the program maximises, for x (n,)."""
    return float(program.scores @ exposures - program.smoothing / 2 * exposures @ exposures)


def composite_scores(program: Program, alpha: float, r: float) -> Vector:
    """h, (n,)."""
    return program.scores + alpha * (program.conversion - program.floor) + r


def multipliers(program: Program) -> tuple[float, float]:
    """The multipliers alpha and r: both zero where neither floor nor bounds bind."""

    def surplus(alpha: float) -> float:
        x = _exposures(program, alpha, _bounds_multiplier(program, alpha))
        return float((program.conversion - program.floor) @ x)

    if surplus(0.0) >= 0:
        return 0.0, _bounds_multiplier(program, 0.0)
    high = 1.0
    while surplus(high) < 0 and high < 1e12:
        high *= 2
    alpha = _root(surplus, 0.0, high)
    return alpha, _bounds_multiplier(program, alpha)


def _bounds_multiplier(program: Program, alpha: float) -> float:
    """The r for a given alpha: the smallest change of all scores that brings the exposures within their bounds."""

    def exposed(r: float) -> float:
        return float(_exposures(program, alpha, r).sum())

    now = exposed(0.0)
    scores = composite_scores(program, alpha, 0.0)
    if now > program.most:
        return _root(lambda r: exposed(r) - program.most, -float(scores.max()), 0.0)
    if now < program.least:
        return _root(lambda r: exposed(r) - program.least, 0.0, program.smoothing - float(scores.min()))
    return 0.0


def _exposures(program: Program, alpha: float, r: float) -> Vector:
    return np.clip(composite_scores(program, alpha, r) / program.smoothing, 0.0, 1.0)


def _root(rises: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises crosses zero, by halving."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        if rises(middle) < 0:
            low = middle
        else:
            high = middle
    return high
