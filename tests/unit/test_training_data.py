"""Training data on the real data set: nothing from the future, valid by the run-time schemas, half of it new."""

import json
import re
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from agents.schemas import TagList
from tools.dataset import Dataset
from tools.datasets.completejourney import names
from training.data import HELD_OUT_BASKETS, HORIZON, TRAIN_END, Settings, tag_text, training_view, write_training_data
from training.explanations import load_phrases
from training.needs import load_needs

USERS = 25


@pytest.fixture(scope="module")
def examples(journey_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    out = tmp_path_factory.mktemp("examples")
    write_training_data(journey_dir, out, Settings(), USERS, lambda message: None)
    return pl.read_parquet(out / "examples.parquet")


def test_every_category_has_one_need() -> None:
    assert load_needs().by_category().keys() == set(names("categories").values())


def test_the_view_has_no_way_to_the_held_out_events(journey: Dataset) -> None:
    view = training_view(journey)
    ahead = journey.last_event + timedelta(days=1)
    seen = view.events_before(ahead)
    assert seen["timestamp"].max() < TRAIN_END
    everything = journey.events_before(ahead)
    for user_id in everything["user_id"].unique().sort().sample(40, seed=1):
        own = everything.filter(pl.col("user_id") == user_id).group_by("session_id").agg(pl.col("timestamp").min())
        last = set(own.sort("timestamp")["session_id"].tail(HELD_OUT_BASKETS))
        assert last.isdisjoint(seen.filter(pl.col("user_id") == user_id)["session_id"])


def test_no_example_is_of_the_evaluation_weeks(examples: pl.DataFrame) -> None:
    assert examples["as_of"].max() <= TRAIN_END - HORIZON  # type: ignore[operator]


def test_targets_were_bought_after_the_cut_and_prompts_know_only_what_was_before(
    examples: pl.DataFrame, journey: Dataset
) -> None:
    view = training_view(journey)
    leaf_of = dict(view.items.select("item_id", pl.col("category").list.last()).iter_rows())
    for row in examples.filter(pl.col("agent") == "arbiter").head(20).iter_rows(named=True):
        events = view.events_before(row["as_of"] + HORIZON, since=row["as_of"])
        bought = {tag_text(leaf_of[item]) for item in events.filter(pl.col("user_id") == row["user_id"])["item_id"]}
        picks = {pick["tag"] for pick in json.loads(row["answer"])["picks"]}
        assert picks <= bought
    for row in examples.filter(pl.col("agent") == "planner").head(20).iter_rows(named=True):
        own = view.events_before(row["as_of"]).filter(pl.col("user_id") == row["user_id"])
        titles = set(view.items.filter(pl.col("item_id").is_in(own["item_id"].to_list()))["title"])
        shown = re.findall(r"^h\d+: (.+) \(bought", row["user"], re.M)
        assert shown
        assert set(shown) <= titles


def test_half_of_what_experts_are_asked_for_is_new(examples: pl.DataFrame) -> None:
    experts = examples.filter(pl.col("agent") == "expert")
    share = experts["new_targets"].sum() / experts["targets"].sum()
    assert 0.35 < share < 0.65
    tags = [TagList.model_validate_json(answer).tags for answer in experts["answer"]]
    assert all(len(set(row)) == 15 for row in tags)
    leaves = {tag_text(leaf) for leaf in names("product_types").values()}
    assert {tag for row in tags for tag in row} <= leaves


def test_texts_vary_in_build_and_name_their_item(examples: pl.DataFrame) -> None:
    rows = examples.filter(pl.col("agent") == "explainer")
    texts = [json.loads(answer)["text"] for answer in rows["answer"]]
    assert len(set(texts)) > 0.9 * len(texts)
    for text, prompt in zip(texts, rows["user"], strict=True):
        shelf = re.search(r"^Shelf: .* > (.+)$", prompt, re.M)
        assert shelf is not None
        assert shelf[1].lower() in text.lower()
        for number in re.findall(r"(\d+) times", text):
            assert f"{number}x" in prompt
        for ahead in re.findall(r"in \d+ days", text):
            assert ahead in prompt
    builds = [text for device in load_phrases().rhetoric.values() for texts in device.values() for text in texts]
    assert len(set(builds)) == len(builds) > 60


def test_the_same_seed_gives_the_same_bytes(journey_dir: Path, tmp_path: Path) -> None:
    cards = [
        write_training_data(journey_dir, tmp_path / name, Settings(seed=seed), 4, lambda message: None)
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    assert cards[0] == cards[1]
    assert cards[0]["sha256"] != cards[2]["sha256"]
