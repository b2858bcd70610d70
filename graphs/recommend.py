"""One request: intent, retrieval, explanations, and verdicts where they are asked for."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from agents.assembler import (
    assemble_recommendation,
    collect_explanations,
    explanation_task,
    judge_tasks,
    open_request,
)
from agents.calls import RETRY_UNREACHABLE
from agents.context import Context, context_of
from agents.fallback import record_retrieval_failure
from agents.retriever import retrieve_items
from agents.schemas import Recommendation, Request
from agents.state import RecommendState
from graphs.explanation import graph as explanation_graph
from graphs.intent import graph as intent_graph
from graphs.judge import graph as judge_graph


def dispatch_explanations(state: RecommendState) -> list[Send] | str:
    """One explanation an item."""
    return [Send("explain_item", explanation_task(state, item)) for item in state["items"]] or "collect_explanations"


def dispatch_judging(state: RecommendState, runtime: Runtime[Context]) -> list[Send] | str:
    """One verdict an explanation, if the context asks for verdicts."""
    tasks = judge_tasks(state, context_of(runtime))
    return [Send("judge_explanation", task) for task in tasks] or "assemble_recommendation"


def build_recommend_graph() -> StateGraph[RecommendState, Context, Request, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(RecommendState, context_schema=Context, input_schema=Request, output_schema=Recommendation)
    graph.add_node(open_request)
    graph.add_node("infer_intent", intent_graph)
    graph.add_node(retrieve_items, retry_policy=RETRY_UNREACHABLE, error_handler=record_retrieval_failure)
    graph.add_node("explain_item", explanation_graph)
    graph.add_node(collect_explanations)
    graph.add_node("judge_explanation", judge_graph)
    graph.add_node(assemble_recommendation)
    graph.add_edge(START, "open_request")
    graph.add_edge("open_request", "infer_intent")
    graph.add_edge("infer_intent", "retrieve_items")
    graph.add_conditional_edges("retrieve_items", dispatch_explanations, ["explain_item", "collect_explanations"])
    graph.add_edge("explain_item", "collect_explanations")
    graph.add_conditional_edges(
        "collect_explanations", dispatch_judging, ["judge_explanation", "assemble_recommendation"]
    )
    graph.add_edge("judge_explanation", "assemble_recommendation")
    graph.add_edge("assemble_recommendation", END)
    return graph


graph = build_recommend_graph().compile(name="recommend")
