"""Shelves for the experts: what tools propose for each persona."""

from __future__ import annotations

import asyncio

from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.state import IntentState
from tools.dataset import open_dataset
from tools.shelf import fill_shelves as propose


async def fill_shelves(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """A shelf of `context.shelf` leaf categories for each persona, in the order of the personas."""
    context = context_of(runtime)
    if not context.shelf:
        return {"shelves": [[] for _ in state["personas"]]}
    dataset = await asyncio.to_thread(open_dataset, context.dataset)
    evidence = [[line.leaf for line in persona.evidence if line.leaf] for persona in state["personas"]]
    shelves = await asyncio.to_thread(propose, dataset, state["user_id"], state["as_of"], evidence, context.shelf)
    return {"shelves": shelves}
