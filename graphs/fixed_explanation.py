"""From an item to its explanation by one fixed prompt, as the baseline RecGPT-V1 explains."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.explainer import explain_item, record_unexplained_item
from agents.schemas import ExplanationTask
from agents.state import Explained, ExplanationState


def build_fixed_explanation_graph() -> StateGraph[ExplanationState, Context, ExplanationTask, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(ExplanationState, context_schema=Context, input_schema=ExplanationTask, output_schema=Explained)
    graph.add_node(explain_item, retry_policy=RETRY_UNREACHABLE, error_handler=record_unexplained_item)
    graph.add_edge(START, "explain_item")
    graph.add_edge("explain_item", END)
    return graph


graph = build_fixed_explanation_graph().compile(name="fixed_explanation")
