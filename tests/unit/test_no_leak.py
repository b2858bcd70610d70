"""The one guarantee of the evaluation: what lies at or after a household's cut reaches nothing that answers for it.

Everything that any part derives for a household is computed on the data set, and again on one whose future is another:
what is sold in it, to whom, and how much. Both must be equal to the last digit.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.baselines import KnnSettings, Own, Popularity, Recommender, TifuKnn, TifuSettings, ease, item_knn
from eval.baskets import LEVELS, LevelData, Situation, read_level
from eval.splits import HELD_OUT_BASKETS, TRAIN_END, Case, evaluation_cases, week_cases
from tools.dataset import Dataset
from tools.history import read_days, read_events, read_history
from tools.occasions import no_occasions
from tools.purchases import own_leaves
from tools.ranker import RANKER, leaf_chances, load_ranker, read_leaf_table
from tools.retrieval import best_sellers, popular_items, popular_leaves
from tools.shelf import fill_shelves
from tools.signals import read_signals
from tools.towers import Towers, TowerShape, index_catalogue, tower_scores
from training.ranker import RankerRecipe, cut_points
from training.view import training_view

HOUSEHOLDS = 120
END = datetime(2018, 2, 1)
Reader = Callable[[Dataset, Case], Any]


@pytest.fixture(scope="module")
def few(journey: Dataset) -> Dataset:
    """The real data set with some of its households, those of the evaluation among them."""
    users = [case.user_id for case in evaluation_cases(journey, HOUSEHOLDS)]
    return journey.with_events(journey.events_before(END).filter(pl.col("user_id").is_in(users)))


def another_future(dataset: Dataset, known: pl.Expr, seed: int) -> Dataset:
    """The data set with other events where `known` is false: other items, and a third of them gone."""
    events = dataset.events_before(END)
    past, future = events.filter(known), events.filter(~known)
    items = dataset.items["item_id"].sample(future.height, with_replacement=True, seed=seed)
    kept = np.random.default_rng(seed).random(future.height) > 1 / 3
    return dataset.with_events(pl.concat([past, future.with_columns(item_id=items).filter(kept)]))


def midnight(case: Case) -> datetime:
    return datetime.combine(case.as_of.date(), datetime.min.time())


def shelves(dataset: Dataset, case: Case) -> Any:
    leaves = own_leaves(dataset, case.user_id, case.as_of)["leaf"].to_list()
    chances = leaf_chances(load_ranker(RANKER), dataset, case.user_id, case.as_of, {}, no_occasions(dataset))
    return fill_shelves(dataset, case.user_id, case.as_of, [leaves[:4], leaves[4:8]], 20, chances)


def leaf_features(dataset: Dataset, case: Case) -> Any:
    return read_leaf_table(dataset, case.user_id, case.as_of, {}, no_occasions(dataset)).features.tolist()


def categories(dataset: Dataset) -> LevelData:
    return read_level(dataset, "category")


def situation(dataset: Dataset, case: Case) -> Situation:
    return Situation(case.user_id, case.as_of, categories(dataset).households[case.user_id].before(case.as_of))


def scores_of_towers(dataset: Dataset, case: Case) -> Any:
    torch.manual_seed(0)
    titles = dataset.items["title"].n_unique()
    texts = np.random.default_rng(0).normal(size=(titles, 8)).astype(np.float32)
    index = index_catalogue(Towers(TowerShape(text=8)), dataset, texts)
    return tower_scores(index, dataset, case.user_id, case.as_of)


def by_counts(model: Recommender, dataset: Dataset, case: Case) -> Any:
    return model.score(situation(dataset, case)).tolist()


READERS: dict[str, Reader] = {
    "the planner's history": lambda dataset, case: read_history(dataset, case.user_id, case.as_of),
    "the planner's days": lambda dataset, case: read_days(dataset, case.user_id, case.as_of),
    "the routes' history": lambda dataset, case: read_events(dataset, case.user_id, case.as_of),
    "signals and trends": lambda dataset, case: read_signals(dataset, case.user_id, case.as_of),
    "shelves": shelves,
    "popular items": lambda dataset, case: popular_items(dataset, midnight(case), 30),
    "popular leaves": lambda dataset, case: popular_leaves(dataset, midnight(case)),
    "the item that stands for a title": lambda dataset, case: best_sellers(dataset, midnight(case)),
    "the towers' scores": scores_of_towers,
    "the ranker's features": leaf_features,
    "popularity": lambda dataset, case: by_counts(Popularity(categories(dataset).daily, 28), dataset, case),
    "own purchases": lambda dataset, case: by_counts(Own(categories(dataset).daily, 30.0), dataset, case),
}


def leaks(read: Reader, dataset: Dataset, case: Case, seed: int) -> bool:
    """Whether what is read for a case depends on what lies at or after its moment."""
    other = another_future(dataset, pl.col("timestamp") < case.as_of, seed)
    return bool(read(dataset, case) != read(other, case))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, HOUSEHOLDS - 1), seed=st.integers(0, 1000))
def test_no_reader_sees_the_future(name: str, few: Dataset, number: int, seed: int) -> None:
    case = evaluation_cases(few, HOUSEHOLDS)[number]
    assert not leaks(READERS[name], few, case, seed)


def test_a_target_basket_in_the_history_is_caught(few: Dataset) -> None:
    def planted(dataset: Dataset, case: Case) -> Any:
        return read_history(dataset, case.user_id, case.as_of + timedelta(seconds=1))

    assert leaks(planted, few, evaluation_cases(few, 1)[0], 7)


def test_the_target_is_not_among_what_is_known(few: Dataset) -> None:
    for case in [*evaluation_cases(few, 20), *week_cases(few, TRAIN_END, 20)]:
        bought = few.history(case.user_id, case.as_of)
        assert bought["timestamp"].max() < case.as_of  # type: ignore[operator]
        leaves = few.items.filter(pl.col("item_id").is_in(bought["item_id"].implode()))["category"].list.last()
        assert case.bought == set(leaves)


def fitted(dataset: Dataset) -> dict[str, Any]:
    """Everything that is fitted, as numbers."""
    data = categories(dataset)
    train, size = data.training(), len(data.entities)
    seen = situation(dataset, evaluation_cases(dataset, 1)[0])
    models = {
        "item-kNN": item_knn(train, size, KnnSettings(20, 5.0)),
        "EASE": ease(train, size, 100.0),
        "TIFU-kNN": TifuKnn(train, size, TifuSettings(7, 0.9, 0.7, 30, 0.7)),
    }
    view = training_view(dataset).events_before(END)
    return {
        **{name: model.score(seen).tolist() for name, model in models.items()},
        "training windows": [
            [content.tolist() for content in own.contents]
            for level in LEVELS
            for own in read_level(dataset, level).training().values()
        ],
        "what agents are trained on": view.sort("user_id", "timestamp", "item_id").rows(),
        "what the ranker is trained on": cut_points(read_level(dataset, "leaf"), RankerRecipe(baskets=3, earlier=3)),
    }


def test_nothing_is_fitted_on_held_out_baskets_or_the_weeks(few: Dataset) -> None:
    case = evaluation_cases(few, 1)[0]
    from_the_end = pl.col("timestamp").rank("dense", descending=True).over("user_id")
    trained = (pl.col("timestamp") < TRAIN_END) & (from_the_end > HELD_OUT_BASKETS)
    asked = (pl.col("user_id") == case.user_id) & (pl.col("timestamp") < case.as_of)
    events = few.events_before(END)
    other = pl.Series(np.random.default_rng(7).choice(few.items["item_id"].to_numpy(), events.height))
    changed = events.with_columns(item_id=pl.when(trained | asked).then("item_id").otherwise(other))
    assert (changed["item_id"] != events["item_id"]).sum() > 1000
    first, second = fitted(few), fitted(few.with_events(changed))
    assert [name for name in first if first[name] != second[name]] == []
