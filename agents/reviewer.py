"""The Senior Reviewer (section 7): the grade is a rule on the labels, the rationale is the agent's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import DimensionLabel, Grade, ReviewTask, Verdict, review_schema
from agents.state import JudgedSubject, JudgeState

REVIEW_TOKENS = 140


def grade_labels(labels: Sequence[DimensionLabel], threshold: float) -> Grade:
    """Two stages: any negative is Bad; else a share of positives of at least `threshold` is Superior, less is Average.

    Raises:
        ValueError: there is no label.
    """
    if not labels:
        raise ValueError("no labels to grade")
    if any(label.label == "negative" for label in labels):
        return "Bad"
    positive = sum(label.label == "positive" for label in labels)
    return "Superior" if positive / len(labels) >= threshold else "Average"


async def review_verdict(state: ReviewTask, runtime: Runtime[Context]) -> JudgeState:
    """Grade the text by the rule, and have the agent name the decisive dimension and say why.

    If a dimension has no valid label there is no verdict: the failure is in the trail.
    """
    if state.failures:
        return {"degraded": [f"no verdict on {state.subject_id}: a dimension has no valid label"]}
    context = context_of(runtime)
    labels = sorted(state.labels, key=lambda label: label.dimension)
    grade = grade_labels(labels, context.judge_threshold)
    prompt = await read_prompt("reviewer", context.reviewer_prompt, context.reviewer_instructions)
    asked = await ask(
        runtime,
        prompt,
        {
            "grade": grade,
            "labels": [label.model_dump() for label in labels],
            "facts": [fact.model_dump() for fact in state.facts],
            "subject": state.subject,
        },
        review_schema([label.dimension for label in labels]),
        user_id=state.user_id,
        subject=state.subject_id,
        temperature=context.reviewer_temperature,
        max_tokens=REVIEW_TOKENS,
    )
    verdict = Verdict(grade=grade, decisive=asked.answer.decisive, rationale=asked.answer.rationale, labels=labels)
    return {
        "judged": [JudgedSubject(subject_id=state.subject_id, verdict=verdict)],
        "calls": asked.calls,
        "rejected": asked.rejected,
    }


async def record_reviewer_failure(state: ReviewTask, error: NodeError) -> Command[Any]:
    """No rationale, no verdict."""
    note = f"no verdict on {state.subject_id}: the reviewer gave no valid answer"
    return Command(update={**failed("reviewer", state.subject_id, error.error), "degraded": [note]})
