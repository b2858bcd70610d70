"""The judge of the baseline RecGPT-V1: one prompt, one grade, as an LLM-as-a-Judge gives it."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import JudgeTask, OneShotGrade, Verdict
from agents.state import JudgedSubject, JudgeState
from prompts.rubric import load_rubrics

GRADE_TOKENS = 140


async def judge_at_once(state: JudgeTask, runtime: Runtime[Context]) -> JudgeState:
    """Grade a text in one call that names all dimensions and shows all facts; there are no labels behind the grade."""
    prompt = await read_prompt("one_shot", "v1", None)
    rubrics = await asyncio.to_thread(load_rubrics, state.kind)
    asked = await ask(
        runtime,
        prompt,
        {
            "dimensions": [{"dimension": rubric.dimension, "definition": rubric.definition} for rubric in rubrics],
            "facts": [fact.model_dump() for fact in state.facts],
            "subject": state.subject,
        },
        OneShotGrade,
        user_id=state.user_id,
        subject=state.subject_id,
        temperature=context_of(runtime).reviewer_temperature,
        max_tokens=GRADE_TOKENS,
    )
    verdict = Verdict(grade=asked.answer.grade, decisive=None, rationale=asked.answer.rationale, labels=[])
    return {
        "judged": [JudgedSubject(subject_id=state.subject_id, verdict=verdict)],
        "calls": asked.calls,
        "rejected": asked.rejected,
    }


async def record_judge_failure(state: JudgeTask, error: NodeError) -> Command[Any]:
    """No valid grade, no verdict."""
    note = f"no verdict on {state.subject_id}: the judge gave no valid answer"
    update = {**failed("one_shot", state.subject_id, error.error), "degraded": [note]}
    return Command(update=update, goto="assemble_recommendation")
