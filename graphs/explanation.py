"""From an item to its explanation: style guideline, then the text (section 6)."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.explainer import record_explanation_failure, write_explanation
from agents.schemas import ExplanationTask
from agents.state import Explained, ExplanationState
from agents.style import record_style_failure, write_style


def build_explanation_graph() -> StateGraph[ExplanationState, Context, ExplanationTask, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(ExplanationState, context_schema=Context, input_schema=ExplanationTask, output_schema=Explained)
    graph.add_node(write_style, retry_policy=RETRY_UNREACHABLE, error_handler=record_style_failure)
    graph.add_node(write_explanation, retry_policy=RETRY_UNREACHABLE, error_handler=record_explanation_failure)
    graph.add_edge(START, "write_style")
    graph.add_edge("write_style", "write_explanation")
    graph.add_edge("write_explanation", END)
    return graph


graph = build_explanation_graph().compile(name="explanation")
