"""Shelves: leaf categories that tools propose to an expert for its persona, to choose from and to add to.

Each from events before the request alone: what the household bought before, the likeliest first by the ranker; and
what it never bought, by what households that bought the same things bought besides (co-purchase) and what they take up
now. Leaves are divided among the personas, so that no two experts are shown the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tools.dataset import Dataset
from tools.purchases import neighbours, own_leaves, row_of, start_of_week
from tools.signals import trends

KNOWN_SHARE = 0.4
"""Of a shelf: what was bought before. Households buy more of it than of anything new; the rest is for new leaves."""
OWN_EVERY = 4
"""Each fourth new leaf is of the evidence's own categories. With more of them a shelf reads better and hits less."""

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
    """A shelf for each persona of a household: what it bought before, the likeliest first, then new leaves, best first.

    A leaf that was bought before goes to the persona whose evidence it is closest to, as long as that has room for it.
    A new leaf's score for a persona is `close * sqrt(likely * taken_up)`, see `tools.purchases.Neighbours`; the
    personas choose in turn, each its best or, every `OWN_EVERY`th time, its best among the categories of its evidence.

    Args:
        dataset: the data set; only events before `as_of` are read.
        user_id: the household.
        as_of: the moment of the request.
        evidence: for each persona the leaves of its history lines.
        size: most lines of a shelf.
        chances: of the leaves that were bought before, to be bought next; see `tools.ranker.own_chances`.
    """
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    near = neighbours(dataset, start_of_week(as_of))
    own = own_leaves(dataset, user_id, as_of)
    due = set(own.filter("due")["leaf"])
    shelves: list[list[ShelfLine]] = [[] for _ in evidence]
    taken = set(own["leaf"])
    closeness = np.array([near.close(row_of(near, dict.fromkeys(leaves, 1.0))) for leaves in evidence])
    for leaf in sorted(own["leaf"], key=lambda leaf: -chances.get(leaf, 0.0)):
        for k in np.argsort(-closeness[:, near.row[leaf]], kind="stable") if leaf in near.row else ():
            if closeness[k, near.row[leaf]] > 0 and len(shelves[k]) < round(size * KNOWN_SHARE):
                shelves[k].append(ShelfLine(leaf=leaf, why="due again" if leaf in due else "bought before"))
                break
    rising = {leaf for signal in trends(dataset, midnight) for leaf in signal.categories}
    likely = near.likely(row_of(near, dict(zip(own["leaf"], own["weight"].sqrt(), strict=True))))
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
