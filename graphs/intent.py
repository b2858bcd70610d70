"""From a household's context to item tags: planner, a shelf and an expert a persona, arbiter (section 4)."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agents.arbiter import arbitrate_tags, record_arbiter_failure
from agents.calls import RETRY_UNREACHABLE
from agents.context import Context
from agents.expert import record_expert_failure, run_expert
from agents.grounding import ground_tags, record_grounding_failure
from agents.planner import fit_history, plan_intents, record_planner_failure
from agents.reader import read_context
from agents.schemas import ExpertTask, Request
from agents.shelver import fill_shelves
from agents.state import IntentState


def dispatch_experts(state: IntentState) -> list[Send]:
    """One expert a persona; a payload has what an expert may see and no history."""
    return [
        Send(
            "run_expert",
            ExpertTask(
                user_id=state["user_id"],
                as_of=state["as_of"],
                profile=state["household"].profile,
                persona=persona,
                signals=state["household"].signals,
                shelf=shelf,
            ),
        )
        for persona, shelf in zip(state["personas"], state["shelves"], strict=True)
    ]


def build_intent_graph() -> StateGraph[IntentState, Context, Request, Any]:
    """The uncompiled graph, for callers with a checkpointer, store or cache of their own."""
    graph = StateGraph(IntentState, context_schema=Context, input_schema=Request)
    graph.add_node(read_context)
    graph.add_node(fit_history, retry_policy=RETRY_UNREACHABLE, error_handler=record_planner_failure)
    graph.add_node(plan_intents, retry_policy=RETRY_UNREACHABLE, error_handler=record_planner_failure)
    graph.add_node(fill_shelves)
    graph.add_node(run_expert, retry_policy=RETRY_UNREACHABLE, error_handler=record_expert_failure)
    graph.add_node(arbitrate_tags, retry_policy=RETRY_UNREACHABLE, error_handler=record_arbiter_failure)
    graph.add_node(ground_tags, retry_policy=RETRY_UNREACHABLE, error_handler=record_grounding_failure)
    graph.add_edge(START, "read_context")
    graph.add_edge("read_context", "fit_history")
    graph.add_edge("fit_history", "plan_intents")
    graph.add_edge("plan_intents", "fill_shelves")
    graph.add_conditional_edges("fill_shelves", dispatch_experts, ["run_expert"])
    graph.add_edge("run_expert", "arbitrate_tags")
    graph.add_edge("arbitrate_tags", "ground_tags")
    graph.add_edge("ground_tags", END)
    return graph


graph = build_intent_graph().compile(name="intent")
