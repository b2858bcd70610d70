"""Retrieval of the baseline RecGPT-V1: items for the tags, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import zip_longest

from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.fallback import STAND_IN_NOTE, item_rows, stand_ins
from agents.schemas import RecommendedItem, Tag
from agents.state import RecommendState
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.retrieval import ItemMatch, open_index


async def retrieve_tagged_items(state: RecommendState, runtime: Runtime[Context]) -> RecommendState:
    """Find items for the tags, the best of each tag in turn; each item keeps the tag that found it.

    Without any tag the household's most telling purchases stand in (channel `habit`), and after them what all
    households buy (`popular`): an answer is never an empty page, and `degraded` says what it is.
    """
    context = context_of(runtime)
    if not state["tags"]:
        items = await asyncio.to_thread(stand_ins, context, state["household"], state["as_of"])
        return {"items": items, "degraded": [f"{STAND_IN_NOTE}: there are no tags"]}
    items = await asyncio.to_thread(_retrieve, context, state)
    short = f"{len(items)} items where {context.items} were asked for: the tags found no more"
    return {"items": items, "degraded": [short] if len(items) < context.items else []}


def _retrieve(context: Context, state: RecommendState) -> list[RecommendedItem]:
    dataset = open_dataset(context.dataset)
    index = open_index(dataset, open_embedder(context.embedding_model))
    found = index.search_items([tag.tag for tag in state["tags"]], context.items, state["as_of"])
    chosen = _in_turn(state["tags"], found, context.items)
    rows = item_rows(dataset, [match.item_id for _, match in chosen])
    evidence = {persona.name: [line.id for line in persona.evidence] for persona in state["personas"]}
    return [
        RecommendedItem(
            item_id=match.item_id,
            title=match.title,
            category=match.path,
            price=rows[match.item_id]["price"],
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
