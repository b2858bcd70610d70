"""How far a judge agrees with labels that are known, and with people (section 7), with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import get_args

import krippendorff
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, f1_score

from agents.schemas import Grade
from eval.metrics import RESAMPLES, Estimate, estimate
from prompts.rubric import Label

GRADES: tuple[Grade, ...] = get_args(Grade)[::-1]
"""From the lowest to the highest."""
LABELS: tuple[Label, ...] = get_args(Label)
"""From the lowest to the highest."""
BINS = 10
"""Of probabilities, for the calibration."""

Places = NDArray[np.int64]
"""Of values on their scale, from 0."""


def agreement_figures(pairs: Sequence[tuple[str, str]], scale: Sequence[str]) -> dict[str, Estimate]:
    """How far found values agree with the true ones.

    Args:
        pairs: found and true value of each text.
        scale: the values from the lowest to the highest.

    Returns:
        `accuracy`, `f1_<value>` of the lowest and the highest, `kappa` (Cohen's, linear weights) and `alpha`
        (Krippendorff's, ordinal). A value that neither side has leaves its F1 out.
    """
    if not pairs:
        return {}
    found, true = (np.array([scale.index(pair[side]) for pair in pairs]) for side in (0, 1))
    figures = {
        "accuracy": estimate((found == true).astype(float).tolist()),
        "kappa": resampled(lambda own, other: _kappa(own, other, len(scale)), found, true),
        "alpha": resampled(lambda own, other: alpha([own.tolist(), other.tolist()]), found, true),
    }
    for place in (0, len(scale) - 1):
        if place in found or place in true:
            figures[f"f1_{scale[place].lower()}"] = resampled(partial(_f1, place), found, true)
    return figures


def resampled(statistic: Callable[[Places, Places], float], found: Places, true: Places, seed: int = 0) -> Estimate:
    """A statistic of pairs with its 95 % bootstrap interval (percentile); resamples without a value are left out."""
    generator = np.random.default_rng(seed)
    value = statistic(found, true)
    drawn = [generator.integers(len(found), size=len(found)) for _ in range(RESAMPLES // 4)]
    values = [statistic(found[places], true[places]) for places in drawn]
    finite = [one for one in values if np.isfinite(one)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite else (value, value)
    return Estimate(float(value), float(low), float(high), len(found))


def alpha(ratings: Sequence[Sequence[float | None]]) -> float:
    """Krippendorff's alpha, ordinal, of raters' values of the same texts; NaN where all values are equal.

    Args:
        ratings: a row a rater, a column a text; None where a rater gave none.
    """
    values = np.array([[np.nan if one is None else one for one in row] for row in ratings], dtype=float)
    if len(np.unique(values[~np.isnan(values)])) < 2:
        return float("nan")
    return float(krippendorff.alpha(reliability_data=values, level_of_measurement="ordinal"))


def calibration_error(probabilities: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: the mean distance of probability and accuracy over `BINS` bins of equal width.

    Of [0.9, 0.9, 0.1] with [right, wrong, wrong] it is `(2 * |0.9 - 0.5| + |0.1 - 0|) / 3 = 0.3`.
    """
    return sum(
        count * abs(probability - accuracy) for probability, accuracy, count in calibration(probabilities, right)
    ) / max(len(right), 1)


def calibration(probabilities: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float, int]]:
    """Of each bin that has any: mean probability, accuracy, and how many."""
    p, hits = np.asarray(probabilities, dtype=float), np.asarray(right, dtype=float)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return [
        (float(p[bins == one].mean()), float(hits[bins == one].mean()), int((bins == one).sum()))
        for one in range(BINS)
        if (bins == one).any()
    ]


def against_people(
    ratings: Mapping[str, Sequence[float]], judged: Mapping[str, float], seed: int = 0
) -> dict[str, Estimate]:
    """Whether a judge agrees with a rater's peers as well as the rater does.

    For each rater in turn: the rank correlation (Spearman) of the rater, and of the judge, with the mean of the other
    raters, over all texts; both are means over raters.

    Args:
        ratings: of each text the same number of raters' values, at least two; a column stands for a rater.
        judged: the judge's value of the same texts; those without one are left out.
        seed: of the bootstrap over texts.

    Returns:
        `people`, `judge`, and `pairs`: the share of pairs of raters of a text that gave the same value.
    """
    texts = [text for text in ratings if text in judged]
    raters = min((len(ratings[text]) for text in texts), default=0)
    if raters < 2:
        return {}
    table = np.array([ratings[text][:raters] for text in texts], dtype=float)
    own = np.array([judged[text] for text in texts], dtype=float)
    same = [float(np.mean([one == other for one, other in combinations(row, 2)])) for row in table]

    def of_raters(rows: Places, value: Callable[[int], NDArray[np.float64]]) -> float:
        found = []
        for rater in range(raters):
            peers = np.delete(table, rater, axis=1).mean(axis=1)[rows]
            mine = value(rater)[rows]
            found.append(float(spearmanr(mine, peers).statistic) if np.ptp(mine) and np.ptp(peers) else 0.0)
        return float(np.mean(found))

    return {
        "people": _over_texts(lambda rows: of_raters(rows, lambda rater: table[:, rater]), len(texts), seed),
        "judge": _over_texts(lambda rows: of_raters(rows, lambda rater: own), len(texts), seed),
        "pairs": estimate(same),
    }


def _over_texts(statistic: Callable[[Places], float], count: int, seed: int) -> Estimate:
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(count, size=count)) for _ in range(RESAMPLES // 10)]
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(statistic(np.arange(count)), float(low), float(high), count)


def _kappa(found: Places, true: Places, values: int) -> float:
    if len(np.union1d(found, true)) < 2:
        return float("nan")
    return float(cohen_kappa_score(found, true, labels=np.arange(values), weights="linear"))


def _f1(place: int, found: Places, true: Places) -> float:
    return float(f1_score(true == place, found == place, zero_division=0.0))
