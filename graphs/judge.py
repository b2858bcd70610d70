"""From a text to a grade: one evaluator a dimension, then the Senior Reviewer (section 7)."""

from __future__ import annotations

from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agents.calls import RETRY_UNREACHABLE, raise_if_gone
from agents.context import Context
from agents.evaluator import (
    evaluate_dimension,
    keep_label,
    reconsider_dimension,
    record_evaluator_failure,
    select_rubrics,
)
from agents.judging import evaluation_task
from agents.reviewer import leave_labels, question_labels, record_reviewer_failure, review_verdict
from agents.schemas import JudgeTask, Verdict
from agents.state import Judged, JudgeState
from tools.errors import NoVerdictError


def dispatch_evaluators(state: JudgeState) -> list[Send]:
    """One evaluator a rubric, a model or code; each sees what its rubric names."""
    return [Send("evaluate_dimension", evaluation_task(_task(state), rubric)) for rubric in state["rubrics"]]


def dispatch_reconsideration(state: JudgeState) -> list[Send] | Literal["review_verdict"]:
    """The dimension that the reviewer sends back, if it does."""
    doubt = state["doubt"]
    again = [rubric for rubric in state["rubrics"] if doubt and rubric.dimension == doubt.sent_back]
    sent = [Send("reconsider_dimension", evaluation_task(_task(state), rubric, doubt)) for rubric in again]
    return sent or "review_verdict"


def _task(state: JudgeState) -> JudgeTask:
    return JudgeTask(
        user_id=state["user_id"],
        kind=state["kind"],
        subject_id=state["subject_id"],
        subject=state["subject"],
        facts=state["facts"],
        claims=state["claims"],
    )


def build_judge_graph() -> StateGraph[JudgeState, Context, JudgeTask, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(JudgeState, context_schema=Context, input_schema=JudgeTask, output_schema=Judged)
    graph.add_node(select_rubrics)
    graph.add_node(evaluate_dimension, retry_policy=RETRY_UNREACHABLE, error_handler=record_evaluator_failure)
    graph.add_node(question_labels, retry_policy=RETRY_UNREACHABLE, error_handler=leave_labels)
    graph.add_node(reconsider_dimension, retry_policy=RETRY_UNREACHABLE, error_handler=keep_label)
    graph.add_node(review_verdict, retry_policy=RETRY_UNREACHABLE, error_handler=record_reviewer_failure)
    graph.add_edge(START, "select_rubrics")
    graph.add_conditional_edges("select_rubrics", dispatch_evaluators, ["evaluate_dimension"])
    graph.add_edge("evaluate_dimension", "question_labels")
    graph.add_conditional_edges("question_labels", dispatch_reconsideration, ["reconsider_dimension", "review_verdict"])
    graph.add_edge("reconsider_dimension", "review_verdict")
    graph.add_edge("review_verdict", END)
    return graph


graph = build_judge_graph().compile(name="judge")


async def judge_text(task: JudgeTask, context: Context) -> Verdict:
    """The verdict on one text.

    Raises:
        NoVerdictError: a part of the judge gave no valid answer.
        ServerUnreachableError: the server does not answer.
    """
    state = await graph.ainvoke(task, context=context)
    raise_if_gone(state.get("failures", []))
    if not state.get("judged"):
        reasons = "; ".join(f"{failure.agent} ({failure.subject}): {failure.reason}" for failure in state["failures"])
        raise NoVerdictError(f"no verdict on {task.subject_id!r}: {reasons}")
    verdict: Verdict = state["judged"][0]["verdict"]
    return verdict
