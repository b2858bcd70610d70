"""What is shown where retrieval proposes too little: what the household buys already, then what all buy."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import polars as pl
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from agents.assembler import explanation_task
from agents.calls import failed
from agents.context import Context, context_of
from agents.schemas import Household, RecommendedItem
from agents.state import RecommendState
from tools.dataset import Dataset, open_dataset
from tools.retrieval import best_sellers, popular_items

STAND_IN_NOTE = "items are what the household buys already, then what all buy"


async def record_retrieval_failure(state: RecommendState, runtime: Runtime[Context], error: NodeError) -> Command[Any]:
    """Without embeddings there is no search; what is bought anyway stands in."""
    update = dict(failed("retriever", "household", error.error))
    items = await asyncio.to_thread(stand_ins, context_of(runtime), state["household"], state["as_of"])
    update |= {"items": items, "degraded": [f"{STAND_IN_NOTE}: no search was possible"]}
    sends = [Send("explain_item", explanation_task({**state, "items": items}, item)) for item in items]
    return Command(update=update, goto=sends or "collect_explanations")


def stand_ins(
    context: Context, household: Household, as_of: datetime, taken: Collection[str] = ()
) -> list[RecommendedItem]:
    """The items of the household's most telling history lines, purchases first; then what all households buy.

    Args:
        context: of the request.
        household: whose history it is.
        as_of: the moment; what is not sold by the start of its day is left out.
        taken: titles that are shown already; none is shown twice.

    Returns:
        At most `context.items`.
    """
    dataset = open_dataset(context.dataset)
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    lines = sorted(household.history, key=lambda line: (line.action != "purchase", -line.weight))
    evidence = {line.item_id: [line.id] for line in reversed(lines) if line.item_id}
    popular = popular_items(dataset, midnight, context.items + len(evidence) + len(taken))
    rows = item_rows(dataset, [*evidence, *popular])
    sold = best_sellers(dataset, midnight)
    order: dict[str, str] = {}
    for item in [*(line.item_id for line in lines), *popular]:
        if item and (title := rows[item]["title"]) in sold and title not in taken:
            order.setdefault(title, item)
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
        for item in list(order.values())[: context.items]
    ]


def item_rows(dataset: Dataset, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The catalogue's columns of items, by id."""
    found = dataset.items.filter(pl.col("item_id").is_in(item_ids))
    return {row["item_id"]: row for row in found.iter_rows(named=True)}
