"""The page: whole exposures keep the floor, and prefer tags as far as it allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from agents.context import Context
from agents.retriever import near_lines, page_program, whole_exposures
from agents.schemas import Household
from tests.conftest import AS_OF
from tools.history import HistoryLine
from tools.purchases import Neighbours
from tools.ranker import Candidate, Source

CHANCES = [0.5, 0.4, 0.3, 0.1, 0.1, 0.05]
SOURCES: list[Source] = ["habit", "habit", "towers", "cognitive", "cognitive", "cognitive"]
PROPOSED = [
    Candidate(source, chance, new=source == "cognitive") for source, chance in zip(SOURCES, CHANCES, strict=True)
]


@pytest.mark.parametrize(
    ("exploration", "floor", "expected"),
    [(0.0, 0.0, [0, 1, 2]), (5.0, 0.0, [3, 4, 5]), (5.0, 1.0, [0, 1, 2])],
)
def test_the_page_follows_exploration_and_floor(exploration: float, floor: float, expected: list[int]) -> None:
    context = Context(exploration=exploration, conversion_floor=floor)
    shown = whole_exposures(page_program(PROPOSED, context, 3), 3)
    assert shown == expected


def test_a_floor_between_mixes_the_channels() -> None:
    context = Context(exploration=5.0, conversion_floor=0.5)
    shown = whole_exposures(page_program(PROPOSED, context, 3), 3)
    assert {SOURCES[row] for row in shown} == {"habit", "cognitive"}


def test_a_tag_for_what_is_bought_anyway_explores_nothing() -> None:
    known, new = (Candidate("cognitive", chance, new) for chance, new in ((0.2, False), (0.1, True)))
    context = Context(exploration=5.0, conversion_floor=0.0)
    assert whole_exposures(page_program([Candidate("habit", 0.3, False), known, new], context, 2), 2) == [2, 0]


candidates = st.builds(
    Candidate, st.sampled_from(["habit", "towers", "cognitive"]), st.floats(1e-4, 1.0), st.booleans()
)


@given(st.lists(candidates, min_size=1, max_size=40), st.floats(0, 10), st.floats(0, 1), st.integers(1, 10))
def test_whole_exposures_always_keep_the_floor(
    proposed: list[Candidate], exploration: float, floor: float, count: int
) -> None:
    count = min(count, len(proposed))
    context = Context(exploration=exploration, conversion_floor=floor)
    shown = whole_exposures(page_program(proposed, context, count), count)
    assert len(set(shown)) == count
    chances = np.array([candidate.chance for candidate in proposed])
    assert chances[shown].mean() >= floor * np.sort(chances)[::-1][:count].mean() * (1 - 1e-6)


def test_an_item_rests_on_its_own_line_and_on_what_goes_with_it() -> None:
    leaves = ["Buns", "Hot Dogs", "Milk"]
    together = csr_matrix(np.array([[100, 90, 100], [90, 100, 90], [100, 90, 900]], dtype=np.float32))
    near = Neighbours(
        leaves,
        {leaf: row for row, leaf in enumerate(leaves)},
        together,
        category={},
        bought=together.diagonal(),
    )

    def line(number: int, leaf: str, weight: float) -> HistoryLine:
        return HistoryLine(
            id=f"h{number}",
            action="purchase",
            item_id=str(number),
            text=leaf,
            category=["Grocery", leaf],
            times=1,
            first=AS_OF,
            last=AS_OF,
            weight=weight,
            every_days=None,
        )

    history = [line(1, "Buns", 1.0), line(2, "Buns", 2.0), line(3, "Milk", 9.0), line(4, "Hot Dogs", 1.0)]
    household = Household(profile=None, history=[*history, line(5, "Never Sold Before", 9.0)], signals=[])
    assert near_lines(household, "Buns", near) == ["h2", "h4", "h3"]
    assert near_lines(household, "Never Sold Before", near) == ["h5"]  # nothing is known to go with it
