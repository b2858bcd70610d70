"""Labels by people: the file that they are kept in, and importers of public sets (section 7).

A file of ratings has a line each, `{"text_id": ..., "dimension": ..., "annotator": ..., "value": ...}`; the texts stand
in a file of judged texts beside it. A label counts as -1, 0 or 1; public sets keep their own scales, and agreement goes
by their order.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from agents.schemas import Fact, JudgeTask
from eval.judged import JudgedText
from eval.lines import read_json_lines
from prompts.rubric import Label
from tools.errors import DatasetError

VALUES: dict[Label, float] = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
EXCHANGES = (1, 2, 3)
"""Of a dialogue of AB-ReDial that were rated, four utterances each."""
UNANSWERED = -9
"""What a rater of the few-shot explanations gives where the text can't be judged."""


class Rating(BaseModel):
    """What one annotator says of one text in one dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_id: str
    dimension: str
    annotator: str
    value: float


def read_ratings(path: Path, known: Collection[str]) -> list[Rating]:
    """Read a file of ratings; a second value of the same annotator takes the place of the first.

    Args:
        path: JSON lines.
        known: ids of the texts.

    Raises:
        DatasetError: no such file, or ratings of texts that are not known.
        OutputError: a line that is no rating.
    """
    if not path.is_file():
        raise DatasetError(f"there is no file {path}; write it with `recgpt judge label`")
    ratings = {(one.text_id, one.dimension, one.annotator): one for one in read_json_lines(path, Rating)}
    if unknown := sorted({rating.text_id for rating in ratings.values()} - set(known)):
        raise DatasetError(
            f"{path} rates {len(unknown)} texts that are not among the texts, such as {unknown[0]}: give the file of "
            "texts that it belongs to"
        )
    return list(ratings.values())


def by_text(ratings: Sequence[Rating]) -> dict[str, dict[str, list[float]]]:
    """Values by dimension and text, in the order of the annotators' names."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rating in sorted(ratings, key=lambda rating: rating.annotator):
        found[rating.dimension][rating.text_id].append(rating.value)
    return {dimension: dict(texts) for dimension, texts in found.items()}


def contradictions(ratings: Sequence[Rating]) -> list[tuple[str, str, dict[str, float]]]:
    """Texts that one annotator calls positive and another negative: id, dimension, and values by annotator."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for rating in ratings:
        found[rating.text_id, rating.dimension][rating.annotator] = rating.value
    return [(*key, values) for key, values in found.items() if min(values.values()) < 0 < max(values.values())]


def import_ab_redial(directory: Path) -> tuple[list[JudgedText], list[Rating]]:
    """AB-ReDial: exchanges of recommendation dialogues, rated by relevance (0-4) and interestingness (1-3).

    Raises:
        DatasetError: there is no `annotated_turns.csv`, it lacks columns, or a value is no number.
    """
    path = directory / "annotated_turns.csv"
    rated = {"relevance": "Relevance", "interestingness": "Attractiveness"}
    utterances = [f"utterance{number}" for number in range(4 * len(EXCHANGES))]
    values = [f"{column}{exchange}" for column in rated for exchange in EXCHANGES]
    table = _read_csv(path, ["ConvId", *utterances, *values])
    texts: dict[str, JudgedText] = {}
    ratings: list[Rating] = []
    rows: defaultdict[tuple[str, str], int] = defaultdict(int)
    for number, row in enumerate(table.iter_rows(named=True), 1):
        said = [_utterance(row[column]) for column in utterances]
        digest = hashlib.sha256(str(said).encode()).hexdigest()[:8]  # an id may stand for several dialogues
        key = (row["ConvId"], digest)
        rows[key] += 1
        for exchange in EXCHANGES:
            own = said[4 * (exchange - 1) : 4 * exchange]
            subject = " ".join(text for speaker, text in own if speaker == "SYSTEM")
            before = [*said[: 4 * (exchange - 1)], *(one for one in own if one[0] == "USER")]
            facts = [Fact(name="history", text=f"{speaker.lower()}: {text}") for speaker, text in before if text]
            text_id = f"ab-redial/{row['ConvId']}/{digest}/{exchange}"
            texts[text_id] = _text(text_id, "ab-redial", subject, facts)
            for column, dimension in rated.items():
                if (value := _value(row, f"{column}{exchange}", path, number)) is not None:
                    annotator = str(rows[key])
                    ratings.append(Rating(text_id=text_id, dimension=dimension, annotator=annotator, value=value))
    return list(texts.values()), ratings


def import_few_shot_explanations(directory: Path) -> tuple[list[JudgedText], list[Rating]]:
    """The few-shot explanations of NLI and commonsense questions, three raters each.

    `generality_factuality` is Factuality, `grammar` Clarity, `new_info` Informativeness, `supports_label` Relevance.

    Raises:
        DatasetError: there is no CSV file, one lacks columns, or a value is no number.
    """
    paths = sorted(directory.glob("*.csv"))
    if not paths:
        raise DatasetError(f"{directory} holds no CSV file of the few-shot explanations")
    columns = {
        "generality_factuality": "Factuality",
        "grammar": "Clarity",
        "new_info": "Informativeness",
        "supports_label": "Relevance",
    }
    needed = ("Input.id", "Input.gold_label", "Input.explanation")
    texts: dict[str, JudgedText] = {}
    ratings: list[Rating] = []
    for path in paths:
        rows: defaultdict[str, int] = defaultdict(int)
        table = _read_csv(path, [*needed, *(f"Answer.{column}" for column in columns)])
        for number, row in enumerate(table.iter_rows(named=True), 1):
            text_id = f"{path.stem}/{row['Input.id']}"
            rows[text_id] += 1
            asked = [row.get(name) for name in ("Input.question", "Input.premise")]
            other = [row.get(name) for name in ("Input.answer_choices", "Input.hypothesis")]
            told = [*asked, *other, f"the answer is {row['Input.gold_label']}"]
            facts = [Fact(name="item", text=text) for text in told if text]
            texts[text_id] = _text(text_id, path.stem, row["Input.explanation"], facts)
            for column, dimension in columns.items():
                value = _value(row, f"Answer.{column}", path, number)
                if value is not None and value != UNANSWERED:
                    annotator = str(rows[text_id])
                    ratings.append(Rating(text_id=text_id, dimension=dimension, annotator=annotator, value=value))
    return list(texts.values()), ratings


IMPORTERS = {"ab-redial": import_ab_redial, "few-shot-explanations": import_few_shot_explanations}


def _text(text_id: str, source: str, subject: str, facts: list[Fact]) -> JudgedText:
    task = JudgeTask(user_id=source, kind="explanations", subject_id=text_id, subject=subject, facts=facts)
    return JudgedText(
        id=text_id, split="test", source=source, context=text_id, task=task, labels={}, evidence={}, grade=None
    )


def _utterance(cell: str | None) -> tuple[str, str]:
    """Speaker and words of `SYSTEM<tab>words`."""
    speaker, _, text = re.sub(r"\s*\t\s*", "\t", cell or "").partition("\t")
    return speaker, text.strip()


def _value(row: Mapping[str, str | None], column: str, path: Path, number: int) -> float | None:
    """What a rater gave in a row of a file; None where the cell is empty."""
    if not (cell := row[column]):
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(
            f"{path}, row {number} below the head: expected a number as {column}, found {cell!r}; mend or empty it"
        )
    return value


def _read_csv(path: Path, needed: Sequence[str]) -> pl.DataFrame:
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{path} can't be read as a CSV file: {error}") from error
    if missing := [column for column in needed if column not in table.columns]:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)}; found the columns {', '.join(table.columns)}. Give the directory of "
            "the files as they were published"
        )
    return table
