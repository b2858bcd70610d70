"""What the judge is tuned on: the labels of judged texts as the answers of its agents (section 7).

    recgpt judge data --out runs/judge
    recgpt train sft all --data runs/judge --recipe judge --out runs/judge/sft

The one-shot judge learns from the same texts, so that the two can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel

from agents.evaluator import evaluator_values
from agents.judging import evaluation_task, quotes
from agents.one_shot import one_shot_values
from agents.reviewer import QUESTION_PROMPT, deciding, question_values, review_values
from agents.schemas import DimensionLabel, Doubt, EvaluatorAnswer, OneShotGrade, Question, Review
from eval.judged import JudgedText
from prompts.rubric import Label, Rubric, load_rubrics
from prompts.template import Value, load_prompt
from training.data import NOTHING_TO_REWARD, SCHEMA
from training.judged import load_wordings

SOUND = 3
"""How many times as many positive and neutral labels as negative ones: most texts are sound, and a judge that learnt
from as many faulty ones finds faults everywhere."""
DOUBTED = 0.05
"""Share of evaluators' examples in which the reviewer asks to look again."""

ORDERED = 0.15
"""Share of the training texts with an order to the judge in them: their labels stay what they are."""
BEHIND = 0.75
"""Share of these orders that stand behind the text; the others stand before it."""
REVIEWED = 0.25
"""Share of the texts taken of which the reviewer learns: what decides follows from the labels that it is shown."""
QUESTIONED = 0.2
"""Share of graded texts about which the reviewer learns to ask."""

Row = tuple[object, ...]


def write_judge_examples(
    texts: Sequence[JudgedText], out: Path, most: int, seed: int, texts_sha256: str
) -> dict[str, object]:
    """Write `examples.parquet` and its card `card.json`, for `recgpt train sft`.

    Texts are taken in a seeded order as long as one of their labels is wanted; the one-shot judge learns from the texts
    that were taken, all of them and no others, the reviewer from a part of them.

    Args:
        texts: of all splits; those of the test split are left out.
        out: where to.
        most: examples of one kind and dimension with a negative label, and `SOUND` times as many of another one: a
            label that is everywhere teaches little, and one that is as rare as here must stay the rarer one.
        seed: of the order, and of what is shown in reverse order (half of it).
        texts_sha256: of the file of texts, for the card.
    """
    rng = np.random.default_rng(seed)
    kept: Counter[tuple[str, ...]] = Counter()
    rows: list[Row] = []
    for place in rng.permutation(len(texts)):
        text = texts[int(place)]
        if text.split == "test":
            continue
        reverse, doubted = bool(rng.random() < 0.5), rng.random() < DOUBTED
        bound = most if text.split == "train" else max(most // 10, 8)
        keys = {dimension: (text.split, text.task.kind, dimension, label) for dimension, label in text.labels.items()}
        wanted = [
            name for name, key in keys.items() if kept[key] < bound * (1 if text.labels[name] == "negative" else SOUND)
        ]
        if text.split == "train" and rng.random() < ORDERED:
            text = _with_order(text, rng)
        for dimension in wanted:
            kept[keys[dimension]] += 1
            if row := _evaluation(text, dimension, reverse, doubted):
                rows.append(row)
        if wanted and text.grade:
            rows.append(_grading(text, reverse))
            if rng.random() < REVIEWED:
                rows.append(_review(text))
            if rng.random() < QUESTIONED and (question := _question(text)):
                rows.append(question)
    out.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame([row + NOTHING_TO_REWARD for row in rows], schema=SCHEMA, orient="row")
    table.write_parquet(out / "examples.parquet", compression="zstd")
    agents = table.group_by("agent", "kind", "split").len().sort("agent", "kind", "split").rows()
    card: dict[str, object] = {
        "texts_sha256": texts_sha256,
        "seed": seed,
        "most": most,
        "examples": {".".join(key): count for *key, count in agents},
        "labels": {".".join(key): count for key, count in sorted(kept.items())},
        "sha256": hashlib.sha256((out / "examples.parquet").read_bytes()).hexdigest(),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _with_order(text: JudgedText, rng: np.random.Generator) -> JudgedText:
    """The text with an order to the judge behind or before it."""
    orders = load_wordings().orders
    parts = [text.task.subject, orders[int(rng.integers(len(orders)))]][:: 1 if rng.random() < BEHIND else -1]
    return text.model_copy(update={"task": text.task.model_copy(update={"subject": " ".join(parts)})})


def _evaluation(text: JudgedText, dimension: str, reverse: bool, doubted: bool) -> Row | None:
    """An evaluator's example, or None where code decides; if doubted, the label stands against another evaluator's."""
    rubric = next(rubric for rubric in load_rubrics(text.task.kind) if rubric.dimension == dimension)
    if not rubric.asks_model:
        return None
    against = next((name for name in text.labels if name != dimension), None)
    doubt = None
    if doubted and against:
        doubt = Doubt(sent_back=dimension, against=_label(text, against))
    values, answer = evaluator_example(text, rubric, reverse, doubt)
    return _row("evaluator", "v1", text, values, answer)


def _grading(text: JudgedText, reverse: bool) -> Row:
    assert text.grade
    rubrics = load_rubrics(text.task.kind)
    answer = OneShotGrade(grade=text.grade, rationale=_why(text))
    return _row("one_shot", "v1", text, one_shot_values(text.task, rubrics, reverse), answer)


def _review(text: JudgedText) -> Row:
    assert text.grade
    labels = [_label(text, name) for name in sorted(text.labels)]
    answer = Review(decisive=deciding(text.grade, labels)[0], rationale=_why(text))
    return _row("reviewer", "v1", text, review_values(text.grade, labels, text.task), answer)


def _question(text: JudgedText) -> Row | None:
    """A question about two labels that exclude each other because one was turned round: that one is sent back."""
    for rubric in load_rubrics(text.task.kind):
        for excluded in rubric.excludes:
            known = text.labels.get(rubric.dimension), text.labels.get(excluded)
            if known in (("positive", "positive"), ("negative", "negative")):
                wrong = rubric.dimension if known[0] == "positive" else excluded
                pair = _label(text, rubric.dimension, "negative"), _label(text, excluded, "positive")
                values = question_values([pair], text.task)
                return _row("reviewer", QUESTION_PROMPT, text, values, Question(send_back=wrong))
    return None


def _label(text: JudgedText, dimension: str, label: Label | None = None) -> DimensionLabel:
    """A known label, or another one with its evidence."""
    return DimensionLabel(
        dimension=dimension,
        label=label or text.labels[dimension],
        evidence=text.evidence[dimension],
        probability=None,
    )


def _why(text: JudgedText) -> str:
    """Why a text has its grade, in few words: what is trained is above all the grade."""
    assert text.grade
    decisive = deciding(text.grade, [_label(text, name) for name in sorted(text.labels)])[0]
    return f"{decisive} is {text.labels[decisive]}: {text.evidence[decisive]}"[:80]


def evaluator_example(
    text: JudgedText, rubric: Rubric, reverse: bool, doubt: Doubt | None = None
) -> tuple[dict[str, Value], EvaluatorAnswer]:
    """The fields of the evaluator's prompt for one dimension, and the answer that its label calls for.

    Evidence that is only a part of a line, or is of a line that this evaluator does not see, is the text's first line.
    """
    task = evaluation_task(text.task, rubric, doubt)
    ids = {line: name for name, line in reversed(quotes(task.facts, task.subject).items())}
    evidence = ids.get(text.evidence[rubric.dimension], "t1")
    return evaluator_values(task, reverse), EvaluatorAnswer(evidence=evidence, label=text.labels[rubric.dimension])


def _row(agent: str, version: str, text: JudgedText, values: dict[str, Value], answer: BaseModel) -> Row:
    system, question = load_prompt(agent, version).render(values)
    as_of = datetime.fromisoformat(text.context.partition("@")[2].partition("/")[0])
    messages = (str(system.content), str(question.content), answer.model_dump_json())
    return (agent, text.task.kind, text.task.user_id, as_of, text.split, *messages, 0, 0)
