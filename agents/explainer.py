"""Stage 2 of an explanation (section 6): the text `e = f_exp(g, U, I, S)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import ExplanationTask, ExplanationText, StyledTask, StyleGuideline
from agents.state import ExplanationState, Trail
from agents.wording import evidence_lines, moment_text, own_text, persona_text, shelf_text
from prompts.template import Prompt, Value

EXPLANATION_TOKENS = 120
FIXED_PROMPT = "fixed"
"""Version of the prompt that V1 explains every item with."""


async def write_explanation(state: StyledTask, runtime: Runtime[Context]) -> ExplanationState:
    """Write the text for one item, in the style of the guideline, from evidence and signals."""
    context = context_of(runtime)
    prompt = await read_prompt("explainer", context.explainer_prompt, context.explainer_instructions)
    return await _explain(runtime, prompt, explainer_values(state, state.style), state, state.style)


async def record_explanation_failure(state: StyledTask, error: NodeError) -> Command[Any]:
    """The item goes on without an explanation."""
    return Command(update=dict(_without_text(state, error)))


async def explain_item(state: ExplanationTask, runtime: Runtime[Context]) -> ExplanationState:
    """Write the text for one item as V1 does: by one fixed prompt for all items, without a style guideline."""
    prompt = await read_prompt("explainer", FIXED_PROMPT, None)
    return await _explain(runtime, prompt, fact_values(state), state, None)


async def record_unexplained_item(state: ExplanationTask, error: NodeError) -> Command[Any]:
    """The item goes on without an explanation, to where the others are collected."""
    return Command(update=dict(_without_text(state, error)), goto="collect_explanations")


async def _explain(
    runtime: Runtime[Context],
    prompt: Prompt,
    values: Mapping[str, Value],
    task: ExplanationTask,
    style: StyleGuideline | None,
) -> ExplanationState:
    """Ask for the text of one item."""
    asked = await ask(
        runtime,
        prompt,
        values,
        ExplanationText,
        user_id=task.user_id,
        subject=task.item.item_id,
        temperature=context_of(runtime).explainer_temperature,
        max_tokens=EXPLANATION_TOKENS,
    )
    explained = task.item.model_copy(update={"style": style, "explanation": asked.answer.text})
    return {"explained": [explained], "calls": asked.calls, "rejected": asked.rejected}


def _without_text(task: ExplanationTask, error: NodeError) -> Trail:
    item_id = task.item.item_id
    note = f"no explanation for item {item_id}: no valid text"
    return {**failed("explainer", item_id, error.error), "degraded": [note]}


def explainer_values(task: ExplanationTask, style: StyleGuideline) -> dict[str, Value]:
    """The fields of the explainer's prompt."""
    return {**fact_values(task), **style.model_dump()}


def fact_values(task: ExplanationTask) -> dict[str, Value]:
    """The fields of the explainer's prompt that are facts: all but the style."""
    return {
        "moment": moment_text(task.as_of),
        **persona_text(task.persona),
        "item": task.item.title,
        "category": shelf_text(task.item.category),
        "own": own_text(task.own, task.as_of),
        "evidence": evidence_lines(task.evidence, task.as_of),
        "signals": [{"text": signal.text} for signal in task.signals],
    }
