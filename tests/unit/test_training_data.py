"""Training data on the real data set: nothing from the future, valid by the run-time schemas."""

import json
import re
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from agents.schemas import TagList
from eval.splits import HELD_OUT_BASKETS, TRAIN_END
from tools.dataset import Dataset
from tools.datasets.completejourney import names
from tools.shelf import tag_text
from training.data import entities_of, write_training_data
from training.examples import HORIZON, Settings
from training.explanations import load_phrases
from training.mixture import load_mixture, load_neutral
from training.needs import load_needs
from training.view import training_view

pytestmark = pytest.mark.timeout(400)
"""The examples of all tests are made in the first one's time, co-purchases of each week included."""

USERS = 8
MIXTURE = load_mixture().model_copy(update={"general": 0.0})
"""Without the base model's answers: they need the model and minutes."""
COMMON = MIXTURE.model_copy(update={"experts": {"behaviour": 1.0}})
"""Without kinds that few cut points have."""


@pytest.fixture(scope="module")
def examples(journey_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    out = tmp_path_factory.mktemp("examples")
    write_training_data(journey_dir, out, Settings(), MIXTURE, USERS, lambda message: None)
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
    of_households = examples.filter(pl.col("user_id") != "")
    assert of_households["as_of"].max() <= TRAIN_END - HORIZON  # type: ignore[operator]


def test_targets_were_bought_after_the_cut_and_prompts_know_only_what_was_before(
    examples: pl.DataFrame, journey: Dataset
) -> None:
    view = training_view(journey)
    leaf_of = dict(view.items.select("item_id", pl.col("category").list.last()).iter_rows())
    for row in examples.filter(pl.col("agent") == "arbiter", ~pl.col("hybrid")).head(20).iter_rows(named=True):
        events = view.events_before(row["as_of"] + HORIZON, since=row["as_of"])
        bought = {tag_text(leaf_of[item]) for item in events.filter(pl.col("user_id") == row["user_id"])["item_id"]}
        picks = [pick["tag"] for pick in json.loads(row["answer"])["picks"]]
        pool = re.findall(r"^- (.+) \[.+\]$", row["user"], re.M)
        assert set(picks) <= set(pool)
        assert set(pool) & bought <= set(picks) or set(picks) <= bought  # what was bought is picked before all else
        assert picks == [tag for tag in pool if tag in picks]
        assert row["targets"] == len(set(picks) & bought)
    for row in examples.filter(pl.col("agent") == "planner", ~pl.col("hybrid")).head(20).iter_rows(named=True):
        own = view.events_before(row["as_of"]).filter(pl.col("user_id") == row["user_id"])
        titles = set(view.items.filter(pl.col("item_id").is_in(own["item_id"].to_list()))["title"])
        shown = re.findall(r"^h\d+: (.+) \(bought", row["user"], re.M)
        assert shown
        assert set(shown) <= titles


def test_experts_keep_the_order_of_their_shelf_and_pass_over_what_is_new_and_not_bought(examples: pl.DataFrame) -> None:
    experts = examples.filter(pl.col("agent") == "expert")
    leaves = {tag_text(leaf) for leaf in names("product_types").values()}
    with_shelf = 0
    for row in experts.iter_rows(named=True):
        tags = TagList.model_validate_json(row["answer"]).tags
        assert len(set(tags)) == len(tags) == 20
        assert set(tags) <= leaves
        shelf = re.findall(r"^- (.+) \((due again|bought before|rising|new)\)$", row["user"], re.M)
        if not shelf:
            continue
        with_shelf += 1
        order = [tag for tag, _ in shelf]
        assert tags == [tag for tag in order if tag in tags]
        assert all(why in ("rising", "new") for tag, why in shelf if tag not in tags)
        assert not (set(order) - set(tags)) & set(row["bought"])
        assert row["targets"] == len(set(tags) & set(row["bought"]))
        assert row["new_targets"] == len(set(tags) & set(row["new"]))
        assert row["shelf"] == len(order)
    assert 0.3 < with_shelf / len(experts) < 0.7
    assert (experts.filter(pl.col("shelf") == 0)["bought"].list.len() > 0).all()


def test_planner_and_arbiter_have_each_prompt_as_text_and_with_entities(examples: pl.DataFrame) -> None:
    for agent in ("planner", "arbiter"):
        own = examples.filter(pl.col("agent") == agent)
        answers = [set(own.filter(pl.col("hybrid") == hybrid)["answer"]) for hybrid in (False, True)]
        assert answers[0] == answers[1]
    entities = [name for user in examples.filter("hybrid")["user"] for name in entities_of(user)]
    assert len(entities) > 100


def test_texts_vary_in_build_and_name_their_item(examples: pl.DataFrame) -> None:
    rows = examples.filter(pl.col("agent") == "explainer", pl.col("kind") == "behaviour")
    texts = [json.loads(answer)["text"] for answer in rows["answer"]]
    assert len(set(texts)) > 0.9 * len(texts)
    for text, prompt in zip(texts, rows["user"], strict=True):
        shelf = re.search(r"^Shelf: .* > (.+)$", prompt, re.M)
        assert shelf is not None
        assert shelf[1].lower() in text.lower()
        for number in re.findall(r"(\d+) times", text):
            assert f"The item so far: bought {number}x" in prompt
        for ahead in re.findall(r"in \d+ days", text):
            assert ahead in prompt
    builds = [text for device in load_phrases().rhetoric.values() for texts in device.values() for text in texts]
    assert len(set(builds)) == len(builds) > 60


def test_the_same_seed_gives_the_same_bytes(journey_dir: Path, tmp_path: Path) -> None:
    cards = [
        write_training_data(
            journey_dir, tmp_path / name, Settings(seed, cuts_per_user=1), MIXTURE, 3, lambda message: None
        )
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    assert cards[0] == cards[1]
    assert cards[0]["sha256"] != cards[2]["sha256"]


def test_shares_are_those_of_the_mixture() -> None:
    quota = load_mixture().quota(900, frozenset(["weather"]))
    experts = {kind: count for (agent, kind), count in quota.items() if agent == "expert"}
    assert experts.keys() == {"behaviour", "trending", "situational"}
    assert sum(experts.values()) == pytest.approx(900, abs=2)
    assert experts["behaviour"] / experts["trending"] == pytest.approx(32.17 / 6.97, rel=0.02)
    general = quota["general", "general"]
    assert general / 900 == pytest.approx(6 / 47.69, rel=0.02)


def test_neutral_prompts_are_many_and_have_nothing_of_a_shop() -> None:
    neutral = load_neutral()
    prompts = {form.format(topic=topic) for form in neutral.forms for topic in neutral.topics}
    assert len(prompts) == len(neutral.forms) * len(neutral.topics) >= 1000
    assert not [prompt for prompt in prompts if re.search(r"household|persona|tag|recommend", prompt)]


def test_a_quota_is_filled_and_not_more(journey_dir: Path, tmp_path: Path) -> None:
    card = write_training_data(journey_dir, tmp_path, Settings(experts=20), COMMON, None, lambda message: None)
    examples = card["examples"]
    assert isinstance(examples, dict)
    train = {key: count for key, count in examples.items() if key.endswith("train")}
    assert sum(count for key, count in train.items() if key.startswith("expert")) == pytest.approx(20, abs=1)
    assert train["planner.behaviour.train"] == train["planner.hybrid.train"] == 8
