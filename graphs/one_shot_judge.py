"""From a text to a grade in one call, as the baseline RecGPT-V1 judges."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.one_shot import judge_at_once, record_judge_failure
from agents.schemas import JudgeTask
from agents.state import Judged, JudgeState


def build_one_shot_judge_graph() -> StateGraph[JudgeState, Context, JudgeTask, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(JudgeState, context_schema=Context, input_schema=JudgeTask, output_schema=Judged)
    graph.add_node(judge_at_once, retry_policy=RETRY_UNREACHABLE, error_handler=record_judge_failure)
    graph.add_edge(START, "judge_at_once")
    graph.add_edge("judge_at_once", END)
    return graph


graph = build_one_shot_judge_graph().compile(name="one_shot_judge")
