"""The baseline RecGPT-V1: isolated routes, their union, one fixed explanation prompt and a one-shot judge.

Input and output are those of `recommend`.
"""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from agents.assembler import assemble_recommendation, collect_explanations, open_request
from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.fallback import record_retrieval_failure
from agents.schemas import Recommendation, Request
from agents.state import RecommendState
from agents.tag_retriever import retrieve_tagged_items
from graphs.fixed_explanation import graph as fixed_explanation_graph
from graphs.one_shot_judge import graph as one_shot_judge_graph
from graphs.recommend import dispatch_explanations, dispatch_judging
from graphs.routes import graph as routes_graph


def build_recgpt_v1_graph() -> StateGraph[RecommendState, Context, Request, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(RecommendState, context_schema=Context, input_schema=Request, output_schema=Recommendation)
    graph.add_node(open_request)
    graph.add_node("infer_intent", routes_graph)
    graph.add_node(retrieve_tagged_items, retry_policy=RETRY_UNREACHABLE, error_handler=record_retrieval_failure)
    graph.add_node("explain_item", fixed_explanation_graph)
    graph.add_node(collect_explanations)
    graph.add_node("judge_explanation", one_shot_judge_graph)
    graph.add_node(assemble_recommendation)
    graph.add_edge(START, "open_request")
    graph.add_edge("open_request", "infer_intent")
    graph.add_edge("infer_intent", "retrieve_tagged_items")
    graph.add_conditional_edges(
        "retrieve_tagged_items", dispatch_explanations, ["explain_item", "collect_explanations"]
    )
    graph.add_edge("explain_item", "collect_explanations")
    graph.add_conditional_edges(
        "collect_explanations", dispatch_judging, ["judge_explanation", "assemble_recommendation"]
    )
    graph.add_edge("judge_explanation", "assemble_recommendation")
    graph.add_edge("assemble_recommendation", END)
    return graph


graph = build_recgpt_v1_graph().compile(name="recgpt_v1")
