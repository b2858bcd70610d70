"""Rewards against values computed by hand."""

import math

import pytest

from training.rewards import RecentExplanations


def filled(*texts: str, size: int = 160) -> RecentExplanations:
    buffer = RecentExplanations(size)
    for text in texts:
        buffer.add(text)
    return buffer


def test_rare_words_earn_and_common_ones_cost() -> None:
    buffer = filled("milk bread", "milk")
    assert buffer.diversity_reward("milk tea") == pytest.approx((math.log(2 / 3) + math.log(2)) / 2)
    assert buffer.diversity_reward("Milk, milk!") == pytest.approx(math.log(2 / 3))


def test_a_word_twice_in_one_text_counts_once() -> None:
    assert filled("milk milk", "tea").diversity_reward("milk") == pytest.approx(math.log(2 / 2))


def test_the_oldest_goes_first() -> None:
    buffer = filled("one", "two", "three", size=2)
    assert len(buffer) == 2
    assert buffer.diversity_reward("one") == pytest.approx(math.log(2))
    assert buffer.diversity_reward("three") == pytest.approx(0.0)


def test_a_text_without_words_has_none_and_an_empty_buffer_is_an_error() -> None:
    assert filled("milk").diversity_reward("...") == 0.0
    with pytest.raises(ValueError, match="buffer of recent explanations is empty"):
        RecentExplanations().diversity_reward("milk")
