"""Recommenders that read no text: popularity, habit, neighbours, EASE, TIFU-kNN. SASRec is in `eval.sasrec`.

Each is fitted on `LevelData.training` alone and then reads one `Situation`; it scores every
entity of its level (leaf, category or product).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from eval.baskets import Baskets, DailyCounts, Situation, Training
from tools.purchases import ease_weights

Scores = NDArray[np.float64]
Settings = TypeVar("Settings")
RECENT_DAYS = 28


class Recommender(Protocol):
    """Scores every entity for one household."""

    def score(self, seen: Situation) -> Scores:
        """(n,), higher is better."""


@dataclass(frozen=True)
class Popularity:
    """Purchases of all households before the day of the cut."""

    counts: DailyCounts
    days: int | None
    """Only so many days back; None for all."""

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`."""
        return self.counts.before(seen.as_of, self.days).astype(np.float64)


@dataclass(frozen=True)
class Own:
    """The household's own baskets, each worth `0.5 ** (age / half_life)`; what it never bought by popularity."""

    counts: DailyCounts
    half_life: float | None
    """Days; None counts all baskets alike."""

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`."""
        scores = np.zeros(self.counts.entities)
        for age, content in zip(seen.history.ages(seen.as_of), seen.history.contents, strict=True):
            scores[content] += 1.0 if self.half_life is None else 0.5 ** (age / self.half_life)
        popular = self.counts.before(seen.as_of, RECENT_DAYS)
        return scores + 1e-12 * popular / max(int(popular.max()), 1)


@dataclass(frozen=True)
class Linear:
    """Scores `x B` of the household's binary purchases x, for an entity-to-entity matrix B (n, n)."""

    weights: NDArray[np.float32] | csr_matrix

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`."""
        return np.asarray(self.weights[seen.history.distinct()].sum(axis=0), dtype=np.float64).ravel()


@dataclass(frozen=True)
class KnnSettings:
    """Settings of item-kNN."""

    neighbours: int
    shrinkage: float
    """Added to the denominator of the cosine: two shared households are no likeness yet."""


def item_knn(train: Training, entities: int, settings: KnnSettings) -> Linear:
    """Cosine of two entities' households, the nearest of each entity kept (Deshpande and Karypis 2004)."""
    x = purchases(train, entities)
    together = (x.T @ x).tocsr().astype(np.float32)
    sold = together.diagonal()
    together.setdiag(0)
    together.eliminate_zeros()
    rows = np.repeat(np.arange(entities), np.diff(together.indptr))
    together.data /= np.sqrt(sold[rows] * sold[together.indices]) + settings.shrinkage
    for start, end in zip(together.indptr[:-1], together.indptr[1:], strict=True):
        values = together.data[start:end]
        if len(values) > settings.neighbours:
            values[np.argpartition(values, -settings.neighbours)[: -settings.neighbours]] = 0.0
    together.eliminate_zeros()
    return Linear(together)


def ease(train: Training, entities: int, regularisation: float) -> Linear:
    """EASE (Steck 2019), see `tools.purchases.ease_weights`."""
    x = purchases(train, entities)
    return Linear(ease_weights(x.T @ x, regularisation))


def purchases(train: Training, entities: int) -> csr_matrix:
    """Households by entities, 1 where bought."""
    columns = [household.distinct() for household in train.values()]
    rows = np.repeat(np.arange(len(train)), [len(column) for column in columns])
    flat = np.concatenate(columns)
    return csr_matrix((np.ones(len(flat), dtype=np.float32), (rows, flat)), shape=(len(train), entities))


@dataclass(frozen=True)
class TifuSettings:
    """Settings of TIFU-kNN."""

    group: int
    """Baskets a group."""
    within: float
    """Decay from basket to basket in a group, r_b."""
    across: float
    """Decay from group to group, r_g."""
    neighbours: int
    own: float
    """Weight of the household's own vector, alpha."""


class TifuKnn:
    """Temporal item frequency vectors, the household's own mixed with those of its neighbours (Hu et al. 2020)."""

    def __init__(self, train: Training, entities: int, settings: TifuSettings) -> None:
        """Vectors of all training households, (households, n)."""
        self._entities, self._settings = entities, settings
        self._row = {user: row for row, user in enumerate(train)}
        self._vectors = np.stack([self._vector(household) for household in train.values()])
        self._norms = np.einsum("ij,ij->i", self._vectors, self._vectors)

    def score(self, seen: Situation) -> Scores:
        """See `Recommender`; neighbours by Euclidean distance."""
        own = self._vector(seen.history)
        distance = self._norms - 2 * self._vectors @ own
        if seen.user_id in self._row:  # no household is its own neighbour
            distance[self._row[seen.user_id]] = np.inf
        count = min(self._settings.neighbours, len(distance))
        near = np.argpartition(distance, count - 1)[:count]
        alpha = self._settings.own
        return np.asarray(alpha * own + (1 - alpha) * self._vectors[near].mean(axis=0), dtype=np.float64)

    def _vector(self, history: Baskets) -> NDArray[np.float32]:
        """(n,): the mean over groups of the mean over their baskets, both decayed; the last weigh most."""
        settings = self._settings
        vector = np.zeros(self._entities, dtype=np.float32)
        count = len(history.contents)
        groups = max(-(-count // settings.group), 1)
        for position, content in enumerate(reversed(history.contents)):
            group, place = divmod(position, settings.group)
            size = min(settings.group, count - group * settings.group)
            vector[content] += settings.across**group / groups * settings.within**place / size
        return vector


def choose(
    build: Callable[[Settings], Recommender], grid: Sequence[Settings], worth: Callable[[Recommender], float]
) -> tuple[Recommender, Settings]:
    """The recommender of the grid that is worth most on validation, and its settings; the first of equals."""
    best: tuple[float, Recommender, Settings] | None = None
    for settings in grid:
        model = build(settings)
        value = worth(model)
        if best is None or value > best[0]:
            best = (value, model, settings)
    if best is None:
        raise ValueError("the grid is empty")
    return best[1], best[2]
