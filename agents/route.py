"""The routes of the baseline RecGPT-V1: isolated agents that each re-read the whole history, and their union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.arbiter import in_turn, ungrounded_tag
from agents.calls import failed, read_prompt
from agents.context import Context, context_of
from agents.expert import propose_tags, tag_list_tokens
from agents.fitting import fit_lines
from agents.schemas import Persona, ProposedTag, RouteTask
from agents.state import IntentState
from agents.wording import event_lines, moment_text, profile_text
from prompts.template import VALUE_LIMIT, Value
from tools.llm import measure_prompt
from tools.signals import Signal

ROUTE_PROMPT = "v1"


@dataclass(frozen=True)
class Route:
    """What one route looks for, worded as a persona, and the kinds of signals that it sees."""

    name: str
    intent: str
    kinds: tuple[str, ...]


ROUTES = (
    Route("Shopping habits", "The household buys again what is due, and things that go with it.", ()),
    Route(
        "Season and holidays",
        "The household needs things for the season and the days ahead.",
        ("season", "holiday", "weather", "event"),
    ),
    Route("Rising this week", "The household wants its part of what many buy more of this week.", ("trend",)),
    Route("Promotions", "The household takes up offers that fit what it buys.", ("promotion",)),
)


async def fit_events(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Open the routes, keep the newest events that fit the prompt of every route, and report the cut.

    All routes read the same events, so that what their prompts begin with is the same. What fits is
    `context.route_tokens`, and never more than the model's window less the answer and its repairs, measured on the
    route whose own part is the longest.
    """
    context = context_of(runtime)
    prompt = await read_prompt("route", ROUTE_PROMPT, None)
    events = state["events"]
    personas = route_personas(state["household"].signals)

    def render(persona: Persona, count: int) -> list[BaseMessage]:
        task = route_task({**state, "events": events[-count:]}, persona)
        return prompt.render(route_values(task, context.tags_per_expert))

    endpoint, default = context.endpoint("route"), context.default_window
    sizes = [(await measure_prompt(endpoint, render(persona, 1), default)).tokens for persona in personas]
    longest = personas[sizes.index(max(sizes))]
    fit = await fit_lines(
        context,
        "route",
        [min(len(event.text), VALUE_LIMIT) for event in reversed(events)],
        lambda count: render(longest, count),
        answer=tag_list_tokens(context.tags_per_expert),
        most=context.route_tokens,
    )
    cut = len(events) - fit.lines
    note = f"history: the {cut} oldest of {len(events)} events did not fit into {fit.budget} tokens"
    return {
        "personas": personas,
        "events": events[-fit.lines :],
        "history_lines": fit.lines,
        "history_lines_cut": cut,
        "degraded": [note] if cut else [],
    }


async def run_route(state: RouteTask, runtime: Runtime[Context]) -> IntentState:
    """Write the tags of one route from the whole history and its own signals; it knows nothing of the others."""
    prompt = await read_prompt("route", ROUTE_PROMPT, None)
    values = route_values(state, context_of(runtime).tags_per_expert)
    return await propose_tags(runtime, prompt, values, state.user_id, state.persona.name)


async def unite_tags(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """The first tag of each route, then the second, to `context.final_tags`; of tags that differ in case the first."""
    pool = state.get("pool", [])
    routes = [[proposed for proposed in pool if proposed.persona == persona.name] for persona in state["personas"]]
    united: dict[str, ProposedTag] = {}
    for proposed in in_turn(routes):
        united.setdefault(proposed.tag.casefold(), proposed)
    kept = list(united.values())[: context_of(runtime).final_tags]
    return {
        "tags": [ungrounded_tag(proposed.tag, proposed.persona) for proposed in kept],
        "degraded": [] if kept else ["no tags: no route gave a valid answer"],
    }


async def record_fitting_failure(state: IntentState, error: NodeError) -> Command[Any]:
    """What can not be measured can not be cut: the request goes on without tags."""
    note = "no tags: nothing told how much of the history fits"
    return Command(update={**failed("route", "household", error.error), "degraded": [note]})


async def record_route_failure(state: RouteTask, error: NodeError) -> Command[Any]:
    """One route less: the union goes on with the others."""
    name = state.persona.name
    note = f"no tags of the route {name!r}: it gave no valid answer"
    return Command(update={**failed("route", name, error.error), "degraded": [note]}, goto="unite_tags")


def route_personas(signals: Sequence[Signal]) -> list[Persona]:
    """The routes as personas: each with the signals of its own kinds and, since it reads everything, no evidence."""
    return [
        Persona(
            name=route.name,
            intent=route.intent,
            evidence=[],
            signals=[signal for signal in signals if signal.kind in route.kinds],
        )
        for route in ROUTES
    ]


def route_task(state: IntentState, persona: Persona) -> RouteTask:
    """What one route may see."""
    return RouteTask(
        user_id=state["user_id"],
        as_of=state["as_of"],
        profile=state["household"].profile,
        persona=persona,
        events=state["events"],
    )


def route_values(task: RouteTask, tags: int) -> dict[str, Value]:
    """The fields of a route's prompt, for `tags` tags."""
    return {
        "moment": moment_text(task.as_of),
        "profile": profile_text(task.profile),
        "history": event_lines(task.events),
        "signals": [{"text": signal.text} for signal in task.persona.signals],
        "persona": task.persona.name,
        "intent": task.persona.intent,
        "tags": tags,
    }
