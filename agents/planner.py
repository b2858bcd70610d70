"""The Global Planner (section 4): reads the context once and splits the intent into personas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.fitting import CHARACTERS_A_TOKEN_AT_MOST, fit_lines
from agents.schemas import Household, Persona, PlannedPersona, plan_schema
from agents.state import IntentState
from agents.wording import citation, day_lines, evidence_lines, moment_text, profile_text
from prompts.template import VALUE_LIMIT, Value
from tools.dataset import open_dataset
from tools.history import DayLine, number_lines, read_days

TOKENS_A_PERSONA = 160
"""Bound of the answer: name, intent and evidence of one persona."""
NUMBERED_LINES = 60
"""History lines that a persona can name as evidence, at most; what else there is, is told day by day."""
UNMEASURED_LINES = 50
"""History lines kept for the answer where no server tells how long a prompt is."""


async def fit_history(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Keep what of the history fits the planner's prompt, number its lines, and report the cut.

    The most telling lines come first, `NUMBERED_LINES` at most. Where there are more, days follow in the room that is
    left, the newest first. What fits is `context.planner_budget`, and never more than the model's window less the
    answer and its repairs.
    """
    context = context_of(runtime)
    prompt = await read_prompt("planner", context.planner_prompt, context.planner_instructions)
    whole = state["household"]
    lines, days = whole.history[:NUMBERED_LINES], list[DayLine]()
    hybrid = context.endpoint("planner").entities is not None
    answer = TOKENS_A_PERSONA * context.personas

    def household(lines_kept: int, days_kept: int) -> Household:
        kept = {"history": number_lines(lines[:lines_kept]), "days": days[:days_kept]}
        return whole.model_copy(update=kept)

    def render(lines_kept: int, days_kept: int) -> list[BaseMessage]:
        values = planner_values(state["as_of"], household(lines_kept, days_kept), context.personas)
        return prompt.render(values, hybrid)

    def least_characters(texts: Sequence[str]) -> int:
        return sum(CHARACTERS_A_TOKEN_AT_MOST if hybrid else min(len(text), VALUE_LIMIT) for text in texts)

    numbered = await fit_lines(
        context,
        "planner",
        [least_characters([line.text]) for line in lines],
        lambda count: render(count, 0),
        answer=answer,
        most=context.planner_budget,
    )
    days_kept = 0
    if NUMBERED_LINES == numbered.lines < len(whole.history):
        dataset = await asyncio.to_thread(open_dataset, context.dataset)
        by_leaf = context.representation == "leaf"
        days = await asyncio.to_thread(read_days, dataset, state["user_id"], state["as_of"], by_leaf)
        fit = await fit_lines(
            context,
            "planner",
            [least_characters(line.entities) for line in days],
            lambda count: render(len(lines), count),
            answer=answer,
            most=context.planner_budget,
            least=0,
        )
        days_kept = fit.lines
    shown = {text for line in days[:days_kept] for text in line.entities}
    cut = sum(line.text not in shown for line in whole.history[numbered.lines :])
    note = f"history: the {cut} least telling of {len(whole.history)} lines did not fit into {numbered.budget} tokens"
    return {
        "household": household(numbered.lines, days_kept),
        "history_lines": numbered.lines,
        "history_lines_cut": cut,
        "degraded": [note] if cut else [],
    }


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
        "days": day_lines(household.days, as_of),
        "personas": personas,
    }
