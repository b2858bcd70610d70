"""The Senior Reviewer (section 7): the grade is a rule on the labels, the rationale is the agent's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.judging import fact_lines, subject_lines
from agents.schemas import DimensionLabel, Doubt, Grade, JudgeTask, ReviewTask, Verdict, question_schema, review_schema
from agents.state import JudgedSubject, JudgeState
from prompts.rubric import Rubric
from prompts.template import Value

REVIEW_TOKENS = 140
QUESTION_TOKENS = 20
QUESTION_PROMPT = "question"


def grade_labels(labels: Sequence[DimensionLabel], threshold: float, ungraded: Collection[str] = ()) -> Grade:
    """Two stages: any negative is Bad; else a share of positives of at least `threshold` is Superior, less is Average.

    Args:
        labels: one a dimension.
        threshold: tau.
        ungraded: dimensions that find faults and never excellence, and are not in the share.

    Raises:
        ValueError: there is no label, or none that could be positive.
    """
    judged = [label.label for label in labels if label.dimension not in ungraded]
    if not judged:
        raise ValueError("no labels to grade")
    if any(label.label == "negative" for label in labels):
        return "Bad"
    return "Superior" if judged.count("positive") / len(judged) >= threshold else "Average"


def contradictions(
    labels: Sequence[DimensionLabel], rubrics: Sequence[Rubric]
) -> list[tuple[DimensionLabel, DimensionLabel]]:
    """Pairs of a negative and a positive label of which, by the negative's rubric, only one can hold."""
    by_dimension = {label.dimension: label for label in labels}
    return [
        (negative, positive)
        for rubric in rubrics
        for excluded in rubric.excludes
        if (negative := by_dimension.get(rubric.dimension)) and negative.label == "negative"
        if (positive := by_dimension.get(excluded)) and positive.label == "positive"
    ]


async def question_labels(state: ReviewTask, runtime: Runtime[Context]) -> JudgeState:
    """Where labels exclude each other, have the agent name the dimension that is judged again, once.

    A text that code found faulty is Bad whatever they say: then nothing is asked.
    """
    pairs = contradictions(state.labels, state.rubrics)
    faulty = any(label.label == "negative" and label.by_code for label in state.labels)
    if not pairs or faulty or state.failures:
        return {"doubt": None}
    others = {label.dimension: other for pair in pairs for label, other in (pair, pair[::-1])}
    context = context_of(runtime)
    asked = await ask(
        runtime,
        await read_prompt("reviewer", QUESTION_PROMPT, None),
        question_values(pairs, state),
        question_schema(sorted(others)),
        user_id=state.user_id,
        subject=state.subject_id,
        temperature=context.reviewer_temperature,
        max_tokens=QUESTION_TOKENS,
    )
    name = asked.answer.send_back
    doubt = Doubt(sent_back=name, against=others[name]) if name in others else None
    return {"doubt": doubt, "calls": asked.calls, "rejected": asked.rejected}


async def leave_labels(state: ReviewTask, error: NodeError) -> Command[Any]:
    """Without a valid question nothing is sent back, and the labels stand."""
    note = f"{state.subject_id}: labels exclude each other, and the reviewer named none to judge again"
    trail = failed("reviewer", state.subject_id, error.error)
    return Command(update={**trail, "failures": [], "degraded": [note]}, goto="review_verdict")


async def review_verdict(state: ReviewTask, runtime: Runtime[Context]) -> JudgeState:
    """Grade the text by the rule, and have the agent name the decisive dimension and say why.

    If a dimension has no valid label there is no verdict: the failure is in the trail.
    """
    if state.failures:
        return {"degraded": [f"no verdict on {state.subject_id}: a dimension has no valid label"]}
    context = context_of(runtime)
    last = {label.dimension: label for label in state.labels}
    labels = [last[dimension] for dimension in sorted(last)]
    ungraded = [rubric.dimension for rubric in state.rubrics if not rubric.graded]
    grade = grade_labels(labels, context.judge_threshold, ungraded)
    # One that looks for faults and found none tells nothing.
    shown = [label for label in labels if label.dimension not in ungraded or label.label == "negative"]
    prompt = await read_prompt("reviewer", context.reviewer_prompt, context.reviewer_instructions)
    asked = await ask(
        runtime,
        prompt,
        review_values(grade, shown, state),
        review_schema(deciding(grade, shown)),
        user_id=state.user_id,
        subject=state.subject_id,
        temperature=context.reviewer_temperature,
        max_tokens=REVIEW_TOKENS,
    )
    verdict = Verdict(
        grade=grade,
        decisive=asked.answer.decisive,
        rationale=asked.answer.rationale,
        labels=labels,
        sent_back=state.doubt.sent_back if state.doubt else None,
    )
    return {
        "judged": [JudgedSubject(subject_id=state.subject_id, verdict=verdict)],
        "calls": asked.calls,
        "rejected": asked.rejected,
    }


def question_values(pairs: Sequence[tuple[DimensionLabel, DimensionLabel]], task: JudgeTask) -> dict[str, Value]:
    """The fields of the reviewer's question."""
    return {
        "contradictions": [
            {
                "negative": negative.dimension,
                "evidence": negative.evidence,
                "positive": positive.dimension,
                "other": positive.evidence,
            }
            for negative, positive in pairs
        ],
        "facts": fact_lines(task.facts),
        "subject": subject_lines(task.subject),
    }


def review_values(grade: Grade, labels: Sequence[DimensionLabel], task: JudgeTask) -> dict[str, Value]:
    """The fields of the reviewer's prompt."""
    return {
        "grade": grade,
        "labels": [label.model_dump() for label in labels],
        "facts": fact_lines(task.facts),
        "subject": subject_lines(task.subject),
    }


def deciding(grade: Grade, labels: Sequence[DimensionLabel]) -> list[str]:
    """The dimensions that may have decided a grade: negative ones of Bad, neutral of Average, positive of Superior."""
    wanted = {"Bad": "negative", "Average": "neutral", "Superior": "positive"}[grade]
    return [label.dimension for label in labels if label.label == wanted]


async def record_reviewer_failure(state: ReviewTask, error: NodeError) -> Command[Any]:
    """No rationale, no verdict."""
    note = f"no verdict on {state.subject_id}: the reviewer gave no valid answer"
    return Command(update={**failed("reviewer", state.subject_id, error.error), "degraded": [note]})
