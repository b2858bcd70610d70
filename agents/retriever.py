"""Retrieval of items for the final tags (section 8, cognitive channel), and what is shown when there are no tags."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any

import polars as pl
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from agents.assembler import explanation_task
from agents.calls import failed
from agents.context import Context, context_of
from agents.schemas import Household, RecommendedItem, Tag
from agents.state import RecommendState
from tools.dataset import Dataset, open_dataset
from tools.embedding import open_embedder
from tools.retrieval import ItemMatch, open_index, popular_items

STAND_IN_NOTE = "items are what the household buys already, then what all buy"


async def retrieve_items(state: RecommendState, runtime: Runtime[Context]) -> RecommendState:
    """Find items for the tags, the best of each tag in turn; each item keeps the tag that found it.

    Without any tag the household's most telling purchases stand in (channel `habit`), and after them what all
    households buy (`popular`): an answer is never an empty page, and `degraded` says what it is.
    """
    context = context_of(runtime)
    if not state["tags"]:
        items = await asyncio.to_thread(_stand_ins, context, state["household"], state["as_of"])
        return {"items": items, "degraded": [f"{STAND_IN_NOTE}: there are no tags"]}
    items = await asyncio.to_thread(_retrieve, context, state)
    short = f"{len(items)} items where {context.items} were asked for: the tags found no more"
    return {"items": items, "degraded": [short] if len(items) < context.items else []}


async def record_retrieval_failure(state: RecommendState, runtime: Runtime[Context], error: NodeError) -> Command[Any]:
    """Without embeddings there is no search; what is bought anyway stands in."""
    update = dict(failed("retriever", "household", error.error))
    items = await asyncio.to_thread(_stand_ins, context_of(runtime), state["household"], state["as_of"])
    update |= {"items": items, "degraded": [f"{STAND_IN_NOTE}: no search was possible"]}
    sends = [Send("explain_item", explanation_task({**state, "items": items}, item)) for item in items]
    return Command(update=update, goto=sends or "collect_explanations")


def _retrieve(context: Context, state: RecommendState) -> list[RecommendedItem]:
    dataset = open_dataset(context.dataset)
    index = open_index(dataset, open_embedder(context.embedding_model))
    found = index.search_items([tag.tag for tag in state["tags"]], context.items, state["as_of"])
    chosen = _in_turn(state["tags"], found, context.items)
    prices = dict(_rows(dataset, [match.item_id for _, match in chosen]).select("item_id", "price").iter_rows())
    evidence = {persona.name: [line.id for line in persona.evidence] for persona in state["personas"]}
    return [
        RecommendedItem(
            item_id=match.item_id,
            title=match.title,
            category=match.path,
            price=prices[match.item_id],
            tag=tag.tag,
            persona=tag.persona,
            channel="cognitive",
            score=round(match.score, 4),
            evidence=evidence[tag.persona],
        )
        for tag, match in chosen
    ]


def _in_turn(tags: Sequence[Tag], found: Sequence[Sequence[ItemMatch]], count: int) -> list[tuple[Tag, ItemMatch]]:
    """The first match of each tag in the tags' order, then the second, until `count` items; no title twice."""
    chosen: dict[str, tuple[Tag, ItemMatch]] = {}
    for rank in zip_longest(*found):
        for tag, match in zip(tags, rank, strict=True):
            if match is not None and len(chosen) < count:
                chosen.setdefault(match.title, (tag, match))
    return list(chosen.values())


def _stand_ins(context: Context, household: Household, as_of: datetime) -> list[RecommendedItem]:
    """The items of the household's most telling history lines, purchases first; then what all households buy."""
    dataset = open_dataset(context.dataset)
    lines = sorted(household.history, key=lambda line: (line.action != "purchase", -line.weight))
    evidence = {line.item_id: [line.id] for line in reversed(lines) if line.item_id}
    own = [item for item in dict.fromkeys(line.item_id for line in lines) if item]
    popular = popular_items(dataset, datetime.combine(as_of.date(), datetime.min.time()), context.items + len(own))
    order = list(dict.fromkeys([*own, *popular]))[: context.items]
    rows = {row["item_id"]: row for row in _rows(dataset, order).iter_rows(named=True)}
    return [
        RecommendedItem(
            item_id=item,
            title=rows[item]["title"],
            category=rows[item]["category"],
            price=rows[item]["price"],
            tag=None,
            persona=None,
            channel="habit" if item in evidence else "popular",
            score=0.0,
            evidence=evidence.get(item, []),
        )
        for item in order
    ]


def _rows(dataset: Dataset, item_ids: list[str]) -> pl.DataFrame:
    return dataset.items.filter(pl.col("item_id").is_in(item_ids))
