"""A sub-evaluator of the Agent-as-a-Judge (section 7): `s_i = E_i(y, d_i)`, one dimension."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import DimensionLabel, EvaluationTask, EvaluatorAnswer, JudgeTask
from agents.state import JudgeState
from prompts.rubric import load_rubrics

EVALUATOR_TOKENS = 90


async def select_rubrics(state: JudgeTask) -> JudgeState:
    """The dimensions that this kind of text is judged in: one rubric file each."""
    return {"rubrics": await asyncio.to_thread(load_rubrics, state.kind), "facts": state.facts}


async def evaluate_dimension(state: EvaluationTask, runtime: Runtime[Context]) -> JudgeState:
    """Label one dimension negative, neutral or positive, with the words that decided."""
    context = context_of(runtime)
    prompt = await read_prompt("evaluator", context.evaluator_prompt, context.evaluator_instructions)
    rubric = state.rubric
    asked = await ask(
        runtime,
        prompt,
        {
            "dimension": rubric.dimension,
            "definition": rubric.definition,
            **rubric.scale.model_dump(),
            "examples": [example.model_dump() for example in rubric.examples],
            "facts": [fact.model_dump() for fact in state.facts],
            "subject": state.subject,
        },
        EvaluatorAnswer,
        user_id=state.user_id,
        subject=f"{state.subject_id}/{rubric.dimension}",
        temperature=context.evaluator_temperature,
        max_tokens=EVALUATOR_TOKENS,
    )
    label = DimensionLabel(dimension=rubric.dimension, label=asked.answer.label, evidence=asked.answer.evidence)
    return {"labels": [label], "calls": asked.calls, "rejected": asked.rejected}


async def record_evaluator_failure(state: EvaluationTask, error: NodeError) -> Command[Any]:
    """A dimension without a valid label never becomes a score: the reviewer gives no grade then."""
    trail = failed("evaluator", f"{state.subject_id}/{state.rubric.dimension}", error.error)
    return Command(update=dict(trail), goto="review_verdict")
