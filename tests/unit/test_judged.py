"""Judged texts on the real data set: their labels hold, and no split knows another's households or wordings."""

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest

from agents.claims import unfounded
from agents.judging import quotes
from eval.judge import load_injections
from eval.judged import JudgedText, read_judged, split_of
from eval.splits import TRAIN_END
from prompts.rubric import load_rubrics
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import DatasetError, OutputError
from tools.retrieval import CatalogIndex, open_index
from training.judge import SOUND, write_judge_examples
from training.judged import load_wordings, make_judged
from training.sft import read_examples
from training.view import training_view

HOUSEHOLDS = {"train": 6, "validation": 2, "test": 3}


@pytest.fixture(scope="module")
def index(journey: Dataset) -> CatalogIndex:
    return open_index(journey, open_embedder(PACKAGED_MODEL))


@pytest.fixture(scope="module")
def texts(journey: Dataset, index: CatalogIndex) -> list[JudgedText]:
    return list(make_judged(training_view(journey), index, HOUSEHOLDS, 7, lambda message: None))  # type: ignore[arg-type]


def of(texts: list[JudgedText], kind: str, *sources: str) -> list[JudgedText]:
    found = [text for text in texts if text.task.kind == kind and (not sources or text.source in sources)]
    assert found
    return found


def test_no_split_knows_another_ones_households(texts: list[JudgedText]) -> None:
    assert {text.split for text in texts} == {"train", "validation", "test"}
    assert all(text.split == split_of(text.task.user_id) for text in texts)


def test_no_split_knows_another_ones_wordings() -> None:
    def wordings(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        else:
            for part in value.values() if isinstance(value, dict) else value:  # type: ignore[attr-defined]
                yield from wordings(part)

    splits = load_wordings().model_dump(include={"train", "validation", "test"})
    for one, other in combinations(splits.values(), 2):
        assert not set(wordings(one)) & set(wordings(other))
    assert not set(load_wordings().orders) & set(load_injections())


def test_nothing_is_of_the_evaluation_weeks(texts: list[JudgedText]) -> None:
    assert all(datetime.fromisoformat(text.context.split("@")[1].split("/")[0]) < TRAIN_END for text in texts)


def test_grades_follow_the_labels_and_are_clear(texts: list[JudgedText]) -> None:
    for text in texts:
        assert (text.grade == "Bad") == ("negative" in text.labels.values())
        positive = list(text.labels.values()).count("positive")
        if text.grade in ("Superior", "Average"):
            assert len(text.labels) == (4 if text.task.kind == "tags" else 7)
            assert (text.grade == "Superior") == (positive >= 0.6 * len(text.labels))
            assert text.task.kind == "tags" or positive not in (4, 5)  # one label would decide
    for kind in ("tags", "explanations"):
        assert {text.grade for text in of(texts, kind)} >= {"Superior", "Average", "Bad"}


def test_all_evidence_is_in_the_facts_or_the_text(texts: list[JudgedText]) -> None:
    for text in texts:
        lines = set(quotes(text.task.facts, text.task.subject).values())
        for dimension, evidence in text.evidence.items():
            partly = text.task.kind == "explanations" and evidence in text.task.subject
            assert evidence in lines or partly, (text.id, dimension, evidence)


def test_faithful_texts_claim_nothing_that_is_not_there(texts: list[JudgedText]) -> None:
    for text in of(texts, "explanations", "faithful", "title"):
        assert not unfounded(text.task.claims), text.task.subject


def test_many_false_claims_are_found_by_code_too(texts: list[JudgedText]) -> None:
    wrong = of(texts, "explanations", "contradicted", "wrong_moment", "swapped")
    assert sum(bool(unfounded(text.task.claims)) for text in wrong) >= 0.6 * len(wrong)
    unlisted = [text for text in of(texts, "explanations", "contradicted") if not unfounded(text.task.claims)]
    assert unlisted  # and some only a reader finds


def test_swapped_tags_are_nothing_the_household_bought(texts: list[JudgedText]) -> None:
    for text in of(texts, "tags", "swapped"):
        history = " ".join(fact.text for fact in text.task.facts if fact.name == "history").casefold()
        assert text.task.subject not in history


def test_the_same_seed_makes_the_same_texts(journey: Dataset, index: CatalogIndex, texts: list[JudgedText]) -> None:
    again = list(make_judged(training_view(journey), index, {"validation": 2}, 7, lambda message: None))
    assert again == [text for text in texts if text.split == "validation"]


def test_examples_answer_with_ids_of_their_prompt_and_leave_the_test_out(
    texts: list[JudgedText], tmp_path: Path
) -> None:
    card = write_judge_examples(texts, tmp_path, 10, 7, "")
    table, _ = read_examples(tmp_path, "all")
    assert set(table["split"]) == {"train", "validation"}
    assert {split_of(user) for user in table["user_id"]} == {"train", "validation"}
    assert set(table["agent"]) == {"evaluator", "one_shot", "reviewer"}
    for row in table.filter(pl.col("agent") == "evaluator").iter_rows(named=True):
        answer = json.loads(row["answer"])
        assert f"\n{answer['evidence']}" in row["user"] and list(answer) == ["label", "evidence"]
    counts = card["labels"]
    assert isinstance(counts, dict)
    assert max(count for key, count in counts.items() if key.endswith(".negative")) <= 10
    assert 10 < max(counts.values()) <= 10 * SOUND
    assert min(counts.get(f"train.tags.Relevance.{label}", 0) for label in ("positive", "neutral", "negative")) > 0
    assert any("another evaluator" in text for text in table.filter(pl.col("agent") == "evaluator")["user"])
    assert any("Contradictions:" in text for text in table.filter(pl.col("agent") == "reviewer")["user"])
    ordered = table.filter(
        pl.any_horizontal(pl.col("user").str.contains(o, literal=True) for o in load_wordings().orders)
    )
    assert 0 < len(ordered) < len(table) / 2 and set(ordered["split"]) == {"train"}
    shown = table.filter(pl.col("agent") == "one_shot")["user"]
    assert len({text.index("\nf2 ") > text.index("\nf1 ") for text in shown}) == 2  # both orders


def test_a_line_that_is_no_judged_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(OutputError, match="line 1: expected a JudgedText"):
        read_judged(tmp_path / "texts.jsonl")
    with pytest.raises(DatasetError, match="recgpt judge data"):
        read_judged(tmp_path / "none.jsonl")


def test_every_dimension_has_every_label_somewhere(texts: list[JudgedText]) -> None:
    for kind in ("tags", "explanations"):
        for rubric in load_rubrics(kind):  # type: ignore[arg-type]
            if rubric.graded:
                assert any(text.labels.get(rubric.dimension) == "negative" for text in of(texts, kind)), (
                    rubric.dimension
                )
