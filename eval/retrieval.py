"""Ranked lists of the classical recommenders on held-out baskets and on the weeks of a season.

A recommender is fitted once a level on `LevelData.training`; its settings are those that are worth most before the
validation baskets. What is kept of it is the first `DEPTH` entities of each household: with bought ones, and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product

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
from eval.baskets import ENTITY, Baskets, Ids, Level, LevelData
from eval.sasrec import Sasrec, SasrecSettings, train_sasrec
from eval.splits import VALIDATION_BASKET, Case, basket_cases
from tools.dataset import Dataset
from tools.towers import TowerIndex

DEPTH = 30
VALIDATION_USERS = 500
VALIDATION_SEED = 7

KNN_GRID = [KnnSettings(*pair) for pair in product((20, 100, 500), (5.0, 50.0))]
EASE_GRID: dict[Level, Sequence[float]] = {
    "leaf": (100.0, 500.0, 2000.0, 5000.0),
    "category": (20.0, 100.0, 500.0, 2000.0),
    "product": (2000.0,),
}
"""A product's own matrix takes a minute to invert: one value, that of the leaves."""
HALF_LIVES = (15.0, 30.0, 60.0, 120.0)
TIFU_GRID = [
    TifuSettings(group, within, across, neighbours, own)
    for group, within, across, neighbours, own in product((7, 15), (0.9, 1.0), (0.7, 0.9), (300,), (0.5, 0.7, 0.9))
]

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
        scores = model.score(history, question.as_of)
        with_bought.append(best(scores))
        scores[question.bought] = -np.inf
        new.append(best(scores))
    return Ranking(np.array(with_bought), np.array(new))


def best(scores: NDArray[np.float64]) -> Ids:
    """The `DEPTH` entities of the highest finite scores, padded with -1."""
    near = np.argpartition(-scores, min(4 * DEPTH, len(scores) - 1))[: 4 * DEPTH]
    near.sort()
    ordered = near[np.argsort(-scores[near], kind="stable")][:DEPTH]
    ordered = ordered[np.isfinite(scores[ordered])]
    return np.pad(ordered, (0, DEPTH - len(ordered)), constant_values=-1)


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
class TowerRecommender:
    """Trained towers; it reads titles and scores leaves, each by its best title."""

    index: TowerIndex
    leaf_of: Ids
    """Leaf of each title."""
    leaves: int

    def score(self, history: Baskets, as_of: datetime) -> Scores:
        """See `Recommender`."""
        of_titles = self.index.score_all(self.index.interests(*history.flat(as_of)))
        scores = np.full(self.leaves, -np.inf)
        np.maximum.at(scores, self.leaf_of, of_titles)
        return scores


def leaf_numbers(dataset: Dataset, products: LevelData, leaves: LevelData) -> Ids:
    """The leaf of each product; where a title hangs under several leaves, the first by name."""
    number = {name: row for row, name in enumerate(leaves.entities)}
    pairs = dataset.items.select(title=ENTITY["product"], leaf=ENTITY["leaf"]).unique().sort("title", "leaf")
    first = dict(pairs.unique("title", keep="first", maintain_order=True).iter_rows())
    return np.array([number[first[title]] for title in products.entities], dtype=np.int64)


@dataclass(frozen=True)
class Fitted:
    """A recommender of one level, and how its settings were found."""

    name: str
    model: Recommender
    settings: object


def fit_all(dataset: Dataset, data: LevelData, report: Callable[[str], None]) -> Iterator[Fitted]:
    """Every classical recommender of a level, fitted and chosen.

    Args:
        dataset: the data set.
        data: its purchases at the level.
        report: called with a sentence at each step.
    """
    train, size, counts = data.training(), len(data.entities), data.daily
    asked = questions(data, basket_cases(dataset, VALIDATION_BASKET, VALIDATION_USERS, VALIDATION_SEED))

    def valued(model: Recommender) -> float:
        return worth(model, data, asked)

    yield Fitted("popularity", Popularity(counts, None), None)
    yield Fitted("popularity_28d", Popularity(counts, RECENT_DAYS), RECENT_DAYS)
    yield Fitted("own_frequency", Own(counts, None), None)
    report(f"{data.level}: half-life of own purchases")
    yield Fitted("own_recency", *choose(lambda half_life: Own(counts, half_life), HALF_LIVES, valued))
    report(f"{data.level}: item-kNN")
    yield Fitted("item_knn", *choose(lambda settings: item_knn(train, size, settings), KNN_GRID, valued))
    report(f"{data.level}: EASE")
    yield Fitted("ease", *choose(lambda value: ease(train, size, value), EASE_GRID[data.level], valued))
    report(f"{data.level}: TIFU-kNN")
    yield Fitted("tifu_knn", *choose(lambda settings: TifuKnn(train, size, settings), TIFU_GRID, valued))
    settings = SasrecSettings()
    network: Sasrec = train_sasrec(train, size, settings, valued, lambda message: report(f"{data.level}: {message}"))
    yield Fitted("sasrec", network, settings)
