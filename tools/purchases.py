"""What purchases before a moment tell: co-purchase of leaves, demand of the day, own habits, who buys alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.linalg import inv
from scipy.sparse import csr_matrix

from tools.dataset import BASKET, Dataset
from tools.history import HALF_LIFE_DAYS, LONGEST_RHYTHM_DAYS
from tools.loading import load_once

LATELY_DAYS = 28
"""What households bought within so many days, and what of it for the first time, tells what is taken up now."""
DUE_FROM = 0.7
"""A leaf is due again when so much of its mean interval has passed since it was last bought."""
SHRINK = 5.0
"""Households added to a count before it divides: three that bought two things are no association yet."""
SHRINK_OF_CONFIDENCE = 50.0
"""The same where the few best leaves are shown to people: by less, what hardly anybody buys comes first."""

EASE_REGULARISATION = 500.0
"""Chosen on validation baskets; a household's own part in the counts is below a thousandth of it."""
EASE_LEAVES = 4000
"""The leaves that most households bought: the time of an inversion grows with the cube of how many they are."""

PEERS = 200
"""Households most alike that tell what one of their kind buys."""
TASTE_HALF_LIFE_DAYS = 60.0
LEAST_RARITY = 0.2
"""Of a leaf that nearly all households buy, in their tastes."""
DAYPARTS = (11, 15, 19)
"""Hours that part a day; with the weekend apart there are eight times of the week."""
WEEKDAYS = 5
"""From Monday on; the others are the weekend."""
SHRINK_OF_HOUR = 160.0
"""Purchases of the usual mixture that are added to those of a time of the week."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BasketLines:
    """What is in baskets, a line for each leaf of each basket, the oldest first; households and leaves by number."""

    users: list[str]
    leaves: list[str]
    user: NDArray[np.int64]
    """(n,)."""
    leaf: NDArray[np.int64]
    """(n,)."""
    moment: NDArray[np.datetime64]
    """When the first of the leaf was put into the basket, (n,)."""

    def split(self, moment: datetime) -> tuple[BasketLines, BasketLines]:
        """The lines before a moment and those from it on, by the same numbers."""
        count = int(np.searchsorted(self.moment, np.datetime64(moment), side="left"))
        before, after = (
            replace(self, user=self.user[part], leaf=self.leaf[part], moment=self.moment[part])
            for part in (slice(count), slice(count, None))
        )
        return before, after

    def summed(self, values: NDArray[np.float64]) -> csr_matrix:
        """The sum of a value a line for each household and leaf, (users, leaves)."""
        return csr_matrix((values, (self.user, self.leaf)), shape=(len(self.users), len(self.leaves)))

    def whether(self) -> csr_matrix:
        """1 where a household bought a leaf, (users, leaves)."""
        bought = self.summed(np.ones(len(self.leaf)))
        bought.data = np.ones(bought.nnz, dtype=np.float32)
        return bought


@load_once(maxsize=4)
def _all_lines(dataset: Dataset) -> BasketLines:
    """The lines of all baskets: what may be seen of them is for `lines_before` to say."""
    lines = (
        purchases_before(dataset, datetime.max)
        .group_by("user_id", "leaf", BASKET)
        .agg(pl.col("timestamp").min())
        .sort("timestamp", "user_id", "leaf")
    )
    users, leaves = (lines[name].unique().sort() for name in ("user_id", "leaf"))
    user, leaf = (
        lines[name].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
        for name, names in (("user_id", users), ("leaf", leaves))
    )
    return BasketLines(users.to_list(), leaves.to_list(), user, leaf, lines["timestamp"].to_numpy())


@load_once(maxsize=4)
def lines_before(dataset: Dataset, before: datetime) -> BasketLines:
    """The lines before a moment, with the households and leaves that are in them."""
    lines, _ = _all_lines(dataset).split(before)
    users, user = _only_those_there(lines.users, lines.user)
    leaves, leaf = _only_those_there(lines.leaves, lines.leaf)
    return BasketLines(users, leaves, user, leaf, lines.moment)


def _only_those_there(names: Sequence[str], numbers: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """The names that the numbers (n,) are of, and the numbers among these."""
    there = np.bincount(numbers, minlength=len(names)) > 0
    return [names[number] for number in np.flatnonzero(there)], (np.cumsum(there) - 1)[numbers]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """How many households bought two leaves, before some moment."""

    leaves: list[str]
    row: dict[str, int]
    together: csr_matrix
    """Households that bought both, (n, n); the diagonal has those that bought the leaf."""
    category: dict[str, str]
    """Of each leaf, the category above it."""
    bought: Scores
    """The diagonal, (n,)."""

    def likely(self, weights: Scores) -> Scores:
        """For each leaf j: `sum_i w_i n_ij / (n_i + SHRINK)`, what households with this history buy; popular first."""
        return np.asarray(self.together @ (weights / (self.bought + SHRINK)), dtype=np.float32)

    def close(self, weights: Scores) -> Scores:
        """For each leaf j: `sum_i w_i n_ij / sqrt((n_i + SHRINK)(n_j + SHRINK))`, the cosine; specific first."""
        scale = np.sqrt(self.bought + SHRINK)
        return np.asarray(self.together @ (weights / scale) / scale, dtype=np.float32)

    def confidence(self, leaf: str) -> dict[str, float]:
        """For each leaf j, itself included: `n_ij / (n_j + SHRINK_OF_CONFIDENCE)`, i being `leaf`.

        That is the confidence of the rule "who buys j buys i" (Agrawal et al. 1993), shrunk.

        Empty for a leaf that nobody bought yet.
        """
        if leaf not in self.row:
            return {}
        shares = self.together[self.row[leaf]].toarray()[0] / (self.bought + SHRINK_OF_CONFIDENCE)
        return dict(zip(self.leaves, shares.tolist(), strict=True))


@load_once(maxsize=64)
def neighbours(dataset: Dataset, before: datetime) -> Neighbours:
    """Which leaves households bought besides which, counted over all purchases before `before`."""
    lines = lines_before(dataset, before)
    ever = lines.whether()
    together = (ever.T @ ever).tocsr()
    paths = dataset.items["category"].unique().sort().to_list()
    category = {path[-1]: path[max(len(path) - 2, 0)] for path in paths}
    row = {leaf: index for index, leaf in enumerate(lines.leaves)}
    return Neighbours(lines.leaves, row, together, category, together.diagonal())


@load_once(maxsize=64)
def likely_besides(dataset: Dataset, before: datetime) -> NDArray[np.float32]:
    """EASE (Steck 2019) of all purchases before `before`: what to expect of households that bought a leaf.

    Returns:
        (n, n) for the n leaves of `neighbours(dataset, before)`; for a household's binary purchases x, `x B` scores
        each leaf. Zero beyond the `EASE_LEAVES` most bought.
    """
    near = neighbours(dataset, before)
    first = np.argsort(-near.bought, kind="stable")[:EASE_LEAVES]
    weights = np.zeros(near.together.shape, dtype=np.float32)
    weights[np.ix_(first, first)] = ease_weights(near.together[first][:, first], EASE_REGULARISATION)
    return weights


def ease_weights(together: csr_matrix, regularisation: float) -> NDArray[np.float32]:
    """Ridge regression of each entity on all others: `B = I - P / diag(P)`, `P = (X'X + rI)^-1` (EASE, Steck 2019).

    Args:
        together: households that bought both, (n, n); the diagonal has those that bought the entity.
        regularisation: added to the diagonal.

    Returns:
        (n, n), zero on the diagonal.
    """
    gram = together.toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularisation
    inverse = inv(gram, overwrite_a=True, assume_a="pos")
    inverse /= -np.diag(inverse)
    np.fill_diagonal(inverse, 0.0)
    return np.asarray(inverse, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Peers:
    """What each of m households bought before some moment; the n leaves are those of `Neighbours` of that moment."""

    row: dict[str, int]
    """Of each household."""
    tastes: csr_matrix
    """Root of its decayed baskets times rarity, as unit vectors, (m, n)."""
    rarity: Scores
    """log(m / households that bought the leaf), (n,)."""
    bought: tuple[csr_matrix, csr_matrix, csr_matrix]
    """1 for what each bought in the last `LATELY_DAYS` days, what of it for the first time, and ever, (m, n)."""

    def buy(self, user_id: str, taste: Scores) -> Scores:
        """For each leaf the share of the `PEERS` households most alike that bought it, weighted by the squared cosine.

        Args:
            user_id: the household itself is none of its peers.
            taste: its own decayed purchases, (n,), see `decayed_baskets`.

        Returns:
            (3, n): lately, lately for the first time, ever. Zero for a household that bought nothing.
        """
        own = np.sqrt(taste) * self.rarity
        alike = self.tastes @ (own / max(float(np.linalg.norm(own)), 1e-9))
        if user_id in self.row:
            alike[self.row[user_id]] = 0
        nearest = np.argsort(-alike, kind="stable")[:PEERS]
        weights = alike[nearest] ** 2
        weights /= max(float(weights.sum()), 1e-9)
        return np.asarray([matrix[nearest].T @ weights for matrix in self.bought], dtype=np.float32)


@load_once(maxsize=8)
def peers(dataset: Dataset, before: datetime) -> Peers:
    """The households of a data set by what they bought before `before`."""
    near, lines = neighbours(dataset, before), lines_before(dataset, before)
    ages = (np.datetime64(before) - lines.moment) / np.timedelta64(1, "D")
    rarity = np.log(np.maximum(len(lines.users), 1) / (near.bought + 1)).clip(min=LEAST_RARITY).astype(np.float32)
    tastes = lines.summed(0.5 ** (ages / TASTE_HALF_LIFE_DAYS)).sqrt().astype(np.float32).multiply(rarity).tocsr()
    norms = np.sqrt(np.asarray(tastes.multiply(tastes).sum(axis=1))).ravel()
    tastes = tastes.multiply(1 / np.maximum(norms, 1e-9)[:, None]).tocsr()
    earlier, recent = (part.whether() for part in lines.split(before - timedelta(days=LATELY_DAYS)))
    row = {user: number for number, user in enumerate(lines.users)}
    return Peers(row, tastes, rarity, (recent, recent - recent.multiply(earlier), lines.whether()))


def decayed_baskets(dataset: Dataset, user_id: str, as_of: datetime) -> dict[str, float]:
    """For each leaf of a household its baskets, each worth half as much every `TASTE_HALF_LIFE_DAYS`."""
    baskets = purchases_before(dataset, as_of, user_id).group_by("leaf", BASKET).agg(pl.col("timestamp").min())
    age = (pl.lit(as_of) - pl.col("timestamp")).dt.total_seconds() / 86_400
    return dict(baskets.group_by("leaf").agg((0.5 ** (age / TASTE_HALF_LIFE_DAYS)).sum()).iter_rows())


def times_of_week(moments: pl.Series) -> NDArray[np.int64]:
    """The part of the day of each moment, and of the weekend's four more: 0 to 7."""
    weekend = moments.dt.weekday().to_numpy() > WEEKDAYS
    parts = np.searchsorted(DAYPARTS, moments.dt.hour().to_numpy(), side="right")
    return np.asarray(parts + (len(DAYPARTS) + 1) * weekend, dtype=np.int64)


@load_once(maxsize=64)
def lift_of_times(dataset: Dataset, before: datetime) -> Scores:
    """How much likelier each leaf of `Neighbours` is at each time of the week than ever: log-ratios, shrunk, (8, n)."""
    lines = lines_before(dataset, before)
    times, leaves = 2 * (len(DAYPARTS) + 1), len(lines.leaves)
    cells = times_of_week(pl.Series(lines.moment)) * leaves + lines.leaf
    counts = np.bincount(cells, minlength=times * leaves).reshape(times, leaves).astype(np.float64)
    usual = SHRINK_OF_HOUR * counts.sum(axis=0) / max(counts.sum(), 1)
    expected = counts.sum(axis=1, keepdims=True) * usual / SHRINK_OF_HOUR
    return np.asarray(np.log((counts + usual) / (expected + usual)), dtype=np.float32)


@load_once(maxsize=2048)
def buyers(dataset: Dataset, before: datetime, days: int) -> dict[str, int]:
    """How many households bought each leaf in the last days before a moment."""
    lines = lines_before(dataset, before)
    counts = lines.split(before - timedelta(days=days))[1].whether().getnnz(axis=0)
    return {lines.leaves[leaf]: int(counts[leaf]) for leaf in np.flatnonzero(counts)}


def own_leaves(dataset: Dataset, user_id: str, as_of: datetime) -> pl.DataFrame:
    """The leaves of a household, the weightiest first.

    Returns:
        `leaf`, `weight` as in `HistoryLine`, `since` (days since it was last bought), `every` (mean days between, null
        where bought on one day), `days` (on how many it was bought), whether it is `due`.
    """
    age = (pl.lit(as_of) - pl.col("timestamp")).dt.total_seconds() / 86_400
    day = pl.col("timestamp").dt.date()
    return (
        purchases_before(dataset, as_of, user_id)
        .group_by("leaf")
        .agg(
            weight=(0.5 ** (age / HALF_LIFE_DAYS)).sum(),
            since=age.min(),
            every=(day.max() - day.min()).dt.total_days() / (day.n_unique() - 1),
            days=day.n_unique(),
        )
        .with_columns(
            due=(pl.col("days") > 2)
            & (pl.col("every") <= LONGEST_RHYTHM_DAYS)
            & (pl.col("since") >= DUE_FROM * pl.col("every"))
        )
        .sort("weight", "leaf", descending=[True, False])
    )


def purchases_before(
    dataset: Dataset, before: datetime, user_id: str | None = None, since: datetime | None = None
) -> pl.DataFrame:
    """Purchases with their `title` and `leaf`, of all households or one."""
    events = dataset.history(user_id, before) if user_id else dataset.events_before(before, since)
    names = dataset.items.select("item_id", "title", leaf=pl.col("category").list.last())
    return events.filter(pl.col("action") == "purchase").join(names, on="item_id", maintain_order="left")


def start_of_week(moment: datetime) -> datetime:
    """Monday, 00:00: what is counted over all households is counted once a week."""
    midnight = datetime.combine(moment.date(), datetime.min.time())
    return midnight - timedelta(days=midnight.weekday())


def row_of(near: Neighbours, values: Mapping[str, float]) -> Scores:
    """Values of leaves as a row of `near`, zero for the others."""
    row = np.zeros(len(near.leaves), dtype=np.float32)
    for leaf, value in values.items():
        if leaf in near.row:
            row[near.row[leaf]] = value
    return row
