"""Baselines on numbers worked out by hand, and what they may see."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from eval.baselines import KnnSettings, Own, Popularity, TifuKnn, TifuSettings, choose, ease, item_knn, purchases
from eval.baskets import Baskets, DailyCounts, Situation, Training, read_level
from eval.sasrec import SasrecSettings, train_sasrec
from eval.splits import TRAIN_END
from tools.dataset import Dataset

START = datetime(2017, 6, 1, 12)
CUT = START + timedelta(days=20)


def baskets(*contents: list[int], every: int = 7) -> Baskets:
    starts = [START + timedelta(days=every * n) for n in range(len(contents))]
    return Baskets(np.array(starts, dtype="datetime64[us]"), [np.array(content) for content in contents])


def named(*households: Baskets) -> Training:
    return {f"household {number}": household for number, household in enumerate(households)}


def at(history: Baskets, moment: datetime) -> Situation:
    return Situation("u", moment, history)


def counts(*days: list[int]) -> DailyCounts:
    total = np.concatenate([np.zeros((1, len(days[0])), dtype=np.int32), np.cumsum(days, axis=0, dtype=np.int32)])
    return DailyCounts(np.datetime64(START, "D"), total)


def test_popularity_counts_whole_days_before_the_cut() -> None:
    daily = counts([5, 0], [1, 1], [0, 9])
    assert Popularity(daily, None).score(at(baskets(), START + timedelta(days=2))).tolist() == [6, 1]
    assert Popularity(daily, 1).score(at(baskets(), START + timedelta(days=2))).tolist() == [1, 1]
    assert Popularity(daily, None).score(at(baskets(), START)).tolist() == [0, 0]


def test_own_baskets_fade_and_popularity_orders_the_rest() -> None:
    daily = counts(*[[0, 0, 1, 2]] * 20)
    history = baskets([0], [1], [1])
    assert np.argsort(-Own(daily, None).score(at(history, CUT))).tolist() == [1, 0, 3, 2]
    faded = Own(daily, 6.0).score(at(history, CUT))
    assert faded[0] == pytest.approx(0.5 ** (20 / 6))
    assert faded[1] == pytest.approx(0.5 ** (13 / 6) + 0.5 ** (6 / 6))


def test_item_knn_is_the_shrunk_cosine() -> None:
    train = named(baskets([0, 1]), baskets([0, 1]), baskets([0, 2]))
    model = item_knn(train, 3, KnnSettings(neighbours=1, shrinkage=1.0))
    scores = model.score(at(baskets([0]), CUT))
    assert scores.tolist() == pytest.approx([0, 2 / (np.sqrt(3 * 2) + 1), 0])  # of 0's two neighbours the nearest


def test_ease_predicts_each_entity_from_the_others() -> None:
    train = named(*[baskets([0, 1])] * 5, *[baskets([2])] * 5)
    weights = ease(train, 3, 1.0).weights
    assert np.diag(weights).tolist() == [0, 0, 0]
    x = purchases(train, 3).toarray()
    for j in range(3):
        others = [i for i in range(3) if i != j]
        ridge = np.linalg.solve(x[:, others].T @ x[:, others] + np.eye(2), x[:, others].T @ x[:, j])
        assert weights[others, j] == pytest.approx(ridge, abs=1e-6)


def test_tifu_decays_baskets_within_groups_and_groups() -> None:
    settings = TifuSettings(group=2, within=0.5, across=0.1, neighbours=1, own=1.0)
    scores = TifuKnn(named(baskets([0])), 3, settings).score(at(baskets([0], [1], [2]), CUT))
    # The last group has baskets 2 and 1, the one before it basket 0 alone; each group counts half.
    assert scores.tolist() == pytest.approx([0.1 / 2, 0.5 / 2 / 2, 1 / 2 / 2])
    near = TifuSettings(group=2, within=1, across=1, neighbours=1, own=0.0)
    model = TifuKnn({"near": baskets([0, 1]), "far": baskets([2])}, 3, near)
    assert model.score(at(baskets([0]), CUT)).tolist() == [1, 1, 0]
    assert model.score(Situation("near", CUT, baskets([0]))).tolist() == [0, 0, 1]  # not its own neighbour


def test_the_best_of_a_grid_is_taken() -> None:
    daily = counts([1, 2])
    model, days = choose(lambda days: Popularity(daily, days), [1, 2, 3], lambda model: -abs(2 - model.days))  # type: ignore[attr-defined]
    assert days == model.days == 2  # type: ignore[attr-defined]


def test_sasrec_learns_what_follows_and_repeats_itself() -> None:
    train = named(*(baskets([n % 5], [(n + 1) % 5], [(n + 2) % 5], [(n + 3) % 5]) for n in range(400)))
    settings = SasrecSettings(
        width=16, layers=1, heads=1, length=8, dropout=0.0, epochs=20, batch=16, learning_rate=1e-2
    )

    def worth(model: object) -> float:
        scores = model.score(at(baskets([1], [2]), CUT))  # type: ignore[attr-defined]
        return float(scores[3] - scores.max())

    said: list[str] = []
    first = train_sasrec(train, 5, settings, worth, said.append)
    again = train_sasrec(train, 5, settings, worth, said.append)
    scores = first.score(at(baskets([1], [2]), CUT))
    assert np.argmax(scores) == 3
    assert scores.tolist() == again.score(at(baskets([1], [2]), CUT)).tolist()
    assert said[0].startswith("sasrec epoch 1: loss")


def test_levels_and_what_may_be_fitted_on(journey: Dataset) -> None:
    data = read_level(journey, "category")
    assert len(data.entities) < len(read_level(journey, "leaf").entities)
    training = data.training()
    assert len(training) > 0.9 * len(data.households)
    for user, fitted in training.items():
        assert len(fitted.contents) <= len(data.households[user].contents) - 2
        assert fitted.starts[-1] < np.datetime64(TRAIN_END)
    user, own = next(iter(data.households.items()))
    moment = own.starts[3].item()
    assert own.before(moment).starts.tolist() == own.starts[:3].tolist()
    paths = dict(journey.items.select("item_id", "category").iter_rows())
    bought = {paths[item][-2] for item in journey.history(user, moment)["item_id"]}
    assert bought == {data.entities[entity] for entity in own.before(moment).distinct()}
