"""From a text to a grade: one evaluator a dimension, then the Senior Reviewer (section 7)."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.evaluator import evaluate_dimension, record_evaluator_failure, select_rubrics
from agents.reviewer import record_reviewer_failure, review_verdict
from agents.schemas import EvaluationTask, JudgeTask
from agents.state import Judged, JudgeState


def dispatch_evaluators(state: JudgeState) -> list[Send]:
    """One evaluator a rubric; each sees the facts that its rubric names."""
    return [
        Send(
            "evaluate_dimension",
            EvaluationTask(
                user_id=state["user_id"],
                kind=state["kind"],
                subject_id=state["subject_id"],
                subject=state["subject"],
                facts=[fact for fact in state["facts"] if fact.name in rubric.facts],
                rubric=rubric,
            ),
        )
        for rubric in state["rubrics"]
    ]


def build_judge_graph() -> StateGraph[JudgeState, Context, JudgeTask, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(JudgeState, context_schema=Context, input_schema=JudgeTask, output_schema=Judged)
    graph.add_node(select_rubrics)
    graph.add_node(evaluate_dimension, retry_policy=RETRY_UNREACHABLE, error_handler=record_evaluator_failure)
    graph.add_node(review_verdict, retry_policy=RETRY_UNREACHABLE, error_handler=record_reviewer_failure)
    graph.add_edge(START, "select_rubrics")
    graph.add_conditional_edges("select_rubrics", dispatch_evaluators, ["evaluate_dimension"])
    graph.add_edge("evaluate_dimension", "review_verdict")
    graph.add_edge("review_verdict", END)
    return graph


graph = build_judge_graph().compile(name="judge")
