"""Grounding: each final tag gets its nearest leaf category, or is rewritten to it and says so."""

from __future__ import annotations

import asyncio

from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.schemas import Tag
from agents.state import IntentState
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.retrieval import open_index


async def ground_tags(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Map each tag to its nearest leaf by embedding (`tag2cat` of section 5).

    A tag that is less similar than `context.rewrite_below` to every leaf is replaced by the name of the nearest one,
    `source="rewritten"`, with the model's words in `proposed`. No tag is added; tags that become the same are one.
    """
    if not state["tags"]:
        return {}
    return {"tags": await asyncio.to_thread(_ground, context_of(runtime), state["tags"])}


def _ground(context: Context, tags: list[Tag]) -> list[Tag]:
    index = open_index(open_dataset(context.dataset), open_embedder(context.embedding_model))
    grounded: dict[str, Tag] = {}
    for tag, leaf in zip(tags, index.nearest_leaves([tag.tag for tag in tags]), strict=True):
        update: dict[str, object] = {"category": leaf.path, "score": round(leaf.similarity, 4)}
        if leaf.similarity < context.rewrite_below:
            update |= {"tag": leaf.path[-1], "source": "rewritten"}
        final = tag.model_copy(update=update)
        grounded.setdefault(final.tag.casefold(), final)
    return list(grounded.values())
