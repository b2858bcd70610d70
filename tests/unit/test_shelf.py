"""Shelves on the real data set: nothing from the future, nothing twice, what is due and what is new."""

from datetime import timedelta

import polars as pl
import pytest

from tests.conftest import AS_OF
from tools.dataset import Dataset
from tools.history import read_history
from tools.shelf import fill_shelves, tag_text


@pytest.fixture(scope="module")
def household(journey: Dataset) -> str:
    return journey.sample_users(1, 7, AS_OF)[0]


def _evidence(journey: Dataset, user_id: str) -> list[list[str]]:
    leaves = [line.leaf for line in read_history(journey, user_id, AS_OF) if line.leaf]
    return [leaves[0:4], leaves[4:8], leaves[8:12]]


def test_shelves_are_new_leaves_divided_and_old_ones_that_are_due(journey: Dataset, household: str) -> None:
    shelves = fill_shelves(journey, household, AS_OF, _evidence(journey, household), 20)
    assert [len(shelf) for shelf in shelves] == [20, 20, 20]
    leaves = [line.leaf for shelf in shelves for line in shelf]
    assert len(set(leaves)) == len(leaves)
    bought = {line.leaf for line in read_history(journey, household, AS_OF)}
    for line in (line for shelf in shelves for line in shelf):
        assert (line.leaf in bought) == (line.why == "due again")
    assert all(sum(line.why == "due again" for line in shelf) <= 5 for shelf in shelves)


def test_what_happens_after_the_moment_changes_nothing(journey: Dataset, household: str) -> None:
    evidence = _evidence(journey, household)
    past = journey.with_events(journey.events_before(AS_OF))
    whole = journey.events_before(journey.last_event + timedelta(days=1))
    doubled = journey.with_events(pl.concat([whole, whole.filter(pl.col("timestamp") >= AS_OF)]))
    shelf = fill_shelves(journey, household, AS_OF, evidence, 20)
    assert fill_shelves(past, household, AS_OF, evidence, 20) == shelf
    assert fill_shelves(doubled, household, AS_OF, evidence, 20) == shelf


def test_a_persona_gets_what_goes_with_its_evidence(journey: Dataset, household: str) -> None:
    pets, baking = fill_shelves(
        journey, household, AS_OF, [["Premium Dry Dog Food", "Hard Dog Biscuits"], ["Layer Cake Mix", "Sugar"]], 12
    )
    categories = {path[-1]: path[-2] for path in journey.items["category"].to_list()}
    assert sum("Dog" in categories[line.leaf] or "Pet" in categories[line.leaf] for line in pets) >= 2
    assert not any("Dog" in categories[line.leaf] for line in baking)


def test_evidence_that_nobody_bought_has_nothing_beside_it(journey: Dataset, household: str) -> None:
    for shelf in fill_shelves(journey, household, AS_OF, [[], ["No such leaf"]], 10):
        assert {line.why for line in shelf} <= {"due again"}


@pytest.mark.parametrize(("leaf", "tag"), [("Shredded Cheese", "shredded cheese"), ("A" * 60, "a" * 48)])
def test_tag_text(leaf: str, tag: str) -> None:
    assert tag_text(leaf) == tag


def test_in_the_first_week_nobody_has_bought_anything_yet(small: Dataset) -> None:
    first = small.first_event + timedelta(hours=1)
    assert fill_shelves(small, "h1", first, [["White Milk"], []], 10) == [[], []]


def test_searches_alone_fill_no_shelf(small: Dataset) -> None:
    events = small.events_before(small.last_event + timedelta(days=1))
    searches = small.with_events(events.with_columns(action=pl.lit("search"), query=pl.lit("milk")))
    assert fill_shelves(searches, "h1", AS_OF, [["White Milk"]], 10) == [[]]
