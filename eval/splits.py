"""What is trained on, chosen on and tested on (leave-last-basket-out).

A household's last basket is for tests, the one before it for every choice; no weight has seen either, nor anything
from `TRAIN_END` on. Cases before `TRAIN_END` are left out: what was fitted up to then would know of others' purchases
that lie after them. So most validation baskets lie within the environment weeks too, and what is chosen on them
(settings of recommenders, when training stops, what a tag is worth) is chosen with a glance at those weeks; weights are
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tools.dataset import BASKET, Dataset
from tools.loading import load_once

TRAIN_END = datetime(2017, 11, 17)
"""The evaluation weeks, and the year's only Thanksgiving, start here: no weight may have seen them."""
HELD_OUT_BASKETS = 2
"""A household's last baskets: the last is tested on, the one before it is what choices are validated on."""
TEST_BASKET = 1
"""From the end: the last basket."""
VALIDATION_BASKET = 2
"""From the end: the last basket but one."""
LEAST_BASKETS = 3
"""Of a household, so that something comes before the held-out ones."""
SEED = 7
"""Of the draw of households."""
HOUSEHOLDS = Path(__file__).with_name("households.txt")
"""The 500 households of `completejourney` that are tested first, in this order: figures are of the first N."""
WEEKS = {
    "thanksgiving": datetime(2017, 11, 17),
    "control": datetime(2017, 12, 1),
    "christmas": datetime(2017, 12, 18),
}
"""Cuts of the environment weeks: the year's only Thanksgiving, its Christmas, and a week without a holiday."""
WEEK_DAYS = 7


@dataclass(frozen=True)
class Case:
    """One household before one basket."""

    user_id: str
    as_of: datetime
    """Start of the basket: a request at this moment sees nothing of it."""
    target: frozenset[str]
    """Distinct leaves of the basket."""
    bought: frozenset[str]
    """Leaves that the household bought before; a target that is not among them is new."""


def basket_cases(dataset: Dataset, basket: int, users: int, seed: int) -> list[Case]:
    """Households with their basket number `basket` from the end as the target.

    Those are left out whose basket is before `TRAIN_END`, or at the same moment as another of theirs.

    Args:
        dataset: the data set.
        basket: 1 for the last basket, `VALIDATION_BASKET` for the one before it.
        users: how many households, drawn by `seed`; the first of a smaller draw are those of a larger one.
        seed: of the draw.
    """
    leaves = dataset.items.select("item_id", leaf=pl.col("category").list.last())
    events = dataset.events_before(dataset.last_event + timedelta(seconds=1)).join(leaves, on="item_id")
    baskets = (
        events.filter(pl.col("action") == "purchase")
        .group_by("user_id", BASKET)
        .agg(pl.col("timestamp").min(), pl.col("leaf").unique().sort())
        .sort("timestamp", "basket")
        .group_by("user_id", maintain_order=True)
        .agg("timestamp", "leaf")
        .filter(pl.col("timestamp").list.len() >= LEAST_BASKETS)
        .sort("user_id")
    )
    order = np.random.default_rng(seed).permutation(len(baskets))
    cases: list[Case] = []
    for user_id, starts, contents in baskets[order.tolist()].iter_rows():
        as_of = starts[-basket]
        if len(cases) == users:
            break
        if as_of < TRAIN_END or starts.count(as_of) > 1 or as_of == starts[0]:
            continue
        before = [leaf for start, content in zip(starts, contents, strict=True) if start < as_of for leaf in content]
        cases.append(Case(user_id, as_of, frozenset(contents[-basket]), frozenset(before)))
    return cases


@load_once(maxsize=16)
def evaluation_cases(dataset: Dataset, users: int | None) -> list[Case]:
    """Households before their last basket: those of `HOUSEHOLDS` first, then the others by `SEED`; None for all."""
    cases = {case.user_id: case for case in basket_cases(dataset, TEST_BASKET, dataset.users.height, SEED)}
    first = [user for user in HOUSEHOLDS.read_text(encoding="utf-8").split() if user in cases]
    return [cases[user] for user in dict.fromkeys([*first, *cases])][:users]


@load_once(maxsize=16)
def week_cases(dataset: Dataset, start: datetime, users: int | None) -> list[Case]:
    """The same households at the start of a week; the target is what they bought in it, if anything.

    Args:
        dataset: the data set.
        start: the moment of the request.
        users: at most so many; None for all.
    """
    leaves = dataset.items.select("item_id", leaf=pl.col("category").list.last())
    events = dataset.events_before(start + timedelta(days=WEEK_DAYS)).filter(pl.col("action") == "purchase")
    past = pl.col("timestamp") < start
    sides = (
        events.join(leaves, on="item_id")
        .group_by("user_id")
        .agg(bought=pl.col("leaf").filter(past).unique(), target=pl.col("leaf").filter(~past).unique())
        .filter(pl.col("bought").list.len() > 0, pl.col("target").list.len() > 0)
    )
    known = {user: (frozenset(target), frozenset(bought)) for user, bought, target in sides.iter_rows()}
    order = [case.user_id for case in evaluation_cases(dataset, None) if case.user_id in known]
    return [Case(user, start, *known[user]) for user in order[:users]]
