"""The one ranker of both channels: how likely a household buys each leaf category at its next visit.

A small network reads what purchases before the moment tell of household and leaf (`FEATURES`) and gives a logit a leaf;
leaves that the agents tagged get a bonus on it. The softmax over all leaves is the share p that a leaf is expected to
have in the next basket; it is in a basket of b leaves with probability `1 - exp(-b p)` (Poisson). So the answer is a
probability, which the traffic allocation can bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from tools.dataset import Dataset
from tools.errors import ModelFilesError
from tools.loading import load_once
from tools.occasions import Occasions
from tools.purchases import (
    Scores,
    buyers,
    decayed_baskets,
    lift_of_times,
    likely_besides,
    neighbours,
    own_leaves,
    peers,
    purchases_before,
    row_of,
    start_of_week,
    times_of_week,
)
from tools.retrieval import leaf_paths
from tools.towers import TowerIndex, tower_scores
from tools.weights import CARD, read_weights, write_weights

RANKER = Path(__file__).parent.parent / "training" / "weights" / "ranker"
"""The trained ranker that comes with the project."""
WEIGHTS = "ranker.safetensors"
HIDDEN = 64
MEMBERS = 3
"""Networks whose logits are averaged: one alone hits up to .01 more or fewer of the new leaves by its seed."""
FEATURES = (
    "bought",
    "days_bought",
    "share_of_days",
    "weight",
    "days_since",
    "since_over_rhythm",
    "has_rhythm",
    "buyers_3_days",
    "buyers_7_days",
    "buyers_28_days",
    "rise_3_days",
    "rise_7_days",
    "buyers_ever",
    "likely",
    "close",
    "ease",
    "category_weight",
    "household_days",
    "towers",
    "peers_lately",
    "peers_first",
    "peers_ever",
    "time_of_week",
    "occasion_3_days",
    "occasion_10_days",
    "occasion_past",
)
"""Columns of `LeafTable.features`; counts and days as log(1 + x), rises as log-ratios to the last four weeks."""
DEMAND_DAYS = (3, 7, 28)
OCCASION_DAYS = ((0, 3), (4, 10), (-14, -1))
"""From today; after a holiday what was bought for it says little of what is needed."""
FEWEST_BUYERS = 2.0
"""Added to counts of buyers before their ratio says that a leaf rises: three after one are no trend."""
TOWER_LEAVES = 1000
"""Leaves that the towers propose, of those never bought."""
LONGEST_OVERDUE = 4.0
"""A leaf that was skipped four times in a row is no longer due."""


Source = Literal["cognitive", "habit", "towers"]
"""The channel of a candidate: the agents' tags; and of the utility channel, own purchases or the towers."""


@dataclass(frozen=True, eq=False)
class LeafTable:
    """All leaves of the catalogue, as one household's ranker sees them."""

    leaves: Sequence[str]
    row: Mapping[str, int]
    bought: NDArray[np.bool_]
    """(n,)."""
    basket: float
    """Leaves that the household buys on a day of shopping, on average; 1 before its first."""
    features: Scores
    """(n, len(FEATURES))."""


def read_leaf_table(
    dataset: Dataset, user_id: str, as_of: datetime, towers: Mapping[str, float], occasions: Occasions
) -> LeafTable:
    """Features of every leaf, from events before `as_of` alone.

    Args:
        dataset: the data set.
        user_id: the household.
        as_of: the moment.
        towers: scores of leaves by the towers; those without one get the lowest. Empty where there are no towers.
        occasions: of the data set.
    """
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    monday = start_of_week(as_of)
    near = neighbours(dataset, monday)
    catalogue = read_catalogue(dataset)
    known = [leaf for leaf in catalogue.leaves if leaf in near.row]
    there, source = [catalogue.row[leaf] for leaf in known], [near.row[leaf] for leaf in known]
    own = own_leaves(dataset, user_id, as_of)

    def column(values: Mapping[str, float]) -> Scores:
        row = np.zeros(len(catalogue.leaves), dtype=np.float32)
        row[[catalogue.row[leaf] for leaf in values]] = list(values.values())
        return row

    def own_column(name: str) -> Scores:
        return column(dict(own.select("leaf", name).fill_nan(0).fill_null(0).iter_rows()))

    def from_neighbours(values: Scores) -> Scores:
        row = np.zeros(len(catalogue.leaves), dtype=np.float32)
        row[there] = values[source]
        return row

    bought = column(dict.fromkeys(own["leaf"], 1.0))
    days, weight, since, every = (own_column(name) for name in ("days", "weight", "since", "every"))
    rhythm = (days > 2) & (every > 0)
    household_days = max(purchases_before(dataset, as_of, user_id)["timestamp"].dt.date().n_unique(), 1)
    recent = row_of(near, dict(own.select("leaf", pl.col("weight").sqrt()).iter_rows()))
    demand = {span: column(buyers(dataset, midnight, span)) for span in DEMAND_DAYS}
    month = demand[DEMAND_DAYS[-1]]
    taste = row_of(near, decayed_baskets(dataset, user_id, as_of))
    lowest = min(towers.values(), default=0.0)
    tower_scores = np.array([towers.get(leaf, lowest) for leaf in catalogue.leaves], dtype=np.float32)
    columns = [
        bought,
        np.log1p(days),
        days / household_days,
        np.log1p(weight),
        np.log1p(since) * bought,
        np.where(rhythm, np.minimum(since / np.maximum(every, 1), LONGEST_OVERDUE), 0),
        rhythm,
        *(np.log1p(found) for found in demand.values()),
        *(_rise(demand[span], month * np.float32(span / DEMAND_DAYS[-1])) for span in DEMAND_DAYS[:-1]),
        np.log1p(from_neighbours(near.bought)),
        np.log1p(from_neighbours(near.likely(recent))),
        np.log1p(from_neighbours(near.close(recent))),
        from_neighbours((recent > 0) @ likely_besides(dataset, monday)),
        np.log1p(np.bincount(catalogue.category, weight)[catalogue.category]),
        np.full(len(catalogue.leaves), np.log(household_days)),
        (tower_scores - tower_scores.mean()) / max(float(tower_scores.std()), 1e-6),
        *(from_neighbours(share) for share in peers(dataset, monday).buy(user_id, taste)),
        from_neighbours(lift_of_times(dataset, monday)[times_of_week(pl.Series([as_of]))[0]]),
        *(occasions.between(as_of.date(), *span) for span in OCCASION_DAYS),
    ]
    features = np.stack([np.asarray(values, dtype=np.float32) for values in columns], axis=1)
    basket = max(float(days.sum()) / household_days, 1.0)
    return LeafTable(catalogue.leaves, catalogue.row, bought > 0, basket, features)


def _rise(found: Scores, expected: Scores) -> Scores:
    """Log-ratio of buyers found and expected, (n,)."""
    return np.asarray(np.log((found + FEWEST_BUYERS) / (expected + FEWEST_BUYERS)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The leaves of a data set, by name."""

    leaves: list[str]
    row: dict[str, int]
    category: NDArray[np.int64]
    """Number of the category above each leaf, (n,)."""


@load_once(maxsize=4)
def read_catalogue(dataset: Dataset) -> Catalogue:
    """The leaves of a data set with their categories."""
    paths = leaf_paths(dataset)
    leaves = [path[-1] for path in paths]
    _, category = np.unique([(path[:1] + path)[-2] for path in paths], return_inverse=True)
    return Catalogue(leaves, {leaf: row for row, leaf in enumerate(leaves)}, np.asarray(category, dtype=np.int64))


def candidates(table: LeafTable, tagged: Sequence[str], towers: Mapping[str, float]) -> dict[str, Source]:
    """What the channels propose, each leaf with the first that does: tags, own purchases, the towers."""
    own = [leaf for leaf, bought in zip(table.leaves, table.bought, strict=True) if bought]
    new = towers.keys() - set(own)
    near = sorted(new, key=lambda leaf: (-towers[leaf], leaf))[:TOWER_LEAVES]
    found: dict[str, Source] = {}
    proposals: tuple[tuple[Source, Sequence[str]], ...] = (("cognitive", tagged), ("habit", own), ("towers", near))
    for source, leaves in proposals:
        for leaf in leaves:
            found.setdefault(leaf, source)
    return found


@dataclass(frozen=True)
class Candidate:
    """A leaf that a channel proposes."""

    source: Source
    chance: float
    """To be bought at the next visit."""
    new: bool
    """The household never bought it."""


def rank_candidates(
    ranker: Ranker,
    dataset: Dataset,
    user_id: str,
    as_of: datetime,
    tagged: Sequence[str],
    towers: Mapping[str, float],
    occasions: Occasions,
) -> dict[str, Candidate]:
    """What the channels propose to a household, by leaf.

    Args:
        ranker: tells the chances.
        dataset: the data set; only events before `as_of` are read.
        user_id: the household.
        as_of: the moment.
        tagged: leaves that final tags name.
        towers: scores of leaves by the towers; empty where there are none.
        occasions: of the data set.
    """
    table = read_leaf_table(dataset, user_id, as_of, towers, occasions)
    chances = ranker.chances(table, tagged)
    rows = {leaf: (source, table.row[leaf]) for leaf, source in candidates(table, tagged, towers).items()}
    return {
        leaf: Candidate(source, float(chances[row]), new=not table.bought[row]) for leaf, (source, row) in rows.items()
    }


def leaf_chances(
    ranker: Ranker,
    dataset: Dataset,
    user_id: str,
    as_of: datetime,
    towers: Mapping[str, float],
    occasions: Occasions,
) -> dict[str, float]:
    """The chance of each leaf of the catalogue to be in a household's next basket, whatever the tags.

    The arguments are those of `rank_candidates`.
    """
    table = read_leaf_table(dataset, user_id, as_of, towers, occasions)
    return dict(zip(table.leaves, ranker.chances(table, ()).tolist(), strict=True))


class Network(nn.Module):
    """Standardised features to one logit: the mean of several networks that differ in their first weights."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        """New weights."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))
        self.members = nn.ModuleList(_member() for _ in range(MEMBERS))

    def each(self, features: torch.Tensor) -> torch.Tensor:
        """(n, features) to the logits of each member, (n, MEMBERS)."""
        standardised = (features - self.mean) / self.scale
        return torch.cat([member(standardised) for member in self.members], dim=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, features) to logits (n,)."""
        return self.each(features).mean(dim=1)


def _member() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(len(FEATURES), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1)
    )


@dataclass(frozen=True)
class Ranker:
    """A trained network, and what a tag is worth."""

    network: Network
    tag_bonus: float
    """Added to the logit of a leaf that a final tag names."""

    def chances(self, table: LeafTable, tagged: Sequence[str]) -> Scores:
        """The chance of each leaf to be bought at the next visit, (n,).

        Args:
            table: of the household.
            tagged: leaves that the agents' tags name.
        """
        bonus = torch.zeros(len(table.leaves))
        bonus[[table.row[leaf] for leaf in tagged]] = self.tag_bonus
        with torch.inference_mode():
            shares = (self.network(torch.from_numpy(table.features)) + bonus).softmax(dim=0)
        return np.asarray(-np.expm1(-table.basket * shares.numpy()), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class UtilityChannel:
    """What is bought anyway: own purchases and towers, by the ranker."""

    ranker: Ranker
    towers: TowerIndex
    occasions: Occasions

    def rank(self, dataset: Dataset, user_id: str, as_of: datetime, tagged: Sequence[str] = ()) -> dict[str, Candidate]:
        """See `rank_candidates`."""
        towers = tower_scores(self.towers, dataset, user_id, as_of)
        return rank_candidates(self.ranker, dataset, user_id, as_of, tagged, towers, self.occasions)

    def chances(self, dataset: Dataset, user_id: str, as_of: datetime) -> dict[str, float]:
        """See `leaf_chances`."""
        towers = tower_scores(self.towers, dataset, user_id, as_of)
        return leaf_chances(self.ranker, dataset, user_id, as_of, towers, self.occasions)


def save_ranker(ranker: Ranker, directory: Path, card: Mapping[str, object]) -> None:
    """Write weights and card."""
    document = {"features": FEATURES, "tag_bonus": ranker.tag_bonus, **card}
    write_weights(directory, WEIGHTS, ranker.network.state_dict(), document)


@load_once(maxsize=4)
def load_ranker(directory: Path) -> Ranker:
    """A ranker from its directory.

    Raises:
        ModelFilesError: it is missing, damaged, or of other features.
    """
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
        if tuple(card["features"]) != FEATURES:
            raise ValueError(f"it reads the features {card['features']}, this version has {list(FEATURES)}")
        network = Network()
        network.load_state_dict(read_weights(directory, WEIGHTS, card))
        return Ranker(network.eval(), float(card["tag_bonus"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFilesError(
            f"{directory} holds no ranker of this version ({error}); train it with `recgpt train ranker`"
        ) from error
