"""Evaluators that are code: what a rule decides needs no model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

import py3langid

from agents.claims import is_of_signal, unfounded
from agents.context import Context
from agents.judging import subject_lines
from agents.schemas import Claim, DimensionLabel, EvaluationTask
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

_END = re.compile(r"[.!?…]\W*$")
"""A symbol or a quotation mark may follow."""
_ROUND = re.compile(r"\b(?:(\w+)\s+\1|(\w+(?:\W+\w+){1,5})(?:\W+\2){2,})\b", re.IGNORECASE)
"""A word twice, or two to six words three times in a row."""

_JUDGES = re.compile(r"\b(?:judges?|evaluators?|rubrics?|verdict)\b", re.IGNORECASE)
_JUDGING = re.compile(
    r"\b(?:(evaluat|review)|(grade)[sd]?\b|(label)|(scale)|(rat(?:e[sd]?|ings?))\b|(positive|negative|neutral)"
    r"|(superior)|(instruct|\bprompt(?:s|ed)?\b)|\b(rules?)\b|(ignor|disregard|forget|skip)|(answer|respond)"
    r"|(system|assistant|admin|developer)|(language model|computer)|(text|sentence)|(facts?)\b|(dimension)"
    r"|(approve)|(fault)|(highest))",
    re.IGNORECASE,
)
"""What shops hardly speak of: two of these in one sentence, each group counting once, are no words to a household."""

Finding = tuple[Label, str]
"""A label, and the words that it rests on."""


async def label_by_code(task: EvaluationTask, context: Context) -> DimensionLabel | None:
    """Label a dimension by its rubric's check; None where the rubric names none, or the check can't tell."""
    found = await CHECKS[task.rubric.check](task, context) if task.rubric.check else None
    if found is None:
        return None
    label, evidence = found
    return DimensionLabel(
        dimension=task.rubric.dimension, label=label, evidence=evidence, probability=None, by_code=True
    )


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


async def _form(task: EvaluationTask, context: Context) -> Finding | None:
    """A text without a fault of form is clear, if it is of the kind that code reads: of others a model tells."""
    if fault := fault_of_form(task.subject):
        return "negative", fault
    if not task.subject.strip():
        return "neutral", task.subject
    return None if task.claims is None else ("positive", str(subject_lines(task.subject)[0]["text"]))


async def _length(task: EvaluationTask, context: Context) -> Finding:
    low, high = WORDS
    return _fault(None if low <= len(task.subject.split()) <= high else task.subject, task)


async def _language(task: EvaluationTask, context: Context) -> Finding:
    """By the whole text; of a few words nobody can tell."""
    if len(task.subject.split()) < WORDS[0]:
        return _fault(None, task)
    scores = dict(await asyncio.to_thread(py3langid.rank, task.subject))
    return _fault(None if scores[LANGUAGE] > max(scores.values()) - MARGIN else task.subject, task)


async def _claims(task: EvaluationTask, context: Context) -> Finding | None:
    """Negative if nothing supports a claim of the rubric's kinds, positive if signals or the date support one.

    What a thing is called tells nothing of the moment: "holiday cookies".
    """
    if task.claims is None:
        return None
    about = [claim for claim in task.claims if claim.kind in task.rubric.claims]
    if wrong := unfounded(about):
        return "negative", _sentence_with(wrong[0], task)
    telling = [claim for claim in about if is_of_signal(claim) or claim.support == "moment"]
    if task.rubric.graded and telling:
        return "positive", _sentence_with(telling[0], task)
    return "neutral", task.subject


async def _reason(task: EvaluationTask, context: Context) -> Finding | None:
    """Positive if the text names something beside its item that is found in what it rests on, and nothing that isn't.

    A text without such a claim may still tell a use or a size: of those a model tells.
    """
    claims = task.claims or []
    reasons = [claim for claim in claims if claim.support not in (None, "item")]
    return ("positive", _sentence_with(reasons[0], task)) if reasons and not unfounded(claims) else None


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


CHECKS: Mapping[Check, Callable[[EvaluationTask, Context], Awaitable[Finding | None]]] = {
    "address": _address,
    "form": _form,
    "length": _length,
    "language": _language,
    "claims": _claims,
    "reason": _reason,
    "catalogue": _catalogue,
}
