"""What the judge is tuned on: the labels of judged texts as the answers of its agents (section 7).

    recgpt judge data --out runs/judge
    recgpt train sft all --data runs/judge --recipe judge --model recgpt-smollm2-135m --out runs/judge/sft

The one-shot judge learns from the same texts, so that the two can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel

from agents.evaluator import evaluator_values
from agents.judging import fact_lines, quotes, subject_lines
from agents.one_shot import one_shot_values
from agents.schemas import EvaluationTask, EvaluatorAnswer, OneShotGrade, Review
from eval.judged import JudgedText
from prompts.rubric import Label, Rubric, load_rubrics
from prompts.template import Value, load_prompt
from training.data import SCHEMA

DECISIVE: dict[str, Label] = {"Bad": "negative", "Average": "neutral", "Superior": "positive"}
"""The label that decides a grade."""

Row = tuple[object, ...]


def write_judge_examples(
    texts: Sequence[JudgedText], out: Path, most: int, seed: int, texts_sha256: str
) -> dict[str, object]:
    """Write `examples.parquet` and its card `card.json`, for `recgpt train sft`.

    Args:
        texts: of all splits; those of the test split are left out.
        out: where to.
        most: examples of one agent, kind, dimension and label, or grade: a label that is everywhere teaches little.
        seed: of which are kept, and which are shown in reverse order (half of them).
        texts_sha256: of the file of texts, for the card.
    """
    rng = np.random.default_rng(seed)
    kept: Counter[tuple[str, ...]] = Counter()
    rows = []
    for place in rng.permutation(len(texts)):
        text = texts[int(place)]
        if text.split == "test":
            continue
        bound = most if text.split == "train" else max(most // 10, 8)
        for key, row in _examples(text, bool(rng.random() < 0.5)):
            if kept[text.split, *key] < bound:
                kept[text.split, *key] += 1
                rows.append(row)
    out.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(out / "examples.parquet", compression="zstd")
    card: dict[str, object] = {
        "texts_sha256": texts_sha256,
        "seed": seed,
        "most": most,
        "examples": {".".join(key): count for key, count in sorted(kept.items())},
        "sha256": hashlib.sha256((out / "examples.parquet").read_bytes()).hexdigest(),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _examples(text: JudgedText, reverse: bool) -> Iterator[tuple[tuple[str, ...], Row]]:
    """Examples of all agents, each with what it counts as."""
    rubrics = {rubric.dimension: rubric for rubric in load_rubrics(text.task.kind)}
    for dimension, label in text.labels.items():
        values, answer = evaluator_example(text, rubrics[dimension], reverse)
        yield ("evaluator", text.task.kind, dimension, label), _row("evaluator", "v1", text, values, answer)
    if text.grade is None:
        return
    decisive = next(name for name, label in sorted(text.labels.items()) if label == DECISIVE[text.grade])
    why = f"{decisive} is {text.labels[decisive]}: {text.evidence[decisive]}"[:240]
    graded = OneShotGrade(grade=text.grade, rationale=why)
    values = one_shot_values(text.task, list(rubrics.values()), reverse)
    yield ("one_shot", text.task.kind, text.grade), _row("one_shot", "v1", text, values, graded)
    labels = [
        {"dimension": name, "label": label, "evidence": text.evidence[name]}
        for name, label in sorted(text.labels.items())
    ]
    reviewed: dict[str, Value] = {
        "grade": text.grade,
        "labels": labels,
        "facts": fact_lines(text.task.facts),
        "subject": subject_lines(text.task.subject),
    }
    review = Review(decisive=decisive, rationale=why)
    yield ("reviewer", text.task.kind, text.grade), _row("reviewer", "v1", text, reviewed, review)


def evaluator_example(text: JudgedText, rubric: Rubric, reverse: bool) -> tuple[dict[str, Value], EvaluatorAnswer]:
    """The fields of the evaluator's prompt for one dimension, and the answer that its label calls for."""
    facts = [fact for fact in text.task.facts if fact.name in rubric.facts]
    task = EvaluationTask(**text.task.model_dump(exclude={"facts"}), facts=facts, rubric=rubric)
    ids = {line: name for name, line in reversed(quotes(facts, text.task.subject).items())}
    evidence = ids.get(text.evidence[rubric.dimension], "t1")
    return evaluator_values(task, reverse), EvaluatorAnswer(evidence=evidence, label=text.labels[rubric.dimension])


def _row(agent: str, version: str, text: JudgedText, values: dict[str, Value], answer: BaseModel) -> Row:
    system, question = load_prompt(agent, version).render(values)
    as_of = datetime.fromisoformat(text.context.partition("@")[2].partition("/")[0])
    messages = (str(system.content), str(question.content), answer.model_dump_json())
    return (agent, text.task.kind, text.task.user_id, as_of, text.split, *messages, 0, 0)
