"""The ranker: what its features say, what a tag is worth, what the channels propose, and what is refused."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from agents.schemas import Tag
from eval.baskets import read_level
from eval.splits import SEED, TEST_BASKET, VALIDATION_BASKET, Case, basket_cases
from eval.tags import TagRun
from tests.conftest import AS_OF, tag_run
from tools import purchases
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import DatasetError, ModelFilesError
from tools.occasions import no_occasions
from tools.purchases import (
    decayed_baskets,
    lift_of_times,
    likely_besides,
    neighbours,
    peers,
    row_of,
    times_of_week,
)
from tools.ranker import (
    FEATURES,
    LONGEST_OVERDUE,
    LeafTable,
    Network,
    Ranker,
    UtilityChannel,
    candidates,
    load_ranker,
    read_leaf_table,
    save_ranker,
)
from tools.retrieval import leaf_paths
from tools.towers import TOWERS, open_towers
from training.ranker import SETTLING_DAYS, RankerRecipe, Rows, choose_tag_bonus, cut_points, fit, listwise


def feature(table: LeafTable, leaf: str, name: str) -> float:
    return float(table.features[table.row[leaf], FEATURES.index(name)])


def test_features_tell_habit_demand_and_towers(small: Dataset) -> None:
    table = read_leaf_table(small, "h1", AS_OF, {"White Milk": 2.0, "Dish Soap": 1.0}, no_occasions(small))
    assert set(table.leaves) >= {"White Milk", "Canned Pumpkin"}  # what nobody bought yet is there too
    assert table.bought[table.row["White Milk"]] and not table.bought[table.row["Frozen Pizza"]]
    assert feature(table, "White Milk", "days_bought") == pytest.approx(np.log1p(4))
    assert feature(table, "White Milk", "has_rhythm") == 1
    since = (AS_OF - datetime(2017, 10, 22, 18)).total_seconds() / 86_400
    assert feature(table, "White Milk", "since_over_rhythm") == pytest.approx(min(since / 7, LONGEST_OVERDUE), rel=1e-3)
    assert feature(table, "Infant Formula", "since_over_rhythm") == 0  # one purchase is no rhythm
    assert feature(table, "Frozen Pizza", "buyers_28_days") == pytest.approx(np.log1p(1))
    assert feature(table, "Frozen Pizza", "rise_7_days") == pytest.approx(np.log(3 / 2.25))  # all of four weeks in one
    assert feature(table, "White Milk", "towers") > feature(table, "Dish Soap", "towers")
    assert feature(table, "Dish Soap", "towers") == feature(table, "Frozen Pizza", "towers")  # no score: the lowest
    assert np.isfinite(table.features).all()


def test_without_towers_their_column_says_nothing(small: Dataset) -> None:
    table = read_leaf_table(small, "h1", AS_OF, {}, no_occasions(small))
    assert (table.features[:, FEATURES.index("towers")] == 0).all()


def test_channels_propose_in_order_and_each_leaf_once(small: Dataset) -> None:
    table = read_leaf_table(small, "h1", AS_OF, {}, no_occasions(small))
    found = candidates(table, ["Frozen Pizza", "White Milk"], {"Dish Soap": 1.0, "Baby Diapers": 3.0})
    assert found["Frozen Pizza"] == found["White Milk"] == "cognitive"
    assert found["Baby Diapers"] == found["White Bread"] == "habit"
    assert found["Dish Soap"] == "towers"


def test_a_tag_adds_its_bonus_to_the_logit(small: Dataset) -> None:
    torch.manual_seed(0)
    table = read_leaf_table(small, "h1", AS_OF, {}, no_occasions(small))
    ranker = Ranker(Network().eval(), tag_bonus=0.7)
    without, tagged = (-np.log1p(-ranker.chances(table, tags)) for tags in ([], ["Dish Soap"]))
    assert without.sum() == pytest.approx(table.basket, rel=1e-4)  # a basket's expected leaves
    logit = np.log(tagged / without)
    gain = logit[table.row["Dish Soap"]] - np.delete(logit, table.row["Dish Soap"])
    assert gain == pytest.approx(np.full(len(gain), 0.7), abs=1e-3)


def test_it_learns_which_feature_tells() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 20, len(FEATURES))).astype(np.float32)
    shares = np.exp(2 * features[..., 2])
    shares /= shares.sum(axis=1, keepdims=True)
    labels = np.stack([np.isin(np.arange(20), rng.choice(20, 3, replace=False, p=own)) for own in shares])
    rows = Rows(features.reshape(-1, len(FEATURES)), labels.ravel(), np.ones(8000, dtype=np.float32), np.full(400, 20))
    network = fit(rows, RankerRecipe(batch=16, epochs=8, learning_rate=1e-2), lambda message: None)
    with torch.inference_mode():
        logits = network(torch.from_numpy(rows.features)).numpy()
    assert np.corrcoef(logits, rows.features[:, 2])[0, 1] > 0.8


def test_the_listwise_loss_counts_what_each_leaf_stands_for() -> None:
    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), torch.tensor([True, False, False])
    loss = listwise(logits, labels, torch.tensor([1.0, 4.0, 1.0]))
    assert loss.tolist() == pytest.approx([np.log(np.e + 4 + np.e**2) - 1, np.log(6)], rel=1e-6)


def test_a_saved_ranker_comes_back_or_is_refused(small: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ranker = Ranker(Network().eval(), tag_bonus=0.5)
    save_ranker(ranker, tmp_path, {"command": "test"})
    table = read_leaf_table(small, "h1", AS_OF, {}, no_occasions(small))
    again = load_ranker(tmp_path)
    assert again.tag_bonus == 0.5
    assert np.array_equal(again.chances(table, []), ranker.chances(table, []))
    other = tmp_path / "other"
    save_ranker(ranker, other, {})
    card = other / "card.json"
    card.write_text(card.read_text().replace("days_bought", "moon_phase"))
    with pytest.raises(ModelFilesError, match=r"moon_phase.*recgpt train ranker"):
        load_ranker(other)


def test_what_a_tag_is_worth_is_chosen_on_validation_baskets(journey: Dataset) -> None:
    torch.manual_seed(0)
    towers = open_towers(journey, open_embedder(PACKAGED_MODEL), TOWERS)
    utility = UtilityChannel(Ranker(Network().eval(), 0.0), towers, no_occasions(journey))
    cases = basket_cases(journey, VALIDATION_BASKET, 4, SEED)
    path_of = {path[-1]: path for path in leaf_paths(journey)}
    runs = [tagged_run(case, [path_of[leaf] for leaf in sorted(case.target)]) for case in cases]
    chosen, values = choose_tag_bonus(utility, journey, runs)
    assert chosen.ranker.tag_bonus > 0  # the tags name what was bought
    assert values[str(chosen.ranker.tag_bonus)] == max(values.values()) > values["0.0"]
    none, nothing = choose_tag_bonus(utility, journey, [])
    assert none.ranker.tag_bonus == 0 and nothing == {}
    tested = basket_cases(journey, TEST_BASKET, 1, SEED)[0]
    with pytest.raises(DatasetError, match="no validation basket"):
        choose_tag_bonus(chosen, journey, [tagged_run(tested, [])])


def tagged_run(case: Case, paths: list[list[str]]) -> TagRun:
    tags = [
        Tag(tag=path[-1], persona="p", category=path, score=1, reason="r", source="model", proposed=path[-1])
        for path in paths
    ]
    return tag_run(case, tags=tags)


def test_the_ranker_learns_on_the_last_training_baskets_and_on_earlier_ones(journey: Dataset) -> None:
    data = read_level(journey, "leaf")
    training = data.training()
    cuts = cut_points(data, RankerRecipe(baskets=3, earlier=2))
    assert cuts == sorted(cuts, key=lambda cut: cut[1])
    for user, own in list(training.items())[:40]:
        chosen = [(as_of, target) for one, as_of, target in cuts if one == user]
        last = {moment for moment in own.starts[-3:].tolist() if moment > own.starts[0].item()}
        earlier = {as_of for as_of, _ in chosen} - last
        assert {as_of for as_of, _ in chosen} >= last and len(earlier) <= 2
        assert all(as_of.date() >= data.daily.first_day.item() + timedelta(days=SETTLING_DAYS) for as_of in earlier)
        for as_of, target in chosen:
            assert target == {data.entities[e] for e in own.contents[own.starts.tolist().index(as_of)]}
    assert any(len([cut for cut in cuts if cut[0] == user]) == 5 for user in training)


def test_ease_expects_what_is_bought_besides(journey: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    near, besides = neighbours(journey, AS_OF), likely_besides(journey, AS_OF)
    assert besides.shape == (len(near.leaves),) * 2 and not besides.diagonal().any()
    assert near.leaves[int(besides[near.row["Baby Diapers"]].argmax())] == "Baby Wipes"
    monkeypatch.setattr(purchases, "EASE_LEAVES", 10)
    few = likely_besides(journey.with_events(journey.events_before(AS_OF)), AS_OF)
    assert set(np.flatnonzero(few.any(axis=1))) == set(np.argsort(-near.bought, kind="stable")[:10])


def test_before_the_first_purchase_ease_knows_nothing(journey: Dataset) -> None:
    assert likely_besides(journey, datetime(2016, 1, 1)).shape == (0, 0)


def test_peers_tell_what_households_buy_that_buy_alike(journey: Dataset) -> None:
    near, found = neighbours(journey, AS_OF), peers(journey, AS_OF)
    taste = row_of(near, {"Baby Diapers": 3.0, "Baby Wipes": 2.0})
    lately, first, ever = found.buy("nobody", taste)
    assert {near.leaves[leaf] for leaf in np.argsort(-ever)[:200]} > {"Baby Diapers", "Baby Wipes"}
    assert ever[near.row["Baby Diapers"]] > 3 * near.bought[near.row["Baby Diapers"]] / len(found.row)
    assert (first <= lately + 1e-6).all() and (lately <= ever + 1e-6).all() and ever.max() <= 1 + 1e-6
    assert not found.buy("nobody", row_of(near, {})).any()


def test_a_household_is_none_of_its_own_peers(small: Dataset) -> None:
    near, found = neighbours(small, AS_OF), peers(small, AS_OF)
    own = row_of(near, decayed_baskets(small, "h1", AS_OF))
    assert found.buy("somebody else", own)[2][near.row["White Milk"]] > 0
    assert found.buy("h1", own)[2][near.row["White Milk"]] == 0  # nobody else buys it there


def test_times_of_the_week_are_eight(journey: Dataset) -> None:
    hours = pl.Series([datetime(2017, 11, 17, 10, 59), datetime(2017, 11, 17, 11), datetime(2017, 11, 19, 23)])
    assert times_of_week(hours).tolist() == [0, 1, 7]
    lift, near = lift_of_times(journey, AS_OF), neighbours(journey, AS_OF)
    assert lift.shape == (8, len(near.leaves)) and np.isfinite(lift).all()
    shares = near.bought / near.bought.sum()
    assert abs(float((lift @ shares).mean())) < 0.2
