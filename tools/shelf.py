"""Shelves: leaf categories that tools propose to an expert for its persona, to choose from and to add to.

Three sources, each from events before the request alone: what the household buys and is due again; what rises this
week; and what households that bought the same things bought besides (co-purchase). New leaves, which the household
never bought, are divided among the personas, so that no two experts are shown the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.sparse import csr_matrix

from tools.dataset import Dataset
from tools.history import HALF_LIFE_DAYS, LONGEST_RHYTHM_DAYS
from tools.loading import load_once
from tools.signals import trends

KNOWN_SHARE = 0.25
"""Of a shelf: what is due again. New leaves are what an expert is for; habit has a channel of its own."""
OWN_EVERY = 4
"""Each fourth new leaf is of the evidence's own categories. With more of them a shelf reads better and hits less."""
FIRST_DAYS = 28
"""How many households bought a leaf for the first time within so many days tells what is taken up now."""
DUE_FROM = 0.7
"""A leaf is due again when so much of its mean interval has passed since it was last bought."""
SHRINK = 5.0
"""Households added to a count before it divides: three that bought two things are no association yet."""

Why = Literal["due again", "rising", "new"]
Scores = NDArray[np.float32]


class ShelfLine(BaseModel):
    """A leaf category that may be worth a tag."""

    model_config = ConfigDict(frozen=True)

    leaf: str
    why: Why


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
    taken_up: Scores
    """Households that bought the leaf for the first time in the last `FIRST_DAYS` days, plus one, (n,)."""

    def likely(self, weights: Scores) -> Scores:
        """For each leaf j: `sum_i w_i n_ij / (n_i + SHRINK)`, what households with this history buy; popular first."""
        return np.asarray(self.together @ (weights / (self.bought + SHRINK)), dtype=np.float32)

    def close(self, weights: Scores) -> Scores:
        """For each leaf j: `sum_i w_i n_ij / sqrt((n_i + SHRINK)(n_j + SHRINK))`, the cosine; specific first."""
        scale = np.sqrt(self.bought + SHRINK)
        return np.asarray(self.together @ (weights / scale) / scale, dtype=np.float32)


def fill_shelves(
    dataset: Dataset, user_id: str, as_of: datetime, evidence: Sequence[Sequence[str]], size: int
) -> list[list[ShelfLine]]:
    """A shelf for each persona of a household: what is due again, then new leaves, best first.

    A new leaf's score for a persona is `close * sqrt(likely * taken_up)`, see `Neighbours`; the personas choose in
    turn, each its best or, every `OWN_EVERY`th time, its best among the categories of its evidence.

    Args:
        dataset: the data set; only events before `as_of` are read.
        user_id: the household.
        as_of: the moment of the request.
        evidence: for each persona the leaves of its history lines.
        size: most lines of a shelf.
    """
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    near = neighbours(dataset, midnight - timedelta(days=midnight.weekday()))
    own = _own_leaves(dataset, user_id, as_of)
    shelves: list[list[ShelfLine]] = [[] for _ in evidence]
    taken = set(own["leaf"])
    closeness = np.array([near.close(_row(near, dict.fromkeys(leaves, 1.0))) for leaves in evidence])
    for leaf in own.filter("due")["leaf"]:
        for k in np.argsort(-closeness[:, near.row[leaf]], kind="stable") if leaf in near.row else ():
            if closeness[k, near.row[leaf]] > 0 and len(shelves[k]) < round(size * KNOWN_SHARE):
                shelves[k].append(ShelfLine(leaf=leaf, why="due again"))
                break
    rising = {leaf for signal in trends(dataset, midnight) for leaf in signal.categories}
    likely = near.likely(_row(near, dict(zip(own["leaf"], own["weight"].sqrt(), strict=True))))
    ranked = []
    for leaves, close in zip(evidence, closeness, strict=True):
        scores = close * np.sqrt(likely * near.taken_up)
        best = [near.leaves[i] for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
        categories = {near.category[leaf] for leaf in leaves if leaf in near.category}
        ranked.append((iter(best), iter([leaf for leaf in best if near.category[leaf] in categories])))
    for turn in range(1, size + 1):
        for shelf, (best_left, own_left) in zip(shelves, ranked, strict=True):
            candidates = chain(own_left, best_left) if turn % OWN_EVERY == 0 else best_left
            if len(shelf) < size and (leaf := next((leaf for leaf in candidates if leaf not in taken), None)):
                shelf.append(ShelfLine(leaf=leaf, why="rising" if leaf in rising else "new"))
                taken.add(leaf)
    return shelves


def tag_text(leaf: str) -> str:
    """A leaf's name as one would type it into a search: `Shredded Cheese` is `shredded cheese`."""
    return leaf.lower()[:48].strip(" ,-")


@load_once(maxsize=64)
def neighbours(dataset: Dataset, before: datetime) -> Neighbours:
    """Which leaves households bought besides which, counted over all purchases before `before`."""
    first = _purchases(dataset, before).group_by("user_id", "leaf").agg(pl.col("timestamp").min())
    pairs = first.sort("user_id", "leaf")
    lately = pairs.filter(pl.col("timestamp") >= before - timedelta(days=FIRST_DAYS))["leaf"].value_counts()
    leaves = pairs["leaf"].unique().sort().to_list()
    row = {leaf: index for index, leaf in enumerate(leaves)}
    users = pairs["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    columns = pairs["leaf"].replace_strict(row, return_dtype=pl.Int32).to_numpy()
    matrix = csr_matrix(
        (np.ones(len(pairs), dtype=np.float32), (users, columns)), shape=(pairs["user_id"].n_unique(), len(leaves))
    )
    together = (matrix.T @ matrix).tocsr()
    paths = dataset.items["category"].unique().sort().to_list()
    category = {path[-1]: path[max(len(path) - 2, 0)] for path in paths}
    taken_up = np.ones(len(leaves), dtype=np.float32)
    for leaf, households in lately.iter_rows():
        taken_up[row[leaf]] += households
    return Neighbours(leaves, row, together, category, together.diagonal(), taken_up)


def _own_leaves(dataset: Dataset, user_id: str, as_of: datetime) -> pl.DataFrame:
    """The leaves of a household with `weight` as in `HistoryLine` and whether it is `due`, the weightiest first."""
    age = (pl.lit(as_of) - pl.col("timestamp")).dt.total_seconds() / 86_400
    day = pl.col("timestamp").dt.date()
    return (
        _purchases(dataset, as_of, user_id)
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


def _purchases(dataset: Dataset, before: datetime, user_id: str | None = None) -> pl.DataFrame:
    events = dataset.history(user_id, before) if user_id else dataset.events_before(before)
    leaves = dataset.items.select("item_id", leaf=pl.col("category").list.last())
    return events.filter(pl.col("action") == "purchase").join(leaves, on="item_id")


def _row(near: Neighbours, values: Mapping[str, float]) -> Scores:
    """Values of leaves as a row of `near`, zero for the others."""
    row = np.zeros(len(near.leaves), dtype=np.float32)
    for leaf, value in values.items():
        if leaf in near.row:
            row[near.row[leaf]] = value
    return row
