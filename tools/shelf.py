"""Shelves: leaf categories that tools propose to an expert for its persona, to choose from and to add to.

Each from events before the request alone: what the household bought before, and what it never bought, the likeliest
first by the ranker. A leaf goes to the persona whose evidence it is most bought with (co-purchase), so that no two
experts are shown the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tools.dataset import Dataset
from tools.purchases import neighbours, own_leaves, row_of, start_of_week
from tools.signals import trends

KNOWN_SHARE = 0.4
"""Of a shelf: what was bought before. Households buy more of it than of anything new; the rest is for new leaves."""
FIT = 0.25
"""Exponent of how well a new leaf goes with a persona, beside its chance; chosen on validation baskets."""
OWN_LINES = 3
"""New leaves of each shelf are of the evidence's own categories, so that it reads as its persona's; more hit less."""

Why = Literal["due again", "bought before", "rising", "new"]


class ShelfLine(BaseModel):
    """A leaf category that may be worth a tag."""

    model_config = ConfigDict(frozen=True)

    leaf: str
    why: Why

    @property
    def known(self) -> bool:
        """The household bought it before."""
        return self.why in ("due again", "bought before")


def fill_shelves(
    dataset: Dataset,
    user_id: str,
    as_of: datetime,
    evidence: Sequence[Sequence[str]],
    size: int,
    chances: Mapping[str, float],
) -> list[list[ShelfLine]]:
    """A shelf for each persona of a household: what it bought before, then new leaves, both the likeliest first.

    How well leaf j goes with persona k is `fit_kj = close_kj / close_k`: its cosine to the evidence (see
    `tools.purchases.Neighbours`) over the mean of what is bought. New leaves come in the order of
    `chance_j * max_k fit_kj ** FIT`. Each leaf goes to the persona that it fits best of those that have room; the best
    `OWN_LINES` of its evidence's own categories a persona has in any case.

    Args:
        dataset: the data set; only events before `as_of` are read.
        user_id: the household.
        as_of: the moment of the request.
        evidence: for each persona the leaves of its history lines.
        size: most lines of a shelf.
        chances: of leaves to be bought next; see `tools.ranker.leaf_chances`.
    """
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    near = neighbours(dataset, start_of_week(as_of))
    own = own_leaves(dataset, user_id, as_of)
    known, due = set(own["leaf"]), set(own.filter("due")["leaf"])
    rising = {leaf for signal in trends(dataset, midnight) for leaf in signal.categories}
    close = np.zeros((len(evidence), len(near.leaves)))
    for k, leaves in enumerate(evidence):
        close[k] = near.close(row_of(near, dict.fromkeys(leaves, 1.0)))
    usual = close @ near.bought / max(float(near.bought.sum()), 1.0)
    fit = close / np.maximum(usual, 1e-9)[:, None]
    chance = np.array([chances.get(leaf, 0.0) for leaf in near.leaves])
    scores = chance * fit.max(axis=0, initial=0.0) ** FIT
    old = [row for row in np.argsort(-chance, kind="stable") if near.leaves[row] in known]
    new = [row for row in np.argsort(-scores, kind="stable") if near.leaves[row] not in known]
    shelves: list[list[int]] = [[] for _ in evidence]
    _divide(old, fit, shelves, round(size * KNOWN_SHARE))
    for shelf, leaves in zip(shelves, evidence, strict=True):
        categories = {near.category[leaf] for leaf in leaves if leaf in near.category}
        taken = set(chain.from_iterable(shelves))
        alike = (row for row in new if row not in taken and near.category[near.leaves[row]] in categories)
        shelf += islice(alike, min(OWN_LINES, size - len(shelf)))
    _divide(new, fit, shelves, size)
    place = {row: number for number, row in enumerate([*old, *new])}
    return [
        [ShelfLine(leaf=(leaf := near.leaves[row]), why=_why(leaf, known, due, rising)) for row in rows]
        for rows in (sorted(shelf, key=lambda row: place[row]) for shelf in shelves)
    ]


def _divide(rows: Sequence[int], fit: NDArray[np.float64], shelves: list[list[int]], room: int) -> None:
    """Put each leaf, in their order, on the shelf of the persona that it fits best (K, n) of those with room."""
    taken = set(chain.from_iterable(shelves))
    for row in rows:
        open_to = [k for k, shelf in enumerate(shelves) if len(shelf) < room]
        if not open_to:
            return
        best = max(open_to, key=lambda k: fit[k, row])
        if row not in taken and fit[best, row] > 0:
            shelves[best].append(row)


def _why(leaf: str, known: set[str], due: set[str], rising: set[str]) -> Why:
    if leaf in known:
        return "due again" if leaf in due else "bought before"
    return "rising" if leaf in rising else "new"


def tag_text(leaf: str) -> str:
    """A leaf's name as one would type it into a search: `Shredded Cheese` is `shredded cheese`."""
    return leaf.lower()[:48].strip(" ,-")
