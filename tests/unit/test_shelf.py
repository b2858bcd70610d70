"""Shelves on the real data set: nothing from the future, nothing twice, what is due and what is new."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from tests.conftest import AS_OF
from tools.dataset import Dataset
from tools.history import read_history
from tools.purchases import neighbours, own_leaves, start_of_week
from tools.shelf import ShelfLine, tag_text
from tools.shelf import fill_shelves as fill


@pytest.fixture(scope="module")
def household(journey: Dataset) -> str:
    return journey.sample_users(1, 7, AS_OF)[0]


def fill_shelves(
    dataset: Dataset, user_id: str, as_of: datetime, evidence: list[list[str]], size: int
) -> list[list[ShelfLine]]:
    """Shelves where the chance of a leaf is the weight of its purchases, of a new one its share of all purchases."""
    near = neighbours(dataset, start_of_week(as_of))
    chances = dict(zip(near.leaves, (near.bought / max(near.bought.sum(), 1)).tolist(), strict=True))
    chances |= dict(own_leaves(dataset, user_id, as_of).select("leaf", "weight").iter_rows())
    return fill(dataset, user_id, as_of, evidence, size, chances)


def _evidence(journey: Dataset, user_id: str) -> list[list[str]]:
    leaves = [line.leaf for line in read_history(journey, user_id, AS_OF) if line.leaf]
    return [leaves[0:4], leaves[4:8], leaves[8:12]]


def test_shelves_are_old_leaves_the_likeliest_first_and_new_ones_divided(journey: Dataset, household: str) -> None:
    shelves = fill_shelves(journey, household, AS_OF, _evidence(journey, household), 20)
    assert [len(shelf) for shelf in shelves] == [20, 20, 20]
    leaves = [line.leaf for shelf in shelves for line in shelf]
    assert len(set(leaves)) == len(leaves)
    own = own_leaves(journey, household, AS_OF)
    due = set(own.filter("due")["leaf"])
    for line in (line for shelf in shelves for line in shelf):
        assert line.known == (line.leaf in set(own["leaf"]))
        assert (line.why == "due again") == (line.leaf in due)
    order = own["leaf"].to_list()  # the weightiest first
    for shelf in shelves:
        known = [order.index(line.leaf) for line in shelf if line.known]
        assert len(known) == 8
        assert known == sorted(known)
        assert [line.known for line in shelf] == [True] * 8 + [False] * 12


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
        journey, household, AS_OF, [["Premium Dry Dog Food", "Hard Dog Biscuits"], ["Layer Cake Mix", "Sugar"]], 20
    )
    categories = {path[-1]: path[-2] for path in journey.items["category"].to_list()}
    assert sum("Dog" in categories[line.leaf] or "Pet" in categories[line.leaf] for line in pets) >= 2
    assert not any("Dog" in categories[line.leaf] for line in baking)


def test_evidence_that_nobody_bought_has_nothing_beside_it(journey: Dataset, household: str) -> None:
    for shelf in fill_shelves(journey, household, AS_OF, [[], ["No such leaf"]], 10):
        assert not [line for line in shelf if not line.known]


@pytest.mark.parametrize(("leaf", "tag"), [("Shredded Cheese", "shredded cheese"), ("A" * 60, "a" * 48)])
def test_tag_text(leaf: str, tag: str) -> None:
    assert tag_text(leaf) == tag


def test_in_the_first_week_nobody_has_bought_anything_yet(small: Dataset) -> None:
    first = small.first_event + timedelta(hours=1)
    assert fill_shelves(small, "h1", first, [["White Milk"], []], 10) == [[], []]


def test_without_personas_there_are_no_shelves(small: Dataset) -> None:
    assert fill_shelves(small, "h1", AS_OF, [], 10) == []


def test_searches_alone_fill_no_shelf(small: Dataset) -> None:
    events = small.events_before(small.last_event + timedelta(days=1))
    searches = small.with_events(events.with_columns(action=pl.lit("search"), query=pl.lit("milk")))
    assert fill_shelves(searches, "h1", AS_OF, [["White Milk"]], 10) == [[]]
