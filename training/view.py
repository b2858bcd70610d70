"""The events that weights may be trained on."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from eval.splits import HELD_OUT_BASKETS, TRAIN_END
from tools.dataset import BASKET, Dataset
from tools.loading import load_once


@load_once(maxsize=4)
def training_view(dataset: Dataset) -> Dataset:
    """The data set without what may not be trained on: it has no way to reach the held-out events."""
    events = dataset.events_before(TRAIN_END)
    held_out = (
        all_events(dataset)
        .group_by("user_id", BASKET)
        .agg(pl.col("timestamp").min())
        .sort("timestamp", descending=True)
        .group_by("user_id", maintain_order=True)
        .head(HELD_OUT_BASKETS)
        .select("user_id", "basket")
    )
    kept = events.with_columns(BASKET).join(held_out, on=["user_id", "basket"], how="anti", maintain_order="left")
    return dataset.with_events(kept.drop("basket"))


def all_events(dataset: Dataset) -> pl.DataFrame:
    """Every event of a data set."""
    return dataset.events_before(dataset.last_event + timedelta(seconds=1))
