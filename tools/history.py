"""A user's behaviour sequence B as the lines that a planner reads, and as the plain events that V1 reads.

Section 1 of the report defines `B = [(action, entity, timestamp)]`. Repeated actions on one entity
(one title; shops carry several items of the same title) are one `HistoryLine`, with how often, when last and
at what rhythm, since the rhythm is what tells that something is due. An `EventLine` is one action as it is, a `DayLine`
what was done on one day.
"""

from __future__ import annotations

from datetime import date, datetime

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from tools.dataset import BASKET, Action, Dataset

HALF_LIFE_DAYS = 30.0
"""A purchase of a month ago tells half as much of today's needs as one of today."""

LONGEST_RHYTHM_DAYS = 90
"""Three purchases in a year are no rhythm."""

DAY_ENTITIES = 200
"""Of one line: a day of more is several lines, of which as many are shown as fit."""

_DONE = {"search": "searched", "click": "viewed", "favourite": "liked", "cart": "put in the cart", "purchase": "bought"}


class HistoryLine(BaseModel):
    """One entity of the history and what was done with it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="h1, h2, ... in the order shown")
    action: Action
    item_id: str | None = Field(description="the item, the latest one where several share a title; None for a search")
    text: str = Field(description="title of the item, or the query")
    category: list[str] = Field(description="of the item, as a path from root to leaf; empty for a search")
    times: int
    first: datetime
    last: datetime
    weight: float = Field(description="how telling: the sum over its actions of 0.5 ** (age in days / 30)")
    every_days: float | None = Field(description="mean days between actions, from three actions on")

    @property
    def leaf(self) -> str | None:
        """Leaf category of the item."""
        return self.category[-1] if self.category else None

    def rhythm(self, as_of: datetime) -> str:
        """What was done and when, by the calendar, in words: `bought 9x, every 12 days, last 3 days ago`."""
        often = "once" if self.times == 1 else f"{self.times}x"
        every = self.every_days
        rhythm = f", every {max(round(every), 1)} days" if every and every <= LONGEST_RHYTHM_DAYS else ""
        days = (as_of.date() - self.last.date()).days
        ago = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
        return f"{_DONE[self.action]} {often}{rhythm}, {'last ' if self.times > 1 else ''}{ago}"


class EventLine(BaseModel):
    """One action on one entity, uncompressed."""

    model_config = ConfigDict(frozen=True)

    action: Action
    text: str = Field(description="title of the item, or the query")
    timestamp: datetime

    @property
    def dated(self) -> str:
        """What was done and on which day, in words: `bought 14 November 2017`."""
        return f"{_DONE[self.action]} {self.timestamp.day} {self.timestamp:%B %Y}"


class DayLine(BaseModel):
    """What was done on one day, as it happened."""

    model_config = ConfigDict(frozen=True)

    action: Action
    day: date
    entities: list[str] = Field(description="titles of the items, or queries, each once")

    def dated(self, as_of: datetime) -> str:
        """What was done and on which day, in words: `bought 14 November`, with the year where it is another one."""
        year = "" if self.day.year == as_of.year else f" {self.day.year}"
        return f"{_DONE[self.action]} {self.day.day} {self.day:%B}{year}"


def read_history(dataset: Dataset, user_id: str, as_of: datetime, by_leaf: bool = False) -> list[HistoryLine]:
    """All lines of the user's history before `as_of`, the most telling first.

    With `by_leaf` an item is called by its leaf category, and a line is one of these.

    A line's weight is the sum over its actions of `0.5 ** (age / HALF_LIFE_DAYS)`, that is, recent and frequent;
    ties are broken by the later action. Ids are given by `number_lines`, after any cut.

    Raises:
        UnknownUserError: no such user.
        NoHistoryError: the user has no event before `as_of`.
    """
    age = (pl.lit(as_of) - pl.col("timestamp")).dt.total_seconds() / 86_400
    lines = (
        _named_events(dataset, user_id, as_of, by_leaf)
        .with_columns(
            weight=0.5 ** (age / HALF_LIFE_DAYS),
            day=pl.col("timestamp").dt.date(),
        )
        .sort("timestamp", maintain_order=True)
        .group_by("action", "text")
        .agg(
            pl.col("item_id", "category").last(),
            pl.col("weight").sum(),
            times=BASKET.n_unique(),
            first=pl.col("timestamp").first(),
            last=pl.col("timestamp").last(),
            days=pl.col("day").n_unique(),
        )
        .sort("weight", "last", "text", descending=[True, True, False])
    )
    return [
        HistoryLine(
            id="",
            action=row["action"],
            item_id=row["item_id"],
            text=row["text"],
            category=row["category"] or [],
            times=row["times"],
            first=row["first"],
            last=row["last"],
            weight=round(row["weight"], 4),
            every_days=(row["last"] - row["first"]).days / (row["days"] - 1) if row["days"] > 2 else None,
        )
        for row in lines.iter_rows(named=True)
    ]


def read_events(dataset: Dataset, user_id: str, as_of: datetime) -> list[EventLine]:
    """Each event of the user before `as_of` as a line of its own, oldest first.

    Raises:
        UnknownUserError: no such user.
        NoHistoryError: the user has no event before `as_of`.
    """
    events = _named_events(dataset, user_id, as_of).select("action", "text", "timestamp")
    return [EventLine(**row) for row in events.iter_rows(named=True)]


def read_days(dataset: Dataset, user_id: str, as_of: datetime, by_leaf: bool = False) -> list[DayLine]:
    """The user's events before `as_of` by day and action, the newest day first; `by_leaf` as in `read_history`.

    Raises:
        UnknownUserError: no such user.
        NoHistoryError: the user has no event before `as_of`.
    """
    days = (
        _named_events(dataset, user_id, as_of, by_leaf)
        .with_columns(day=pl.col("timestamp").dt.date())
        .group_by("day", "action", maintain_order=True)
        .agg(entities=pl.col("text").unique(maintain_order=True))
        .reverse()
    )
    return [
        DayLine(action=action, day=day, entities=entities[start : start + DAY_ENTITIES])
        for day, action, entities in days.iter_rows()
        for start in range(0, len(entities), DAY_ENTITIES)
    ]


def _named_events(dataset: Dataset, user_id: str, as_of: datetime, by_leaf: bool = False) -> pl.DataFrame:
    """The user's events with `text` (what each was about) and the item's category, oldest first."""
    items = dataset.items.select("item_id", "title", "category")
    events = dataset.history(user_id, as_of).join(items, "item_id", "left", maintain_order="left")
    name = pl.col("category").list.last() if by_leaf else pl.col("title")
    return events.with_columns(text=pl.coalesce(name, "query", "item_id"))


def number_lines(lines: list[HistoryLine]) -> list[HistoryLine]:
    """The lines by category, so that those of one need stand together, oldest first in each; ids are h1, h2, ..."""
    ordered = sorted(lines, key=lambda line: (line.category, line.last, line.text))
    return [line.model_copy(update={"id": f"h{n}"}) for n, line in enumerate(ordered, 1)]
