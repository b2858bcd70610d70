"""What is bought for a holiday: found in the catalogue by meaning, and only in the days around it."""

from datetime import date

import holidays
import numpy as np
import pytest
import yaml

from tests.conftest import AS_OF
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.occasions import OCCASIONS, Occasions, no_occasions, open_occasions
from tools.ranker import FEATURES, read_leaf_table
from tools.retrieval import leaf_paths
from tools.signals import holidays_between


def test_every_occasion_is_a_holiday_of_its_country() -> None:
    for country, things in yaml.safe_load(OCCASIONS.read_text(encoding="utf-8")).items():
        calendar = holidays.country_holidays(country, years=2017, categories=("public", "unofficial"))
        assert set(things) <= set(calendar.values())
        for named in things.values():
            assert len(set(named)) == len(named) > 3


@pytest.mark.parametrize(
    ("day", "first", "last", "fit"),
    [(20, 0, 3, 1), (19, 0, 3, 0), (23, 0, 3, 1), (24, 0, 3, 0), (13, 4, 10, 1), (24, -14, -1, 1), (23, -14, -1, 0)],
)
def test_it_counts_within_its_days(day: int, first: int, last: int, fit: int) -> None:
    occasions = Occasions("US", 2, {"Thanksgiving Day": np.array([1, 0], dtype=np.float32)})
    assert occasions.between(date(2017, 11, day), first, last).tolist() == [fit, 0]
    assert occasions.fits["Thanksgiving Day"].tolist() == [1, 0]  # as it was


def test_of_two_holidays_the_nearer_in_kind_counts() -> None:
    fits = {"Christmas Day": np.array([0.9, 0.2], dtype=np.float32), "New Year's Eve": np.array([0.1, 0.6], np.float32)}
    assert Occasions("US", 2, fits).between(date(2017, 12, 24), 0, 10) == pytest.approx([0.9, 0.6])


def test_holidays_between_years_and_of_nowhere() -> None:
    found = holidays_between(date(2017, 12, 30), date(2018, 1, 2), "US")
    assert [name for _, name in found] == ["New Year's Eve", "New Year's Day"]
    assert holidays_between(date(2017, 12, 30), date(2018, 1, 2), "XX") == ()


def test_the_things_of_thanksgiving_are_found_in_a_shop(journey: Dataset) -> None:
    occasions = open_occasions(journey, open_embedder(PACKAGED_MODEL))
    leaves = [path[-1] for path in leaf_paths(journey)]
    fit = dict(zip(leaves, occasions.fits["Thanksgiving Day"].tolist(), strict=True))
    assert min(fit.values()) == 0 and max(fit.values()) <= 1 + 1e-6
    assert fit["Cranberry Sauce"] > 0.9 > 0.1 > fit["Charcoal"]
    assert fit["Baby Diapers"] == 0


def test_the_ranker_reads_them(small: Dataset) -> None:
    occasions = open_occasions(small, open_embedder(PACKAGED_MODEL))
    table = read_leaf_table(small, "h1", AS_OF, {}, occasions)
    ahead = table.features[:, FEATURES.index("occasion_10_days")]  # it is in six days
    assert ahead[table.row["Canned Pumpkin"]] > ahead[table.row["Dish Soap"]]
    without = read_leaf_table(small, "h1", AS_OF, {}, no_occasions(small))
    assert not without.features[:, FEATURES.index("occasion_10_days")].any()


def test_a_country_without_a_list_has_none(small: Dataset) -> None:
    elsewhere = no_occasions(small)
    assert elsewhere.leaves == len(leaf_paths(small))
    assert not elsewhere.between(AS_OF.date(), -14, 10).any()
