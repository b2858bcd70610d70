"""Evaluators that are code: what a rule decides needs no model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

import py3langid
from langgraph.runtime import Runtime

from agents.claims import unfounded
from agents.context import Context, context_of
from agents.judging import subject_lines
from agents.schemas import Claim, DimensionLabel, EvaluationTask
from agents.state import JudgeState
from prompts.rubric import Check, Label
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.retrieval import open_index
from tools.shelf import tag_text

WORDS = (4, 45)
"""Fewest and most of an explanation."""
LANGUAGE = "en"
"""Of the prompts, and so of what is written."""

MARGIN = 20.0
"""Log-likelihood by which another language must lead: short English sentences are now and then taken for Latin."""

_END = re.compile(r"[.!?][\"'”’)]*$")
_ROUND = re.compile(r"\b(\w+(?:\W+\w+){1,5})(?:\W+\1\b){2,}", re.IGNORECASE)
"""Two to six words, three times in a row."""

_JUDGES = re.compile(r"\b(?:judges?|evaluators?|rubrics?|verdict)\b", re.IGNORECASE)
_JUDGING = re.compile(
    r"\b(?:(evaluat|review)|(grade)[sd]?\b|(label)|(scale)|(rat(?:e[sd]?|ings?))\b|(positive|negative|neutral)"
    r"|(superior)|(instruct|prompt)|(rule)|(ignor|disregard|forget|skip)|(answer|respond)"
    r"|(system|assistant|admin|developer)|(language model|computer)|(text|sentence)|(facts?)\b|(dimension)"
    r"|(approve)|(fault)|(highest|perfect))",
    re.IGNORECASE,
)
"""What shops hardly speak of: two of these in one sentence, each group counting once, are no words to a household."""

Finding = tuple[Label, str]
"""A label, and the words that it rests on."""


async def check_dimension(state: EvaluationTask, runtime: Runtime[Context]) -> JudgeState:
    """Label one dimension by its check.

    What can't be checked has no label: the claims of a text that code has not read.
    """
    assert state.rubric.check
    if state.rubric.check == "grounding" and state.claims is None:
        return {}
    label, evidence = await CHECKS[state.rubric.check](state, context_of(runtime))
    found = DimensionLabel(dimension=state.rubric.dimension, label=label, evidence=evidence, probability=None)
    return {"labels": [found]}


def label_by_claims(task: EvaluationTask) -> DimensionLabel | None:
    """Label a dimension by the claims that it is about; None where its rubric names none, or no code read the text."""
    if not task.rubric.by_claims or task.claims is None:
        return None
    named = {"item", "shelf"}  # a thing's own name says nothing of the dimension: "holiday cookies"
    about = [claim for claim in task.claims if claim.kind in task.rubric.by_claims and claim.support not in named]
    wrong = unfounded(about)
    label: Label = "negative" if wrong else "positive" if about else "neutral"
    evidence = _sentence_with((wrong or about)[0], task) if about else task.subject
    return DimensionLabel(dimension=task.rubric.dimension, label=label, evidence=evidence, probability=None)


def _sentence_with(claim: Claim, task: EvaluationTask) -> str:
    lines = (str(line["text"]) for line in subject_lines(task.subject))
    return next((line for line in lines if claim.text in line), claim.text)


def _fault(words: str | None, task: EvaluationTask) -> Finding:
    return ("neutral", task.subject) if words is None else ("negative", words)


async def _address(task: EvaluationTask, context: Context) -> Finding:
    """Orders to the judge in the words that most of them need; what has none of these is left to the evaluators."""
    for line in subject_lines(task.subject):
        spoken_of = {match.lastindex for match in _JUDGING.finditer(line["text"])}
        if _JUDGES.search(line["text"]) or len(spoken_of) > 1:
            return "negative", str(line["text"])
    return _fault(None, task)


def fault_of_form(text: str) -> str | None:
    """Words with which a text breaks off or goes round in circles; an empty text is a matter of its length."""
    text = text.strip()
    if text and not _END.search(text):
        return str(subject_lines(text)[-1]["text"])
    again = _ROUND.search(text)
    return again[0] if again else None


async def _form(task: EvaluationTask, context: Context) -> Finding:
    return _fault(fault_of_form(task.subject), task)


async def _length(task: EvaluationTask, context: Context) -> Finding:
    low, high = WORDS
    return _fault(None if low <= len(task.subject.split()) <= high else task.subject, task)


async def _language(task: EvaluationTask, context: Context) -> Finding:
    """By the whole text; of a few words nobody can tell."""
    if len(task.subject.split()) < WORDS[0]:
        return _fault(None, task)
    scores = dict(await asyncio.to_thread(py3langid.rank, task.subject))
    return _fault(None if scores[LANGUAGE] > max(scores.values()) - MARGIN else task.subject, task)


async def _grounding(task: EvaluationTask, context: Context) -> Finding:
    wrong = unfounded(task.claims or [])
    return _fault(_sentence_with(wrong[0], task) if wrong else None, task)


async def _catalogue(task: EvaluationTask, context: Context) -> Finding:
    """Positive: a leaf's name, in its words. Neutral: near enough to a leaf to search by. Negative: near to none.

    The bar is that of tags that are rewritten before they are searched by.
    """

    def label() -> Label:
        index = open_index(open_dataset(context.dataset), open_embedder(context.embedding_model))
        if tag_text(task.subject) in {tag_text(path[-1]) for path in index.leaves}:
            return "positive"
        return "neutral" if index.nearest_leaves([task.subject])[0].similarity >= context.rewrite_below else "negative"

    return await asyncio.to_thread(label), task.subject


CHECKS: Mapping[Check, Callable[[EvaluationTask, Context], Awaitable[Finding]]] = {
    "address": _address,
    "form": _form,
    "length": _length,
    "language": _language,
    "grounding": _grounding,
    "catalogue": _catalogue,
}
