"""The last steps of a request: explanations and verdicts onto their items, costs summed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.judging import explanation_judge_task
from agents.schemas import AgentUsage, CallRecord, ExplanationTask, JudgeTask, RecommendedItem, Request, Usage
from agents.state import RecommendState, new_run
from agents.wording import own_lines
from tools.signals import bearing_on


async def open_request(state: Request, runtime: Runtime[Context]) -> dict[str, Any]:
    """Note when the request came, and its settings; nothing of an earlier one in its thread stays."""
    settings = context_of(runtime).overrides
    return {**new_run(RecommendState), "as_of": state.as_of, "started": time.time(), "settings": settings}


async def collect_explanations(state: RecommendState) -> RecommendState:
    """Put each explanation onto its item; the items' order stays."""
    explained = {item.item_id: item for item in state.get("explained", [])}
    return {"items": [explained.get(item.item_id, item) for item in state["items"]]}


async def assemble_recommendation(state: RecommendState) -> RecommendState:
    """Put each verdict onto its item and sum what the request cost."""
    verdicts = {judged["subject_id"]: judged["verdict"] for judged in state.get("judged", [])}
    items = [item.model_copy(update={"verdict": verdicts.get(item.item_id)}) for item in state["items"]]
    calls = state.get("calls", [])
    usage = Usage(
        llm_calls=len(calls),
        prompt_tokens=sum(call.prompt_tokens for call in calls),
        completion_tokens=sum(call.completion_tokens for call in calls),
        seconds=round(time.time() - state["started"], 3),
        by_agent={agent: agent_usage(agent, calls) for agent in dict.fromkeys(call.agent for call in calls)},
        history_lines=state["history_lines"],
        history_lines_cut=state["history_lines_cut"],
    )
    return {"items": items, "usage": usage}


def agent_usage(agent: str, calls: Sequence[CallRecord]) -> AgentUsage:
    """What the calls of one agent cost."""
    own = [call for call in calls if call.agent == agent]
    first = [call for call in own if call.attempt == 1]
    return AgentUsage(
        llm_calls=len(own),
        first_tries=len(first),
        valid_at_first_try=sum(call.valid for call in first),
        prompt_tokens=sum(call.prompt_tokens for call in own),
        completion_tokens=sum(call.completion_tokens for call in own),
        seconds=round(sum(call.seconds for call in own), 3),
        prompts=sorted({call.prompt for call in own}),
        models=sorted({call.model for call in own}),
    )


def explanation_task(state: RecommendState, item: RecommendedItem) -> ExplanationTask:
    """What stylist and explainer may see for one item."""
    personas = {persona.name: persona for persona in state["personas"]}
    lines = {line.id: line for line in state["household"].history}
    return ExplanationTask(
        user_id=state["user_id"],
        as_of=state["as_of"],
        profile=state["household"].profile,
        persona=personas.get(item.persona or ""),
        evidence=[lines[key] for key in item.evidence],
        item=item,
        own=own_lines(state["household"].history, item.category[-1]),
        signals=bearing_on(state["household"].signals, item.category[-1]),
    )


def judge_tasks(state: RecommendState, context: Context) -> list[JudgeTask]:
    """One a text, if the context asks for verdicts."""
    explained = [(item, item.explanation) for item in state["items"] if item.explanation] if context.judge else []
    return [explanation_judge_task(explanation_task(state, item), text) for item, text in explained]
