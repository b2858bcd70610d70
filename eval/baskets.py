"""Purchases as numbers, for recommenders that read no text: what each household bought when, at one level."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from eval.splits import HELD_OUT_BASKETS, TRAIN_END
from tools.dataset import BASKET, Dataset
from tools.errors import DatasetError

Level = Literal["leaf", "category", "product"]
LEVELS: tuple[Level, ...] = ("leaf", "category", "product")
ENTITY: dict[Level, pl.Expr] = {
    "leaf": pl.col("category").list.last(),
    "category": pl.col("category").list.get(-2, null_on_oob=True).fill_null(pl.col("category").list.last()),
    "product": pl.col("title"),
}
"""What a row of `items` is at each level. Products that read alike are one: no shopper could tell them apart."""
DAY = np.timedelta64(1, "D")

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Baskets:
    """One household's baskets, in order of time."""

    starts: NDArray[np.datetime64]
    """(b,), microseconds."""
    contents: list[Ids]
    """Distinct entities of each."""

    def before(self, moment: datetime) -> Baskets:
        """Those that started before a moment."""
        count = int(np.searchsorted(self.starts, np.datetime64(moment), side="left"))
        return Baskets(self.starts[:count], self.contents[:count])

    def ages(self, moment: datetime) -> NDArray[np.float64]:
        """Days from each start to a moment, (b,)."""
        return np.asarray((np.datetime64(moment) - self.starts) / DAY, dtype=np.float64)

    def flat(self, moment: datetime) -> tuple[Ids, NDArray[np.float64]]:
        """Everything bought, oldest first, and how many days before a moment."""
        sizes = [len(content) for content in self.contents]
        flat = np.concatenate(self.contents) if self.contents else np.empty(0, dtype=np.int64)
        return flat, np.repeat(self.ages(moment), sizes)

    def distinct(self) -> Ids:
        """All entities that were ever bought, ascending."""
        return np.unique(np.concatenate(self.contents)) if self.contents else np.empty(0, dtype=np.int64)


Training = dict[str, Baskets]
"""Baskets by household."""


@dataclass(frozen=True)
class Situation:
    """What a recommender may know: a household at a moment, and its baskets before that."""

    user_id: str
    as_of: datetime
    history: Baskets


@dataclass(frozen=True)
class DailyCounts:
    """How often each of n entities was bought up to each day."""

    first_day: np.datetime64
    total: NDArray[np.int32]
    """(days + 1, n): purchases before the start of each day."""

    @property
    def entities(self) -> int:
        """How many there are, n."""
        return int(self.total.shape[1])

    def before(self, moment: datetime, days: int | None = None) -> NDArray[np.int32]:
        """(n,): purchases before the day of a moment, of the last `days` days where given."""
        end = int(np.clip((np.datetime64(moment, "D") - self.first_day) / DAY, 0, len(self.total) - 1))
        start = 0 if days is None else max(end - days, 0)
        return np.asarray(self.total[end] - self.total[start])


@dataclass(frozen=True)
class LevelData:
    """All baskets of a data set at one level. It reaches to the end: readers cut by `Baskets.before`."""

    level: Level
    entities: list[str]
    households: dict[str, Baskets]
    daily: DailyCounts

    def training(self) -> Training:
        """What may be fitted on: before `TRAIN_END`, and none of a household's last `HELD_OUT_BASKETS` baskets.

        Raises:
            DatasetError: nothing is left.
        """
        kept: Training = {}
        for user, own in self.households.items():
            seen = own.before(TRAIN_END)
            count = min(len(seen.contents), len(own.contents) - HELD_OUT_BASKETS)
            if count > 0:
                kept[user] = Baskets(own.starts[:count], own.contents[:count])
        if not kept:
            raise DatasetError(
                f"no household has {HELD_OUT_BASKETS + 1} baskets of which the first is before {TRAIN_END:%Y-%m-%d}: "
                "there is nothing to fit on; the evaluation needs a data set that begins earlier"
            )
        return kept


def read_level(dataset: Dataset, level: Level) -> LevelData:
    """Every purchase of the data set at one level."""
    events = (
        dataset.events_before(dataset.last_event + timedelta(seconds=1))
        .filter(pl.col("action") == "purchase")
        .join(dataset.items.select("item_id", entity=ENTITY[level]), on="item_id")
    )
    names = dataset.items.select(ENTITY[level].alias("entity")).to_series().unique().sort()
    events = events.join(pl.DataFrame({"entity": names, "number": np.arange(len(names))}), on="entity")
    baskets = (
        events.group_by("user_id", BASKET)
        .agg(pl.col("timestamp").min(), pl.col("number").unique().sort())
        .sort("user_id", "timestamp", "basket")
    )
    households = {
        str(user): Baskets(
            own["timestamp"].to_numpy().astype("datetime64[us]"),
            [np.asarray(content, dtype=np.int64) for content in own["number"].to_list()],
        )
        for (user,), own in baskets.partition_by("user_id", as_dict=True).items()
    }
    first = np.datetime64(dataset.first_event, "D")
    day = ((events["timestamp"].to_numpy().astype("datetime64[D]") - first) / DAY).astype(np.int64)
    counts = np.zeros((int(day.max()) + 2, len(names)), dtype=np.int32)
    np.add.at(counts, (day + 1, events["number"].to_numpy()), 1)
    return LevelData(level, names.to_list(), households, DailyCounts(first, np.cumsum(counts, axis=0, dtype=np.int32)))
