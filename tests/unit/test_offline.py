"""Lists and figures of the offline evaluation, with recommenders whose answers are known."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from eval.baskets import LEVELS, LevelData, Situation
from eval.metrics import estimate
from eval.offline import Evaluation, figures, has_lists, keep_lists, open_evaluation, read_lists, write_metrics
from eval.retrieval import AtLevel, Listed, rank
from eval.splits import HOUSEHOLDS, TRAIN_END, WEEKS, evaluation_cases, week_cases
from tools.dataset import Dataset
from tools.errors import DatasetError, OutputError

USERS = 6


@pytest.fixture(scope="module")
def run(journey: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return open_evaluation(journey, tmp_path_factory.mktemp("offline"), USERS)


class Oracle:
    """Lists what was bought, which no recommender may know."""

    def __init__(self, run: Evaluation) -> None:
        self._run = run

    def score(self, seen: Situation) -> np.ndarray:
        data = self._run.levels["leaf"]
        scores = np.full(len(data.entities), -np.inf)
        own = data.households[seen.user_id]
        scores[own.contents[len(seen.history.contents)][:30]] = 1.0
        return scores


def test_the_committed_households_are_those_of_the_draw(journey: Dataset) -> None:
    committed = HOUSEHOLDS.read_text().split()
    cases = evaluation_cases(journey, None)
    assert len(set(committed)) == 500
    assert [case.user_id for case in cases[:500]] == committed
    assert all(case.as_of >= TRAIN_END for case in cases)
    assert [case.user_id for case in evaluation_cases(journey, 10)] == committed[:10]


def test_a_week_holds_what_was_bought_in_it(journey: Dataset) -> None:
    start = WEEKS["thanksgiving"]
    case = week_cases(journey, start, 3)[0]
    leaves = dict(journey.items.select("item_id", "category").iter_rows())
    end = datetime(2017, 11, 24)
    bought = {leaves[item][-1] for item in journey.history(case.user_id, end)["item_id"]}
    before = {leaves[item][-1] for item in journey.history(case.user_id, start)["item_id"]}
    assert case.bought == before
    assert bought == before | case.target


def test_an_oracle_hits_everything_and_its_lists_are_kept(run: Evaluation) -> None:
    assert not has_lists(run, "oracle", "test", "leaf", "now")
    for level in LEVELS:
        keep_lists(run, "oracle", "test", level, run.at_level(Oracle(run), level), run.cases("test", USERS), "now")
    assert has_lists(run, "oracle", "test", "leaf", "now")
    assert not has_lists(run, "oracle", "test", "leaf", "of other weights")
    ranking = read_lists(run, "oracle", "test", "leaf", run.cases("test", 4))
    assert ranking is not None and ranking.all.shape == (4, 30)
    assert read_lists(run, "oracle", "test", "leaf", run.cases("test", USERS + 1)) is None
    with pytest.raises(OutputError, match="other households"):
        read_lists(run, "oracle", "test", "leaf", run.cases("test", 2)[::-1])
    values = figures(run)
    assert values["models.oracle.leaf.all.hr@30"].mean > 0.9  # a basket may have more than 30 leaves
    assert values["models.oracle.category.all.hr@30"].mean > 0.8  # and some hang under several categories
    assert values["models.oracle.product.all.hr@30"].n == USERS


def test_figures_are_written_with_their_interval(run: Evaluation, tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", {"b": estimate([0.0, 1.0]), "a": estimate([0.5]), "c": estimate([])})
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert list(document) == ["a", "b"]
    assert document["a"] == {"n": 1, "mean": 0.5, "low": 0.5, "high": 0.5}


def test_results_of_another_run_are_not_mixed_in(run: Evaluation, journey: Dataset, small: Dataset) -> None:
    assert open_evaluation(journey, run.out, 2).users == 2
    with pytest.raises(OutputError, match=r"another run \(dataset, entities, events differ\)"):
        open_evaluation(small, run.out, 2)


def test_a_data_set_without_a_case_is_refused(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no household whose last basket lies on or after 2017-11-17"):
        open_evaluation(small, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


def test_weeks_compare_models_on_the_households_that_all_were_asked_about(run: Evaluation) -> None:
    for name, count in (("few", 2), ("many", 5)):
        keep_lists(run, name, "control", "leaf", Oracle(run), run.cases("control", count), "now")
    values = figures(run)
    shared = [values[f"weeks.control.{name}.leaf.new.hr@30"] for name in ("few", "many")]
    assert shared[0] == shared[1] and shared[0].n <= 2
    assert values["weeks_everyone.control.many.leaf.new.hr@30"].n > shared[1].n


def test_listed_leaves_score_by_their_place(run: Evaluation) -> None:
    data: LevelData = run.levels["leaf"]
    case = run.cases("test", 1)[0]
    names = data.entities[5], data.entities[2]
    listed = Listed({(case.user_id, case.as_of): [*names, names[0]]}, {name: n for n, name in enumerate(data.entities)})
    ranking = rank(listed, data, run.questions("test", "leaf", [case]))
    assert ranking.all[0, :3].tolist() == [5, 2, -1]


def test_a_product_shares_its_leaf_by_own_purchases_first(run: Evaluation) -> None:
    leaves, products = run.levels["leaf"], run.levels["product"]
    case = run.cases("test", 1)[0]
    own = products.households[case.user_id].before(case.as_of)
    titles, counts = np.unique(np.concatenate(own.contents), return_counts=True)
    favourite = int(titles[counts.argmax()])
    at_products = run.at_level(Listed({}, {}), "product")
    assert isinstance(at_products, AtLevel)
    leaf = leaves.entities[at_products.leaf_of[favourite]]
    listed = Listed({(case.user_id, case.as_of): [leaf]}, {name: n for n, name in enumerate(leaves.entities)})
    ranking = rank(run.at_level(listed, "product"), products, run.questions("test", "product", [case]))
    assert ranking.all[0, 0] == favourite
