"""The Global Planner (section 4): reads the context once and splits the intent into personas."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.fitting import fit_lines
from agents.schemas import Household, Persona, PlannedPersona, plan_schema
from agents.state import IntentState
from agents.wording import citation, evidence_lines, moment_text, profile_text
from prompts.template import Value
from tools.history import number_lines

TOKENS_A_PERSONA = 160
"""Bound of the answer: name, intent and evidence of one persona."""
UNMEASURED_LINES = 50
"""History lines kept for the answer where no server tells how long a prompt is."""


async def fit_history(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Keep the most telling history lines that fit the planner's prompt, number them, and report the cut.

    What fits is `context.planner_tokens`, and never more than the model's window less the answer and its repairs.
    """
    context = context_of(runtime)
    prompt = await read_prompt("planner", context.planner_prompt, context.planner_instructions)
    lines = state["household"].history

    def household(count: int) -> Household:
        return state["household"].model_copy(update={"history": number_lines(lines[:count])})

    def render(count: int) -> list[BaseMessage]:
        return prompt.render(planner_values(state["as_of"], household(count), context.personas))

    answer = TOKENS_A_PERSONA * context.personas
    fit = await fit_lines(
        context, "planner", [line.text for line in lines], render, answer=answer, most=context.planner_tokens
    )
    cut = len(lines) - fit.lines
    note = f"history: the {cut} least telling of {len(lines)} lines did not fit into {fit.budget} tokens"
    return {"household": household(fit.lines), "history_lines_cut": cut, "degraded": [note] if cut else []}


async def plan_intents(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Write personas `{p_1 ... p_K} = f_planner(C)`, each with history lines and signals that support it."""
    context = context_of(runtime)
    prompt = await read_prompt("planner", context.planner_prompt, context.planner_instructions)
    household = state["household"]
    lines = {citation(line): line for line in household.history}
    signals = {signal.id: signal for signal in household.signals}
    asked = await ask(
        runtime,
        prompt,
        planner_values(state["as_of"], household, context.personas),
        plan_schema(list(lines), list(signals), context.personas),
        user_id=state["user_id"],
        subject="household",
        temperature=context.planner_temperature,
        max_tokens=TOKENS_A_PERSONA * context.personas,
    )
    same_name: dict[str, list[PlannedPersona]] = {}
    for planned in asked.answer.personas:
        same_name.setdefault(planned.name.casefold(), []).append(planned)
    personas = [
        Persona(
            name=told[0].name,
            intent=told[0].intent,
            evidence=[lines[key] for key in dict.fromkeys(key for planned in told for key in planned.evidence)],
            signals=[signals[key] for key in dict.fromkeys(key for planned in told for key in planned.signals)],
        )
        for told in same_name.values()
    ]
    note = f"the planner wrote {len(asked.answer.personas)} personas with {len(personas)} names: equal ones are merged"
    return {
        "personas": personas,
        "calls": asked.calls,
        "rejected": asked.rejected,
        "degraded": [note] if len(personas) < len(asked.answer.personas) else [],
    }


async def record_planner_failure(state: IntentState, error: NodeError) -> Command[Any]:
    """Without personas there are no experts to ask: the request ends with the failure in its trail."""
    household = state["household"]
    if any(not line.id for line in household.history):  # the history could not even be measured
        household = household.model_copy(update={"history": number_lines(household.history[:UNMEASURED_LINES])})
    update = {**failed("planner", "household", error.error), "household": household}
    return Command(update={**update, "degraded": ["no personas: the planner gave no valid answer"]})


def planner_values(as_of: datetime, household: Household, personas: int) -> dict[str, Value]:
    """The fields of the planner's prompt."""
    return {
        "moment": moment_text(as_of),
        "profile": profile_text(household.profile),
        "signals": [{"id": signal.id, "text": signal.text} for signal in household.signals],
        "history": evidence_lines(household.history, as_of),
        "personas": personas,
    }
