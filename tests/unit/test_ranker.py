"""The ranker: what its features say, what a tag is worth, what the channels propose, and what is refused."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import AS_OF
from tools.dataset import Dataset
from tools.errors import ModelFilesError
from tools.ranker import (
    FEATURES,
    LONGEST_OVERDUE,
    LeafTable,
    Network,
    Ranker,
    candidates,
    load_ranker,
    read_leaf_table,
    save_ranker,
)
from training.ranker import RankerRecipe, Rows, fit


def feature(table: LeafTable, leaf: str, name: str) -> float:
    return float(table.features[table.row[leaf], FEATURES.index(name)])


def test_features_tell_habit_demand_and_towers(small: Dataset) -> None:
    table = read_leaf_table(small, "h1", AS_OF, {"White Milk": 2.0, "Dish Soap": 1.0})
    assert set(table.leaves) >= {"White Milk", "Canned Pumpkin"}  # what nobody bought yet is there too
    assert table.bought[table.row["White Milk"]] and not table.bought[table.row["Frozen Pizza"]]
    assert feature(table, "White Milk", "days_bought") == pytest.approx(np.log1p(4))
    assert feature(table, "White Milk", "has_rhythm") == 1
    since = (AS_OF - datetime(2017, 10, 22, 18)).total_seconds() / 86_400
    assert feature(table, "White Milk", "since_over_rhythm") == pytest.approx(min(since / 7, LONGEST_OVERDUE), rel=1e-3)
    assert feature(table, "Infant Formula", "since_over_rhythm") == 0  # one purchase is no rhythm
    assert feature(table, "Frozen Pizza", "buyers_28_days") == pytest.approx(np.log1p(1))
    assert feature(table, "White Milk", "towers") > feature(table, "Dish Soap", "towers")
    assert feature(table, "Dish Soap", "towers") == feature(table, "Frozen Pizza", "towers")  # no score: the lowest
    assert np.isfinite(table.features).all()


def test_without_towers_their_column_says_nothing(small: Dataset) -> None:
    table = read_leaf_table(small, "h1", AS_OF, {})
    assert (table.features[:, FEATURES.index("towers")] == 0).all()


def test_channels_propose_in_order_and_each_leaf_once(small: Dataset) -> None:
    table = read_leaf_table(small, "h1", AS_OF, {})
    found = candidates(table, ["Frozen Pizza", "White Milk"], {"Dish Soap": 1.0, "Baby Diapers": 3.0})
    assert found["Frozen Pizza"] == found["White Milk"] == "cognitive"
    assert found["Baby Diapers"] == found["White Bread"] == "habit"
    assert found["Dish Soap"] == "towers"


def test_a_tag_adds_its_bonus_to_the_logit(small: Dataset) -> None:
    torch.manual_seed(0)
    table = read_leaf_table(small, "h1", AS_OF, {})
    ranker = Ranker(Network().eval(), tag_bonus=0.7)
    without, tagged = ranker.probabilities(table, []), ranker.probabilities(table, ["Dish Soap"])
    logit = np.log(tagged / (1 - tagged)) - np.log(without / (1 - without))
    assert logit[table.row["Dish Soap"]] == pytest.approx(0.7, abs=1e-4)
    assert np.abs(np.delete(logit, table.row["Dish Soap"])).max() < 1e-4


def test_it_learns_which_feature_tells() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, len(FEATURES))).astype(np.float32)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-3 * features[:, 2] + 2))).astype(np.float32)
    rows = Rows(features, labels, np.ones(4000, dtype=np.float32))
    network = fit(rows, RankerRecipe(batch=256, epochs=8, learning_rate=1e-2), lambda message: None)
    with torch.inference_mode():
        chances = torch.sigmoid(network(torch.from_numpy(features))).numpy()
    assert np.corrcoef(chances, features[:, 2])[0, 1] > 0.8
    assert chances.mean() == pytest.approx(labels.mean(), abs=0.03)  # probabilities, not only an order


def test_a_saved_ranker_comes_back_or_is_refused(small: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ranker = Ranker(Network().eval(), tag_bonus=0.5)
    save_ranker(ranker, tmp_path, {"command": "test"})
    table = read_leaf_table(small, "h1", AS_OF, {})
    again = load_ranker(tmp_path)
    assert again.tag_bonus == 0.5
    assert np.array_equal(again.probabilities(table, []), ranker.probabilities(table, []))
    other = tmp_path / "other"
    save_ranker(ranker, other, {})
    card = other / "card.json"
    card.write_text(card.read_text().replace("days_bought", "moon_phase"))
    with pytest.raises(ModelFilesError, match=r"moon_phase.*recgpt train ranker"):
        load_ranker(other)
