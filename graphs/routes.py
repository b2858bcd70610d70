"""The baseline's way from a household's context to item tags (RecGPT-V1): isolated routes and their union."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.grounding import ground_tags, record_grounding_failure
from agents.reader import read_context, read_events
from agents.route import fit_events, record_fitting_failure, record_route_failure, route_task, run_route, unite_tags
from agents.schemas import Request
from agents.state import IntentState


def dispatch_routes(state: IntentState) -> list[Send]:
    """The whole history to every route, with the signals of its own kinds."""
    return [Send("run_route", route_task(state, persona)) for persona in state["personas"]]


def build_routes_graph() -> StateGraph[IntentState, Context, Request, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(IntentState, context_schema=Context, input_schema=Request)
    graph.add_node(read_context)
    graph.add_node(read_events)
    graph.add_node(fit_events, retry_policy=RETRY_UNREACHABLE, error_handler=record_fitting_failure)
    graph.add_node(run_route, retry_policy=RETRY_UNREACHABLE, error_handler=record_route_failure)
    graph.add_node(unite_tags)
    graph.add_node(ground_tags, retry_policy=RETRY_UNREACHABLE, error_handler=record_grounding_failure)
    graph.add_edge(START, "read_context")
    graph.add_edge("read_context", "read_events")
    graph.add_edge("read_events", "fit_events")
    graph.add_conditional_edges("fit_events", dispatch_routes, ["run_route"])
    graph.add_edge("run_route", "unite_tags")
    graph.add_edge("unite_tags", "ground_tags")
    graph.add_edge("ground_tags", END)
    return graph


graph = build_routes_graph().compile(name="routes")
