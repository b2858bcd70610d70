"""Stage 2 of an explanation (section 6): the text `e = f_exp(g, U, I, S)`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.checks import fault_of_form
from agents.claims import find_claims, names_twice, plain_explanation, product_words, unfounded
from agents.context import Context, context_of
from agents.schemas import ExplanationTask, ExplanationText, RecommendedItem, StyledTask, StyleGuideline, checked_text
from agents.state import ExplanationState
from agents.wording import evidence_lines, moment_text, own_text, persona_text, shelf_text
from prompts.template import Prompt, Value
from tools.dataset import open_dataset

EXPLANATION_TOKENS = 120
FIXED_PROMPT = "fixed"
"""Version of the prompt that V1 explains every item with."""


async def write_explanation(state: StyledTask, runtime: Runtime[Context]) -> ExplanationState:
    """Write the text for one item, in the style of the guideline, from evidence and signals.

    A text with a claim that neither item, history nor signals support is rejected like any answer that does not hold,
    and so is one that is not made of whole sentences, or that sets the item beside itself.
    """
    context = context_of(runtime)
    prompt = await read_prompt("explainer", context.explainer_prompt, context.explainer_instructions)
    products = await asyncio.to_thread(_products, context)

    def check(text: str) -> None:
        if broken := fault_of_form(text):
            raise ValueError(f"{broken[-60:]!r}: write whole sentences, none of them twice")
        if names_twice(text, state):
            raise ValueError(f"names {state.item.category[-1]} twice: say once what it is, and something of it")
        if claims := unfounded(find_claims(text, state, products)):
            named = ", ".join(repr(claim.text) for claim in claims[:3])
            raise ValueError(f"{named}: no fact of the item, the evidence or the signals says so")

    values = explainer_values(state, state.style)
    return await _explain(runtime, prompt, values, state, state.style, checked_text(check))


async def record_explanation_failure(state: StyledTask, runtime: Runtime[Context], error: NodeError) -> Command[Any]:
    """A plain true sentence stands in."""
    trail = failed("explainer", state.item.item_id, error.error)
    return Command(update={**trail, **await explain_plainly(runtime, state, state.style, "no valid text")})


async def explain_plainly(
    runtime: Runtime[Context], task: ExplanationTask, style: StyleGuideline | None, why: str
) -> ExplanationState:
    """The item with a sentence made of the facts of the task, marked as such."""
    products = await asyncio.to_thread(_products, context_of(runtime))
    explained = _explained(task, style, plain_explanation(task), "plain", products)
    note = f"explanation of item {task.item.item_id} is a plain sentence: {why}"
    return {"explained": [explained], "degraded": [note]}


async def explain_item(state: ExplanationTask, runtime: Runtime[Context]) -> ExplanationState:
    """Write the text for one item as V1 does: by one fixed prompt for all items, without a style guideline."""
    prompt = await read_prompt("explainer", FIXED_PROMPT, None)
    return await _explain(runtime, prompt, fact_values(state), state, None, ExplanationText)


async def record_unexplained_item(state: ExplanationTask, error: NodeError) -> Command[Any]:
    """The item goes on without an explanation."""
    item_id = state.item.item_id
    note = f"no explanation for item {item_id}: no valid text"
    return Command(update={**failed("explainer", item_id, error.error), "degraded": [note]})


async def _explain(
    runtime: Runtime[Context],
    prompt: Prompt,
    values: Mapping[str, Value],
    task: ExplanationTask,
    style: StyleGuideline | None,
    schema: type[ExplanationText],
) -> ExplanationState:
    """Ask for the text of one item."""
    context = context_of(runtime)
    asked = await ask(
        runtime,
        prompt,
        values,
        schema,
        user_id=task.user_id,
        subject=task.item.item_id,
        temperature=context.explainer_temperature,
        max_tokens=EXPLANATION_TOKENS,
    )
    products = await asyncio.to_thread(_products, context)
    explained = _explained(task, style, asked.answer.text, "model", products)
    return {"explained": [explained], "calls": asked.calls, "rejected": asked.rejected}


def _explained(
    task: ExplanationTask,
    style: StyleGuideline | None,
    text: str,
    source: Literal["model", "plain"],
    products: frozenset[str],
) -> RecommendedItem:
    claims = find_claims(text, task, products)
    update = {"style": style, "explanation": text, "explanation_source": source, "claims": claims}
    return task.item.model_copy(update=update)


def _products(context: Context) -> frozenset[str]:
    return product_words(open_dataset(context.dataset))


def explainer_values(task: ExplanationTask, style: StyleGuideline) -> dict[str, Value]:
    """The fields of the explainer's prompt."""
    return {**fact_values(task), **style.model_dump()}


def fact_values(task: ExplanationTask) -> dict[str, Value]:
    """The fields of the explainer's prompt that are facts: all but the style.

    The item's own lines stand in a field of their own: as evidence too, small models take them for another product
    that the item goes with.
    """
    beside = [line for line in task.evidence if line not in task.own]
    return {
        "moment": moment_text(task.as_of),
        **persona_text(task.persona),
        "item": task.item.title,
        "category": shelf_text(task.item.category),
        "own": own_text(task.own, task.as_of),
        "evidence": evidence_lines(beside, task.as_of),
        "signals": [{"text": signal.text} for signal in task.signals],
    }
