"""The page: whole exposures keep the floor, and prefer tags as far as it allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.context import Context
from agents.retriever import page_program, whole_exposures
from tools.ranker import Candidate, Source

CHANCES = [0.5, 0.4, 0.3, 0.1, 0.1, 0.05]
SOURCES: list[Source] = ["habit", "habit", "towers", "cognitive", "cognitive", "cognitive"]
PROPOSED = [Candidate(source, chance) for source, chance in zip(SOURCES, CHANCES, strict=True)]


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


candidates = st.builds(Candidate, st.sampled_from(["habit", "towers", "cognitive"]), st.floats(1e-4, 1.0))


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
