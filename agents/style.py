"""Stage 1 of an explanation (section 6): the style guideline `g = f_meta(U, I, S)`."""

from __future__ import annotations

from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.explainer import explain_plainly
from agents.schemas import ExplanationTask, StyleGuideline, style_schema
from agents.state import ExplanationState
from agents.wording import moment_text, occasion_of, persona_text, profile_text, shelf_text
from prompts.template import Value

STYLE_TOKENS = 160


async def write_style(state: ExplanationTask, runtime: Runtime[Context]) -> ExplanationState:
    """Write tone, audience, rhetoric, season and length for one item and one household."""
    context = context_of(runtime)
    prompt = await read_prompt("style", context.style_prompt, context.style_instructions)
    asked = await ask(
        runtime,
        prompt,
        style_values(state),
        style_schema(list(dict.fromkeys(filter(None, map(occasion_of, state.signals))))),
        user_id=state.user_id,
        subject=state.item.item_id,
        temperature=context.style_temperature,
        max_tokens=STYLE_TOKENS,
    )
    style = StyleGuideline.model_validate(asked.answer.model_dump())  # a class that checkpoints can name
    return {"style": style, "calls": asked.calls, "rejected": asked.rejected}


async def record_style_failure(state: ExplanationTask, runtime: Runtime[Context], error: NodeError) -> Command[Any]:
    """Without a guideline a plain true sentence stands in for the explanation."""
    trail = failed("style", state.item.item_id, error.error)
    return Command(update={**trail, **await explain_plainly(runtime, state, None, "no valid style guideline")})


def style_values(task: ExplanationTask) -> dict[str, Value]:
    """The fields of the stylist's prompt."""
    return {
        "moment": moment_text(task.as_of),
        "profile": profile_text(task.profile),
        **persona_text(task.persona),
        "item": task.item.title,
        "category": shelf_text(task.item.category),
        "signals": [{"text": signal.text} for signal in task.signals],
    }
