"""A Distributed Expert (section 4): item tags for one persona."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import ExpertTask, ProposedTag, tags_schema
from agents.state import IntentState
from agents.wording import evidence_lines, moment_text, profile_text
from prompts.template import Prompt, Value
from tools.dataset import Dataset, open_dataset
from tools.loading import load_once
from tools.shelf import ShelfLine, tag_text

TOKENS_A_TAG = 20


async def run_expert(state: ExpertTask, runtime: Runtime[Context]) -> IntentState:
    """Write tags `T_k = f_expert(p_k)`; the expert sees the persona, its evidence, E and its shelf, never B."""
    context = context_of(runtime)
    prompt = await read_prompt("expert", context.expert_prompt, context.expert_instructions)
    values = expert_values(state, context.tags_per_expert)
    return await propose_tags(runtime, prompt, values, state.user_id, state.persona.name, state.shelf)


async def record_expert_failure(state: ExpertTask, error: NodeError) -> Command[Any]:
    """One expert less: the arbiter goes on with the others."""
    name = state.persona.name
    note = f"no tags for the persona {name!r}: its expert gave no valid answer"
    return Command(update={**failed("expert", name, error.error), "degraded": [note]}, goto="arbitrate_tags")


async def propose_tags(
    runtime: Runtime[Context],
    prompt: Prompt,
    values: Mapping[str, Value],
    user_id: str,
    persona: str,
    shelf: Sequence[ShelfLine] = (),
) -> IntentState:
    """Ask for `context.tags_per_expert` tags for one persona, within the vocabulary of the context.

    Raises:
        InvalidAnswerError, ServerError: there are none; see `ask`.
    """
    context = context_of(runtime)
    vocabulary = await asyncio.to_thread(_vocabulary, context, shelf)
    asked = await ask(
        runtime,
        prompt,
        values,
        tags_schema(context.tags_per_expert, vocabulary),
        user_id=user_id,
        subject=persona,
        temperature=context.expert_temperature,
        max_tokens=tag_list_tokens(context.tags_per_expert),
    )
    tags = dict.fromkeys(" ".join(tag.split()) for tag in asked.answer.tags)
    return {
        "pool": [ProposedTag(tag=tag, persona=persona) for tag in tags],
        "calls": asked.calls,
        "rejected": asked.rejected,
    }


def tag_list_tokens(tags: int) -> int:
    """Bound of an answer of so many tags."""
    return TOKENS_A_TAG * tags + 20


def expert_values(task: ExpertTask, tags: int) -> dict[str, Value]:
    """The fields of an expert's prompt, for `tags` tags."""
    persona = task.persona
    return {
        "moment": moment_text(task.as_of),
        "profile": profile_text(task.profile),
        "persona": persona.name,
        "intent": persona.intent,
        "evidence": evidence_lines(persona.evidence, task.as_of),
        "signals": [{"text": signal.text} for signal in task.signals],
        "shelf": [{"tag": tag_text(line.leaf), "why": line.why} for line in task.shelf],
        "tags": tags,
    }


def _vocabulary(context: Context, shelf: Sequence[ShelfLine]) -> tuple[str, ...]:
    """The tags that the expert may write; none: any text."""
    if context.vocabulary == "any":
        return ()
    own = tuple(dict.fromkeys(tag_text(line.leaf) for line in shelf))
    if context.vocabulary == "shelf" and len(own) >= context.tags_per_expert:
        return own
    return leaf_tags(open_dataset(context.dataset))


@load_once(maxsize=4)
def leaf_tags(dataset: Dataset) -> tuple[str, ...]:
    """The leaf categories of a catalogue as tags, in their order."""
    leaves = dataset.items.select(pl.col("category").list.last()).unique().to_series().sort()
    return tuple(dict.fromkeys(tag_text(leaf) for leaf in leaves))
