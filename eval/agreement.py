"""How far a judge agrees with labels that are known, and with people (section 7), with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from typing import get_args

import krippendorff
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

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
Statistic = Callable[[Places, Places], float]
"""Of found and true values."""


@dataclass(frozen=True)
class Judged:
    """A value that was found, the true one, and the household of the text."""

    found: str | None
    """None where there was no verdict: always a wrong one."""
    true: str
    household: str


def agreement_figures(judged: Sequence[Judged], scale: Sequence[str]) -> dict[str, Estimate]:
    """How far found values agree with the true ones; intervals are over households, whose texts share their facts.

    Args:
        judged: of each text.
        scale: the values from the lowest to the highest.

    Returns:
        `accuracy`, `f1_<value>` of the lowest and the highest, `kappa` (Cohen's, linear weights) and `alpha`
        (Krippendorff's, ordinal). A value that neither side has leaves its F1 out.
    """
    if not judged:
        return {}
    found, true, households = _places(judged, scale)
    figures = {}
    for name, statistic in _statistics(scale).items():
        value = statistic(found, true)
        if not (name.startswith("f1_") and np.isnan(value)):
            drawn = [statistic(found[rows], true[rows]) for rows in _draws(households)]
            figures[name] = _interval(value, drawn, len(found))
    return figures


def gains(own: Sequence[Judged], other: Sequence[Judged], scale: Sequence[str]) -> dict[str, Estimate]:
    """What one judge has more than another one on the same texts, in the figures of `agreement_figures`.

    The F1 of a value is left out where one of them has none.

    Args:
        own: of each text.
        other: of the same texts, in the same order.
        scale: the values from the lowest to the highest.
    """
    if not own:
        return {}
    found, true, households = _places(own, scale)
    beside, _, _ = _places(other, scale)
    figures = {}
    for name, statistic in _statistics(scale).items():
        value = statistic(found, true) - statistic(beside, true)
        if not (name.startswith("f1_") and np.isnan(value)):
            drawn = [
                statistic(found[rows], true[rows]) - statistic(beside[rows], true[rows]) for rows in _draws(households)
            ]
            figures[name] = _interval(value, drawn, len(found))
    return figures


def _statistics(scale: Sequence[str]) -> dict[str, Statistic]:
    return {
        "accuracy": lambda found, true: float((found == true).mean()),
        "kappa": partial(_kappa, len(scale)),
        "alpha": lambda found, true: alpha([found.tolist(), true.tolist()]),
        **{f"f1_{scale[place].lower()}": partial(_f1, place) for place in (0, len(scale) - 1)},
    }


def _places(judged: Sequence[Judged], scale: Sequence[str]) -> tuple[Places, Places, NDArray[np.str_]]:
    true = np.array([scale.index(one.true) for one in judged])
    # Without a verdict a value that is wrong, and by which the F1 of neither end gains.
    middle = len(scale) // 2
    found = np.array(
        [
            scale.index(one.found) if one.found is not None else (middle if place != middle else 0)
            for one, place in zip(judged, true, strict=True)
        ]
    )
    return found, true, np.array([one.household for one in judged])


def _draws(households: NDArray[np.str_], seed: int = 0) -> Iterator[Places]:
    """Rows of resampled households, each with all its texts."""
    generator = np.random.default_rng(seed)
    names, members = np.unique(households, return_inverse=True)
    rows = [np.flatnonzero(members == number) for number in range(len(names))]
    for _ in range(RESAMPLES // 4):
        yield np.concatenate([rows[number] for number in generator.integers(len(names), size=len(names))])


def _interval(value: float, drawn: Sequence[float], n: int) -> Estimate:
    """95 %, percentile; resamples without a value are left out."""
    finite = [one for one in drawn if np.isfinite(one)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite else (value, value)
    return Estimate(float(value), float(low), float(high), n)


def alpha(ratings: Sequence[Sequence[float]]) -> float:
    """Krippendorff's alpha, ordinal, of raters' values of the same texts; NaN where all values are equal.

    Args:
        ratings: a row a rater, a column a text; NaN where a rater gave none.
    """
    values = np.array(ratings, dtype=float)
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


def calibration_estimate(probabilities: Sequence[float], right: Sequence[bool], households: Sequence[str]) -> Estimate:
    """`calibration_error`, with an interval over households."""
    p, hits = np.asarray(probabilities, dtype=float), np.asarray(right, dtype=bool)
    drawn = [calibration_error(p[rows].tolist(), hits[rows].tolist()) for rows in _draws(np.array(households))]
    return _interval(calibration_error(probabilities, right), drawn, len(right))


def against_people(ratings: Mapping[str, Sequence[float]], judged: Mapping[str, float]) -> dict[str, Estimate]:
    """Whether a judge agrees with a rater's peers as well as the rater does.

    Each rating stands beside the mean of the text's other ratings: `people` is the rank correlation (Spearman) of
    ratings and these means, `judge` that of the judge's value and the same means.

    Args:
        ratings: raters' values by text; texts with fewer than two are left out.
        judged: the judge's value by text; those without one are left out.

    Returns:
        `people`, `judge`, and among the raters `alpha` (Krippendorff's, ordinal), `kappa` (Cohen's, linear weights, of
        all pairs of raters of a text, each in both orders), and `pairs`: the share of pairs with the same value.
    """
    texts = [text for text, values in ratings.items() if text in judged and len(values) > 1]
    if not texts:
        return {}
    rows = [
        (text, value, (sum(ratings[text]) - value) / (len(ratings[text]) - 1), judged[text])
        for text in texts
        for value in ratings[text]
    ]
    names = np.array([text for text, *_ in rows])
    values, peers, own = (np.array([row[column] for row in rows], dtype=float) for column in (1, 2, 3))

    def correlation(mine: NDArray[np.float64]) -> Estimate:
        def of(drawn: Places) -> float:
            some, others = mine[drawn], peers[drawn]
            return float(spearmanr(some, others).statistic) if np.ptp(some) and np.ptp(others) else 0.0

        return _interval(of(np.arange(len(rows))), [of(drawn) for drawn in _draws(names)], len(texts))

    scale, places = np.unique(np.concatenate([ratings[text] for text in texts]), return_inverse=True)
    told = np.split(places, np.cumsum([len(ratings[text]) for text in texts])[:-1])
    table = np.full((len(texts), max(map(len, told))), np.nan)
    for row, own_places in zip(table, told, strict=True):
        row[: len(own_places)] = own_places

    def among_raters(statistic: Callable[[Places], float]) -> Estimate:
        drawn = [statistic(rows) for rows in _draws(np.array(texts))]
        return _interval(statistic(np.arange(len(texts))), drawn, len(texts))

    def kappa(rows: Places) -> float:
        pairs = np.array([pair for row in rows for pair in permutations(told[row], 2)])
        return _kappa(len(scale), pairs[:, 0], pairs[:, 1])

    same = [float(np.mean([one == other for one, other in combinations(ratings[text], 2)])) for text in texts]
    return {
        "people": correlation(values),
        "judge": correlation(own),
        "alpha": among_raters(lambda rows: alpha(table[rows].T.tolist())),
        "kappa": among_raters(kappa),
        "pairs": estimate(same),
    }


def _kappa(values: int, found: Places, true: Places) -> float:
    if len(np.union1d(found, true)) < 2:
        return float("nan")
    return float(cohen_kappa_score(found, true, labels=np.arange(values), weights="linear"))


def _f1(place: int, found: Places, true: Places) -> float:
    """F1 of one value; NaN where neither side has it."""
    both = int(((found == place) & (true == place)).sum())
    either = int((found == place).sum() + (true == place).sum())
    return 2 * both / either if either else float("nan")
