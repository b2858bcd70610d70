"""Labels by people: the file that they are kept in, and importers of public sets (section 7).

A file of ratings has a line each, `{"text_id": ..., "dimension": ..., "annotator": ..., "value": ...}`; the texts stand
in a file of judged texts beside it. A label counts as -1, 0 or 1; public sets keep their own scales, and agreement goes
by their order.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from agents.schemas import Fact, JudgeTask
from eval.judged import JudgedText
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
        DatasetError: no such file, a line that is no rating, or ratings of texts that are not known.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"{path} can't be read ({error}); write it with `recgpt judge label`") from error
    ratings: dict[tuple[str, str, str], Rating] = {}
    for number, line in enumerate(lines, 1):
        try:
            rating = Rating.model_validate_json(line)
        except ValidationError as error:
            raise DatasetError(f"{path}, line {number}: no rating: {error}") from error
        ratings[rating.text_id, rating.dimension, rating.annotator] = rating
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
        DatasetError: there is no `annotated_turns.csv`, or it has other columns.
    """
    table = _read_csv(directory / "annotated_turns.csv")
    texts: dict[str, JudgedText] = {}
    ratings: list[Rating] = []
    rows: defaultdict[tuple[str, str], int] = defaultdict(int)
    for row in table.iter_rows(named=True):
        said = [_utterance(row[f"utterance{number}"]) for number in range(4 * len(EXCHANGES))]
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
            for column, dimension in (("relevance", "Relevance"), ("interestingness", "Attractiveness")):
                if (value := row[f"{column}{exchange}"]) not in (None, ""):
                    annotator = str(rows[key])
                    ratings.append(
                        Rating(text_id=text_id, dimension=dimension, annotator=annotator, value=float(value))
                    )
    return list(texts.values()), ratings


def import_few_shot_explanations(directory: Path) -> tuple[list[JudgedText], list[Rating]]:
    """The few-shot explanations of NLI and commonsense questions, three raters each.

    `generality_factuality` is Factuality, `grammar` Clarity, `new_info` Informativeness, `supports_label` Relevance.

    Raises:
        DatasetError: there is no CSV file, or one has other columns.
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
    texts: dict[str, JudgedText] = {}
    ratings: list[Rating] = []
    for path in paths:
        rows: defaultdict[str, int] = defaultdict(int)
        for row in _read_csv(path).iter_rows(named=True):
            text_id = f"{path.stem}/{row['Input.id']}"
            rows[text_id] += 1
            asked = [row.get(name) for name in ("Input.question", "Input.premise")]
            other = [row.get(name) for name in ("Input.answer_choices", "Input.hypothesis")]
            told = [*asked, *other, f"the answer is {row['Input.gold_label']}"]
            facts = [Fact(name="item", text=text) for text in told if text]
            texts[text_id] = _text(text_id, path.stem, row["Input.explanation"], facts)
            for column, dimension in columns.items():
                value = row[f"Answer.{column}"]
                if value not in (None, "") and float(value) != UNANSWERED:
                    annotator = str(rows[text_id])
                    ratings.append(
                        Rating(text_id=text_id, dimension=dimension, annotator=annotator, value=float(value))
                    )
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


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{path} can't be read as a CSV file: {error}") from error
