"""Reading the context C = {B, U, E} of a request (section 1): the nodes that read events."""

from __future__ import annotations

import asyncio
from typing import Any
from zoneinfo import ZoneInfo

from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from agents.context import Context, context_of
from agents.schemas import Household, Request
from agents.state import IntentState, new_run
from tools.dataset import open_dataset
from tools.errors import NoHistoryError, ServerError
from tools.history import number_lines, read_history
from tools.history import read_events as events_of
from tools.signals import read_signals


async def read_context(state: Request, runtime: Runtime[Context]) -> dict[str, Any]:
    """Read history, profile and signals before `as_of`; history lines are the most telling first.

    Raises:
        DatasetError, UnknownUserError, NoHistoryError: there is nothing to recommend from.
    """
    return await asyncio.to_thread(_read, context_of(runtime), state)


async def read_events(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Read the history as plain events too, oldest first, as V1's routes do.

    Its lines, none of them cut, get their ids here: they stay what explanations and the report refer to.
    """
    dataset = await asyncio.to_thread(open_dataset, context_of(runtime).dataset)
    household = state["household"].model_copy(update={"history": number_lines(state["household"].history)})
    return {
        "household": household,
        "events": await asyncio.to_thread(events_of, dataset, state["user_id"], state["as_of"]),
    }


def _read(context: Context, request: Request) -> dict[str, Any]:
    dataset = open_dataset(context.dataset)
    if request.as_of.tzinfo:
        local = request.as_of.astimezone(ZoneInfo(dataset.info.time_zone)).replace(tzinfo=None)
        request = request.model_copy(update={"as_of": local})
    if request.as_of <= dataset.first_event:
        raise NoHistoryError(
            f"nothing happened before {request.as_of:%Y-%m-%d %H:%M}: the first event of {dataset.directory} "
            f"is at {dataset.first_event:%Y-%m-%d %H:%M}; take a later moment"
        )
    notes = []
    try:
        signals = read_signals(dataset, request.user_id, request.as_of, context.weather)
    except ServerError as error:
        signals = read_signals(dataset, request.user_id, request.as_of)
        notes = [f"no weather: {error}"]
    household = Household(
        profile=dataset.user(request.user_id)[0],
        history=read_history(dataset, request.user_id, request.as_of, context.representation == "leaf"),
        signals=signals,
    )
    return {
        **new_run(IntentState),
        "as_of": request.as_of,
        "household": household,
        "personas": [],
        "tags": [],
        "history_lines": len(household.history),
        "history_lines_cut": 0,
        "degraded": Overwrite(notes),
    }
