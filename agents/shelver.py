"""Shelves for the experts: what tools propose for each persona."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.state import IntentState
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import ModelFilesError, ServerError
from tools.occasions import no_occasions, open_occasions
from tools.ranker import leaf_chances, load_ranker
from tools.shelf import ShelfLine
from tools.shelf import fill_shelves as propose
from tools.towers import open_towers, tower_scores


async def fill_shelves(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """A shelf of `context.shelf` leaf categories for each persona, in the order of the personas.

    Raises:
        ModelFilesError: there is no ranker.
    """
    context = context_of(runtime)
    if not context.shelf:
        return {"shelves": [[] for _ in state["personas"]]}
    return {"shelves": await asyncio.to_thread(_shelves, context, state)}


def _shelves(context: Context, state: IntentState) -> list[list[ShelfLine]]:
    dataset, user_id, as_of = open_dataset(context.dataset), state["user_id"], state["as_of"]
    towers: Mapping[str, float] = {}
    occasions = no_occasions(dataset)
    try:
        embedder = open_embedder(context.embedding_model)
        occasions = open_occasions(dataset, embedder)
        towers = tower_scores(open_towers(dataset, embedder, context.towers), dataset, user_id, as_of)
    except (ModelFilesError, ServerError):
        pass  # the retriever, which needs towers and embeddings more, says so
    chances = leaf_chances(load_ranker(context.ranker), dataset, user_id, as_of, towers, occasions)
    evidence = [[line.leaf for line in persona.evidence if line.leaf] for persona in state["personas"]]
    return propose(dataset, user_id, as_of, evidence, context.shelf, chances)
