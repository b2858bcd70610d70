"""The judge of the baseline RecGPT-V1: one prompt, one grade, as an LLM-as-a-Judge gives it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.judging import fact_lines, subject_lines
from agents.schemas import Grade, JudgeTask, OneShotGrade, Verdict
from agents.state import JudgedSubject, JudgeState
from prompts.rubric import Rubric, load_rubrics
from prompts.template import Value

GRADE_TOKENS = 140
MEANINGS: dict[Grade, str] = {
    "Superior": "good in most of the dimensions, and fails in none",
    "Average": "fails in none of the dimensions",
    "Bad": "fails in one of the dimensions",
}


async def judge_at_once(state: JudgeTask, runtime: Runtime[Context]) -> JudgeState:
    """Grade a text in one call that names all dimensions and shows all facts; there are no labels behind the grade."""
    context = context_of(runtime)
    prompt = await read_prompt("one_shot", "v1", None)
    rubrics = await asyncio.to_thread(load_rubrics, state.kind)
    asked = await ask(
        runtime,
        prompt,
        one_shot_values(state, rubrics, context.judge_reverse),
        OneShotGrade,
        user_id=state.user_id,
        subject=state.subject_id,
        temperature=context.reviewer_temperature,
        max_tokens=GRADE_TOKENS,
    )
    verdict = Verdict(grade=asked.answer.grade, decisive=None, rationale=asked.answer.rationale, labels=[])
    return {
        "judged": [JudgedSubject(subject_id=state.subject_id, verdict=verdict)],
        "calls": asked.calls,
        "rejected": asked.rejected,
    }


def one_shot_values(task: JudgeTask, rubrics: Sequence[Rubric], reverse: bool) -> dict[str, Value]:
    """The fields of the one-shot judge's prompt; with `reverse`, grades and facts in the opposite order."""
    order = -1 if reverse else 1
    return {
        "grades": [{"grade": grade, "meaning": meaning} for grade, meaning in MEANINGS.items()][::order],
        "dimensions": [
            {"dimension": rubric.dimension, "definition": rubric.definition} for rubric in rubrics if rubric.graded
        ],
        "facts": fact_lines(task.facts)[::order],
        "subject": subject_lines(task.subject),
    }


async def record_judge_failure(state: JudgeTask, error: NodeError) -> Command[Any]:
    """No valid grade, no verdict."""
    note = f"no verdict on {state.subject_id}: the judge gave no valid answer"
    return Command(update={**failed("one_shot", state.subject_id, error.error), "degraded": [note]})
