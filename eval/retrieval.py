"""Ranked lists on held-out baskets: the classical recommenders, the towers, and lists of leaves at other levels.

A recommender is fitted once a level on `LevelData.training`; its settings are those that are worth most before the
validation baskets (of products one setting is tried). What is kept of it is the first `DEPTH` entities of each
household: with bought ones, and without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.baselines import (
    RECENT_DAYS,
    KnnSettings,
    Own,
    Popularity,
    Recommender,
    Scores,
    TifuKnn,
    TifuSettings,
    choose,
    ease,
    item_knn,
)
from eval.baskets import Ids, LevelData, Situation
from eval.sasrec import SasrecSettings, train_sasrec
from eval.splits import SEED, TRAIN_END, VALIDATION_BASKET, Case, basket_cases
from tools.dataset import Dataset
from tools.ranker import UtilityChannel, read_catalogue
from tools.retrieval import leaf_paths
from tools.towers import TowerIndex, tower_scores

DEPTH = 30
VALIDATION_USERS = 500

KNN_GRID = [KnnSettings(*pair) for pair in product((10, 20, 100, 500), (5.0, 50.0, 200.0))]
EASE_GRID = (20.0, 100.0, 500.0, 2000.0, 5000.0)
HALF_LIFE_GRID = (15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
TIFU_GRID = [
    TifuSettings(group, within, across, 300, own)
    for group, within, across, own in product((3, 7), (0.9, 1.0), (0.7, 0.9, 1.0), (0.3, 0.5, 0.7))
]
PRODUCT_GRIDS: tuple[list[KnnSettings], list[float], list[float], list[TifuSettings]] = (
    [KnnSettings(100, 50.0)],
    [2000.0],
    [60.0],
    [TifuSettings(15, 0.9, 0.9, 300, 0.9)],
)
"""Products are seven times as many as leaves, and a fit takes minutes: one setting each."""
GRIDS = (KNN_GRID, EASE_GRID, HALF_LIFE_GRID, TIFU_GRID)

Lists = NDArray[np.int64]
"""(households, DEPTH) entities, best first; -1 where there are no more."""


@dataclass(frozen=True)
class Question:
    """What is asked of a recommender for one household at one level, and what came."""

    user_id: str
    as_of: datetime
    target: Ids
    bought: Ids


@dataclass(frozen=True)
class Ranking:
    """One recommender's answers to a list of questions."""

    all: Lists
    new: Lists
    """Without what the household bought before."""


def questions(data: LevelData, cases: Sequence[Case], days: int | None = None) -> list[Question]:
    """The cases at a level; the target is the basket at the moment of the case, or all of the `days` days from it."""
    asked = []
    for case in cases:
        own = data.households[case.user_id]
        past = own.before(case.as_of)
        end = (
            case.as_of + timedelta(days=days) if days else own.starts[len(past.contents)].item() + timedelta(seconds=1)
        )
        coming = own.before(end).contents[len(past.contents) :]
        asked.append(Question(case.user_id, case.as_of, np.unique(np.concatenate(coming)), past.distinct()))
    return asked


def rank(model: Recommender, data: LevelData, asked: Sequence[Question]) -> Ranking:
    """The first `DEPTH` of each household; of equal scores the first in the entities' order."""
    with_bought, new = [], []
    for question in asked:
        history = data.households[question.user_id].before(question.as_of)
        scores = model.score(Situation(question.user_id, question.as_of, history))
        with_bought.append(_first(scores))
        scores[question.bought] = -np.inf
        new.append(_first(scores))
    return Ranking(np.array(with_bought), np.array(new))


def hit_rates(ranking: Ranking, asked: Sequence[Question], k: int, new: bool) -> list[float | None]:
    """HR@k of each household, see `eval.metrics.hit_rate_at_k`; None where the basket has nothing new."""
    rates: list[float | None] = []
    for question, listed in zip(asked, ranking.new if new else ranking.all, strict=True):
        target = np.setdiff1d(question.target, question.bought) if new else question.target
        rates.append(float(np.isin(target, listed[:k]).mean()) if len(target) else None)
    return rates


def worth(model: Recommender, data: LevelData, asked: Sequence[Question]) -> float:
    """What settings are chosen by: HR@30 of all and of new, summed."""
    ranking = rank(model, data, asked)
    means = [[rate for rate in hit_rates(ranking, asked, DEPTH, new) if rate is not None] for new in (False, True)]
    return float(sum(np.mean(rates) for rates in means if rates))


@dataclass(frozen=True)
class Fitted:
    """A recommender, and the settings that were chosen."""

    model: Recommender
    settings: object = None


@dataclass(frozen=True)
class Method:
    """A classical recommender that is to be fitted."""

    fit: Callable[[], Fitted]
    grid: Sequence[object] = ()
    """Settings that are tried."""

    @property
    def key(self) -> str:
        """What its lists follow from, beside the data set."""
        parts = self.grid, TRAIN_END, VALIDATION_USERS, SEED
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def classical(dataset: Dataset, data: LevelData, report: Callable[[str], None]) -> dict[str, Method]:
    """The classical recommenders of a level, by name; SASRec on leaves alone, see `AtLevel`.

    Args:
        dataset: the data set.
        data: its purchases at the level.
        report: called with a sentence at each step.
    """
    train, size, counts = data.training(), len(data.entities), data.daily
    asked = questions(data, basket_cases(dataset, VALIDATION_BASKET, VALIDATION_USERS, SEED))

    def valued(model: Recommender) -> float:
        return worth(model, data, asked)

    def chosen(build: Callable[[Any], Recommender], grid: Sequence[Any]) -> Method:
        return Method(lambda: Fitted(*choose(build, grid, valued)), grid)

    def trained(settings: SasrecSettings) -> Method:
        return Method(lambda: Fitted(train_sasrec(train, size, settings, valued, report), settings), [settings])

    knn, regularisations, half_lives, tifu = PRODUCT_GRIDS if data.level == "product" else GRIDS
    methods: dict[str, Method] = {
        "popularity": Method(lambda: Fitted(Popularity(counts, None))),
        "popularity_28d": Method(lambda: Fitted(Popularity(counts, RECENT_DAYS))),
        "own_frequency": Method(lambda: Fitted(Own(counts, None))),
        "own_recency": chosen(lambda half_life: Own(counts, half_life), half_lives),
        "item_knn": chosen(lambda settings: item_knn(train, size, settings), knn),
        "ease": chosen(lambda value: ease(train, size, value), regularisations),
        "tifu_knn": chosen(lambda settings: TifuKnn(train, size, settings), tifu),
    }
    return methods | ({"sasrec": trained(SasrecSettings())} if data.level == "leaf" else {})


@dataclass(frozen=True)
class TowerRecommender:
    """The towers as `recgpt recommend` asks them, on leaves; the exponents of their scores, as in a softmax."""

    dataset: Dataset
    index: TowerIndex
    leaves: Sequence[str]

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`."""
        found = tower_scores(self.index, self.dataset, seen.user_id, seen.as_of)
        best = max(found.values(), default=0.0)
        return np.array([np.exp(found[leaf] - best) if leaf in found else -np.inf for leaf in self.leaves])


@dataclass(frozen=True)
class Listed:
    """Lists of leaves that are there already, such as those that tags name: the first scores 1, the second 1/2 ..."""

    leaves: Mapping[tuple[str, datetime], Sequence[str]]
    """By household and moment."""
    number: Mapping[str, int]
    """Of each leaf."""

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`; -inf for what is not listed."""
        scores = np.full(len(self.number), -np.inf)
        for position, leaf in enumerate(dict.fromkeys(self.leaves[seen.user_id, seen.as_of]), 1):
            scores[self.number[leaf]] = 1 / position
        return scores


@dataclass(frozen=True)
class Remembering:
    """A recommender that is asked once about each situation: the lists of several levels come from the same scores."""

    model: Recommender
    _scores: dict[tuple[str, datetime], Scores] = field(default_factory=dict)

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`."""
        key = seen.user_id, seen.as_of
        if key not in self._scores:
            self._scores[key] = self.model.score(seen)
        return self._scores[key].copy()


@dataclass(frozen=True)
class AtLevel:
    """What scores leaves, at the level of categories or products.

    A category is as good as its best leaf. A product shares its leaf's score by how often the household bought it, and
    then by how often all did in the last four weeks.
    """

    model: Recommender
    """Of leaves; its scores are positive, or -inf."""
    leaves: LevelData
    data: LevelData
    """Categories or products."""
    leaf_of: Ids
    """For categories: the category of each leaf. For products: the leaf of each product."""

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`; `seen` is at the level of `data`."""
        history = self.leaves.households[seen.user_id].before(seen.as_of)
        of_leaves = self.model.score(Situation(seen.user_id, seen.as_of, history))
        if self.data.level == "category":
            scores = np.full(len(self.data.entities), -np.inf)
            np.maximum.at(scores, self.leaf_of, of_leaves)
            return scores
        share = self.data.daily.before(seen.as_of, RECENT_DAYS) / max(1, len(self.data.households))
        for content in seen.history.contents:
            share[content] += 1
        total = np.bincount(self.leaf_of, share, minlength=len(of_leaves))
        with np.errstate(invalid="ignore"):  # -inf times 0, where a leaf is not listed and not sold
            scores = of_leaves[self.leaf_of] * share / np.maximum(total[self.leaf_of], 1e-9)
        return np.where(np.isfinite(scores) & (share > 0), scores, -np.inf)


@dataclass(frozen=True)
class Combined:
    """Both channels: the leaves of the tags, of the towers and of the household's own purchases, by the one ranker."""

    dataset: Dataset
    utility: UtilityChannel
    tagged: Mapping[tuple[str, datetime], Sequence[str]]
    """Leaves that final tags name, by household and moment; a household without an entry has no tags."""

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`; -inf for what no channel proposes."""
        tagged = self.tagged.get((seen.user_id, seen.as_of), ())
        found = self.utility.rank(self.dataset, seen.user_id, seen.as_of, tagged)
        row = read_catalogue(self.dataset).row
        scores = np.full(len(row), -np.inf)
        for leaf, candidate in found.items():
            scores[row[leaf]] = candidate.chance
        return scores


def categories_of_leaves(dataset: Dataset, categories: LevelData) -> Ids:
    """The category of each leaf; of one that hangs under several, that of its commonest path."""
    number = {name: row for row, name in enumerate(categories.entities)}
    return np.array([number[(path[:1] + path)[-2]] for path in leaf_paths(dataset)], dtype=np.int64)


def _first(scores: Scores) -> Ids:
    """The `DEPTH` entities of the highest finite scores, padded with -1."""
    ordered = np.argsort(-scores, kind="stable")[:DEPTH]
    ordered = ordered[np.isfinite(scores[ordered])]
    return np.pad(ordered, (0, DEPTH - len(ordered)), constant_values=-1)
