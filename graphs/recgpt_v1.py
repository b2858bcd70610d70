"""The baseline RecGPT-V1: isolated routes, their union, and one fixed explanation prompt.

Input and output are those of `recommend`; it has no verdicts, `context.judge` is not looked at.
"""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from agents.assembler import assemble_recommendation, collect_explanations, open_request
from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.explainer import explain_item, record_unexplained_item
from agents.retriever import record_retrieval_failure, retrieve_items
from agents.schemas import Recommendation, Request
from agents.state import RecommendState
from graphs.recommend import dispatch_explanations
from graphs.routes import graph as routes_graph


def build_recgpt_v1_graph() -> StateGraph[RecommendState, Context, Request, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(RecommendState, context_schema=Context, input_schema=Request, output_schema=Recommendation)
    graph.add_node(open_request)
    graph.add_node("infer_intent", routes_graph)
    graph.add_node(retrieve_items, retry_policy=RETRY_UNREACHABLE, error_handler=record_retrieval_failure)
    graph.add_node(explain_item, retry_policy=RETRY_UNREACHABLE, error_handler=record_unexplained_item)
    graph.add_node(collect_explanations)
    graph.add_node(assemble_recommendation)
    graph.add_edge(START, "open_request")
    graph.add_edge("open_request", "infer_intent")
    graph.add_edge("infer_intent", "retrieve_items")
    graph.add_conditional_edges("retrieve_items", dispatch_explanations, ["explain_item", "collect_explanations"])
    graph.add_edge("explain_item", "collect_explanations")
    graph.add_edge("collect_explanations", "assemble_recommendation")
    graph.add_edge("assemble_recommendation", END)
    return graph


graph = build_recgpt_v1_graph().compile(name="recgpt_v1")
