"""Retrieval of items for the final tags (section 8, cognitive channel), and what is shown when there are no tags."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import polars as pl
from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.schemas import RecommendedItem, Tag
from agents.state import RecommendState
from tools.dataset import Dataset, open_dataset
from tools.embedding import open_embedder
from tools.history import HistoryLine, read_history
from tools.retrieval import ItemMatch, open_index


async def retrieve_items(state: RecommendState, runtime: Runtime[Context]) -> RecommendState:
    """Find items for the tags, the best of each tag in turn; each item keeps the tag that found it.

    Without any tag the household's most telling purchases stand in, as channel `habit`: an answer is never an
    empty page, and `degraded` says what it is.
    """
    return await asyncio.to_thread(_retrieve, context_of(runtime), state)


def _retrieve(context: Context, state: RecommendState) -> RecommendState:
    dataset = open_dataset(context.dataset)
    if not state["tags"]:
        lines = read_history(dataset, state["user_id"], state["as_of"])
        items = list(_habit(dataset, [line for line in lines if line.item_id][: context.items]))
        return {"items": items, "degraded": ["items are the household's own purchases: there are no tags"]}
    index = open_index(dataset, open_embedder(context.embedding_model))
    found = index.search_items([tag.tag for tag in state["tags"]], context.items, state["as_of"])
    chosen = _in_turn(state["tags"], found, context.items)
    prices = _prices(dataset, [match.item_id for _, match in chosen])
    return {
        "items": [
            RecommendedItem(
                item_id=match.item_id,
                title=match.title,
                category=match.path,
                price=prices[match.item_id],
                tag=tag.tag,
                persona=tag.persona,
                channel="cognitive",
                score=round(match.score, 4),
            )
            for tag, match in chosen
        ]
    }


def _in_turn(tags: Sequence[Tag], found: Sequence[Sequence[ItemMatch]], count: int) -> list[tuple[Tag, ItemMatch]]:
    """The first match of each tag in the tags' order, then the second, until `count` items; no title twice."""
    chosen: dict[str, tuple[Tag, ItemMatch]] = {}
    for rank in zip_longest(*found):
        for tag, match in zip(tags, rank, strict=True):
            if match is not None and len(chosen) < count:
                chosen.setdefault(match.title, (tag, match))
    return list(chosen.values())


def _habit(dataset: Dataset, lines: Sequence[HistoryLine]) -> Iterator[RecommendedItem]:
    items = {row["item_id"]: row for row in _rows(dataset, [line.item_id for line in lines if line.item_id])}
    for line in lines:
        row = items[line.item_id or ""]
        yield RecommendedItem(
            item_id=row["item_id"],
            title=row["title"],
            category=row["category"],
            price=row["price"],
            tag=None,
            persona=None,
            channel="habit",
            score=0.0,
        )


def _prices(dataset: Dataset, item_ids: list[str]) -> dict[str, float | None]:
    return {row["item_id"]: row["price"] for row in _rows(dataset, item_ids)}


def _rows(dataset: Dataset, item_ids: list[str]) -> list[dict[str, Any]]:
    return dataset.items.filter(pl.col("item_id").is_in(item_ids)).to_dicts()
