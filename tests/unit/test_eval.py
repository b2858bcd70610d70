"""Splits, metrics and the comparison of arms, on the real data set and on values worked out by hand."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from agents.context import Context
from agents.schemas import ProposedTag
from eval.metrics import estimate, hit_rate_at_k
from eval.splits import TRAIN_END, VALIDATION_BASKET, Case, basket_cases
from eval.tags import TagRun, compare_arms, read_own_runs, run_cases, settings_of
from tests.conftest import AS_OF, tag_run
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import OutputError, ServerUnreachableError
from tools.retrieval import popular_leaves
from tools.shelf import tag_text

CASE = Case("u", AS_OF, frozenset({"Milk", "Bread", "Figs"}), frozenset({"Milk"}))


def test_cases_are_the_last_basket_but_one(journey: Dataset) -> None:
    cases = basket_cases(journey, VALIDATION_BASKET, 30, 7)
    assert [case.user_id for case in basket_cases(journey, VALIDATION_BASKET, 10, 7)] == [
        case.user_id for case in cases[:10]
    ]
    leaves = dict(journey.items.select("item_id", pl.col("category").list.last()).iter_rows())
    events = journey.events_before(journey.last_event + timedelta(days=1))
    for case in cases:
        own = events.filter(pl.col("user_id") == case.user_id, pl.col("action") == "purchase")
        starts = own.group_by("session_id").agg(pl.col("timestamp").min()).sort("timestamp", "session_id")
        session, start = starts.row(-2)
        assert case.as_of == start >= TRAIN_END
        assert case.target == {leaves[item] for item in own.filter(pl.col("session_id") == session)["item_id"]}
        assert {leaves[item] for item in journey.history(case.user_id, case.as_of)["item_id"]} >= case.bought


def test_hit_rate_counts_by_hand() -> None:
    assert hit_rate_at_k(["Bread", "Eggs", "Milk"], CASE, 2, new=False) == pytest.approx(1 / 3)
    assert hit_rate_at_k(["Milk", "Milk", "Bread"], CASE, 2, new=False) == pytest.approx(2 / 3)
    assert hit_rate_at_k(["Milk", "Bread"], CASE, 1, new=True) == pytest.approx(1 / 2)
    assert hit_rate_at_k(["Bread"], Case("u", AS_OF, frozenset({"Milk"}), frozenset({"Milk"})), 1, new=True) is None


def test_an_interval_holds_its_mean() -> None:
    result = estimate([0.0, 1.0] * 50)
    assert result.low < result.mean == 0.5 < result.high
    assert estimate([0.3]).low == 0.3


def test_arms_are_compared_on_the_same_households(journey: Dataset) -> None:
    cases = basket_cases(journey, VALIDATION_BASKET, 3, 7)
    oracle = [_run(case, sorted(case.target)) for case in cases]
    blind = [_run(case, ["white milk"]) for case in cases[:2]]
    figures = compare_arms({"oracle": oracle, "blind": blind}, journey, open_embedder(PACKAGED_MODEL))
    assert figures["oracle"]["hr@30.all"].n == figures["popularity"]["hr@30.all"].n == 2
    assert figures["oracle"]["hr@30.all"].mean > 0.9
    assert figures["oracle"]["named_leaf"].mean == 1
    assert figures["blind"]["distinct_tags"].mean == 1
    with pytest.raises(OutputError, match="no household in common"):
        compare_arms({"a": oracle[:1], "b": oracle[1:]}, journey, open_embedder(PACKAGED_MODEL))


def test_popularity_counts_the_four_weeks_before_the_day(journey: Dataset) -> None:
    past = journey.with_events(journey.events_before(AS_OF))
    assert popular_leaves(journey, AS_OF) == popular_leaves(past, AS_OF)


async def test_a_server_that_is_gone_ends_the_run_and_is_no_households_failure(small_dir: Path) -> None:
    context = Context(dataset=small_dir, base_url="http://127.0.0.1:9/v1", model="gone")
    written: list[TagRun] = []
    with pytest.raises(ServerUnreachableError, match="Finished households are kept"):
        await run_cases(context, [Case("h1", AS_OF, frozenset({"Milk"}), frozenset())], 1, written.append)
    assert written == []


def test_a_file_is_continued_with_its_own_settings_only(tmp_path: Path, small_dir: Path) -> None:
    context = Context(dataset=small_dir, shelf=0, base_url="http://127.0.0.1:9/v1")
    file = tmp_path / "arm.jsonl"
    assert read_own_runs(file, context) == []
    run = _run(CASE, ["Milk"]).model_copy(update={"settings": settings_of(context)})
    file.write_text(run.model_dump_json() + "\n", encoding="utf-8")
    elsewhere = context.model_copy(update={"base_url": "http://127.0.0.1:8/v1"})
    assert read_own_runs(file, elsewhere) == [run]
    with pytest.raises(OutputError, match=r"other settings \(ranker, shelf, towers differ\).*give another --out"):
        read_own_runs(file, context.model_copy(update={"shelf": 20}))
    shelved = context.model_copy(update={"shelf": 20})
    without = shelved.model_copy(update={"towers": tmp_path})
    assert settings_of(shelved) == settings_of(without) | {"towers": settings_of(shelved)["towers"]}
    assert settings_of(without)["towers"] is None  # shelves were filled without them


def _run(case: Case, leaves: list[str]) -> TagRun:
    return tag_run(case, pool=[ProposedTag(tag=tag_text(leaf), persona="p") for leaf in leaves])
