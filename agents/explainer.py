"""Stage 2 of an explanation (section 6): the text `e = f_exp(g, U, I, S)`."""

from __future__ import annotations

from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import ExplanationTask, ExplanationText, StyledTask, StyleGuideline
from agents.state import ExplanationState
from agents.wording import evidence_lines, moment_text, own_text, persona_text, shelf_text
from prompts.template import Value

EXPLANATION_TOKENS = 120


async def write_explanation(state: StyledTask, runtime: Runtime[Context]) -> ExplanationState:
    """Write the text for one item, in the style of the guideline, from evidence and signals."""
    context = context_of(runtime)
    prompt = await read_prompt("explainer", context.explainer_prompt, context.explainer_instructions)
    asked = await ask(
        runtime,
        prompt,
        explainer_values(state, state.style),
        ExplanationText,
        user_id=state.user_id,
        subject=state.item.item_id,
        temperature=context.explainer_temperature,
        max_tokens=EXPLANATION_TOKENS,
    )
    explained = state.item.model_copy(update={"style": state.style, "explanation": asked.answer.text})
    return {"explained": [explained], "calls": asked.calls, "rejected": asked.rejected}


async def record_explanation_failure(state: StyledTask, error: NodeError) -> Command[Any]:
    """The item goes on without an explanation."""
    item = state.item
    note = f"no explanation for item {item.item_id}: no valid text"
    return Command(update={**failed("explainer", item.item_id, error.error), "degraded": [note]})


def explainer_values(task: ExplanationTask, style: StyleGuideline) -> dict[str, Value]:
    """The fields of the explainer's prompt."""
    return {
        "moment": moment_text(task.as_of),
        **style.model_dump(),
        **persona_text(task.persona),
        "item": task.item.title,
        "category": shelf_text(task.item.category),
        "own": own_text(task.own, task.as_of),
        "evidence": evidence_lines(task.evidence, task.as_of),
        "signals": [{"text": signal.text} for signal in task.signals],
    }
