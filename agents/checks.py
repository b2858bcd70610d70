"""Evaluators that are code: what a rule decides needs no model. They find faults, so a label is negative or neutral."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

import py3langid
from langgraph.runtime import Runtime

from agents.claims import unfounded
from agents.context import Context, context_of
from agents.judging import subject_lines
from agents.schemas import DimensionLabel, EvaluationTask
from agents.state import JudgeState
from prompts.rubric import Check
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.retrieval import open_index

WORDS = (4, 45)
"""Fewest and most of an explanation."""
LANGUAGE = "en"
"""Of the prompts, and so of what is written."""

MARGIN = 20.0
"""Log-likelihood by which another language must lead: short English sentences are now and then taken for Latin."""

_END = re.compile(r"[.!?][\"'”’)]*$")
_ROUND = re.compile(r"\b(\w+(?:\W+\w+){1,5})(?:\W+\1\b){2,}", re.IGNORECASE)
"""Two to six words, three times in a row."""

Fault = str | None
"""The words that are at fault."""


async def check_dimension(state: EvaluationTask, runtime: Runtime[Context]) -> JudgeState:
    """Label one dimension by its check; the evidence is the words at fault, or the whole text.

    What can't be checked has no label: the claims of a text that code has not read.
    """
    assert state.rubric.check
    if state.rubric.check == "grounding" and state.claims is None:
        return {}
    fault = await CHECKS[state.rubric.check](state, context_of(runtime))
    label = DimensionLabel(
        dimension=state.rubric.dimension,
        label="negative" if fault is not None else "neutral",
        evidence=fault if fault is not None else state.subject,
        probability=None,
    )
    return {"labels": [label]}


async def _form(task: EvaluationTask, context: Context) -> Fault:
    """What a model does that is cut off or caught in a loop; an empty text is a matter of its length."""
    text = task.subject.strip()
    if text and not _END.search(text):
        return str(subject_lines(text)[-1]["text"])
    again = _ROUND.search(text)
    return again[0] if again else None


async def _length(task: EvaluationTask, context: Context) -> Fault:
    low, high = WORDS
    return None if low <= len(task.subject.split()) <= high else task.subject


async def _language(task: EvaluationTask, context: Context) -> Fault:
    """By the whole text; of a few words nobody can tell."""
    if len(task.subject.split()) < WORDS[0]:
        return None
    scores = dict(await asyncio.to_thread(py3langid.rank, task.subject))
    return None if scores[LANGUAGE] > max(scores.values()) - MARGIN else task.subject


async def _grounding(task: EvaluationTask, context: Context) -> Fault:
    wrong = unfounded(task.claims or [])
    if not wrong:
        return None
    return next((line["text"] for line in subject_lines(task.subject) if wrong[0].text in line["text"]), wrong[0].text)


async def _catalogue(task: EvaluationTask, context: Context) -> Fault:
    def similarity() -> float:
        index = open_index(open_dataset(context.dataset), open_embedder(context.embedding_model))
        return index.nearest_leaves([task.subject])[0].similarity

    return None if await asyncio.to_thread(similarity) >= context.rewrite_below else task.subject


CHECKS: Mapping[Check, Callable[[EvaluationTask, Context], Awaitable[Fault]]] = {
    "form": _form,
    "length": _length,
    "language": _language,
    "grounding": _grounding,
    "catalogue": _catalogue,
}
