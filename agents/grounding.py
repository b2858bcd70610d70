"""Grounding: each final tag gets its nearest leaf category, or is rewritten to it and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import failed
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
    return await asyncio.to_thread(_ground, context_of(runtime), state["tags"])


async def record_grounding_failure(state: IntentState, error: NodeError) -> Command[Any]:
    """Without embeddings the tags stay as the model wrote them, without a category."""
    note = "tags have no category: no embeddings could be made"
    return Command(update={**failed("grounding", "household", error.error), "degraded": [note]})


def tagged_leaves(tags: Sequence[Tag]) -> dict[str, Tag]:
    """The leaf categories that final tags name, each with the first tag that names it, in their order."""
    leaves: dict[str, Tag] = {}
    for tag in tags:
        if tag.category:
            leaves.setdefault(tag.category[-1], tag)
    return leaves


def _ground(context: Context, tags: list[Tag]) -> IntentState:
    index = open_index(open_dataset(context.dataset), open_embedder(context.embedding_model))
    grounded: dict[str, Tag] = {}
    notes: list[str] = []
    for tag, leaf in zip(tags, index.nearest_leaves([tag.tag for tag in tags]), strict=True):
        update: dict[str, object] = {"category": leaf.path, "score": round(leaf.similarity, 4)}
        if leaf.similarity < context.rewrite_below:
            update |= {"tag": leaf.path[-1], "source": "rewritten"}
        final = tag.model_copy(update=update)
        first = grounded.setdefault(final.tag.casefold(), final)
        if first is not final:
            notes.append(f"tag {tag.proposed!r} is after grounding the same as {first.proposed!r}: {final.tag!r}")
    return {"tags": list(grounded.values()), "degraded": notes}
