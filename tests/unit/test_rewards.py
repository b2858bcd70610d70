"""Rewards against values computed by hand."""

import math

import numpy as np
import pytest

from eval.metrics import hit_rate_at_k
from eval.splits import Case
from tests.conftest import AS_OF
from training.rewards import (
    Parts,
    RecentExplanations,
    Thresholds,
    accuracy_reward,
    alignment_reward,
    annealed,
    constrained_reward,
    diversity_reward,
    explanation_reward,
    gates,
    length_reward,
    summed_reward,
    thresholds_at,
)

PARTS = Parts(accuracy=0.4, alignment=0.5, diversity=0.6, length=0.8)


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


def test_the_buffer_tells_its_texts_and_is_the_same_made_of_them() -> None:
    buffer = filled("one two", "three", "Four, two", size=2)
    assert buffer.texts == ["three", "Four, two"]
    assert filled(*buffer.texts, size=2).diversity_reward("two") == buffer.diversity_reward("two")


def test_accuracy_is_the_mean_of_two_hit_rates() -> None:
    assert accuracy_reward(["a", "b", "c"], ["a", "c", "d"], ["c"], listed=2) == pytest.approx((1 / 3 + 1) / 2)
    assert accuracy_reward(["a", "b", "c"], ["a", "c", "d"], [], listed=2) == pytest.approx(1 / 3)
    assert accuracy_reward(["a", "a", "c"], ["c"], ["c"], listed=2) == 1.0  # a tag twice counts once
    assert accuracy_reward(["x"], ["a"], ["a"], listed=10) == 0.0
    with pytest.raises(ValueError, match="nothing was bought"):
        accuracy_reward(["a"], [], [], listed=10)


def test_accuracy_is_the_metric_of_the_evaluation() -> None:
    tags = ["milk", "tea", "bread", "soap"]
    case = Case("u", AS_OF, target=frozenset(["tea", "bread", "soap"]), bought=frozenset(["milk", "bread"]))
    rates = hit_rate_at_k(tags, case, 3, new=False), hit_rate_at_k(tags, case, len(tags), new=True)
    assert rates[0] is not None and rates[1] is not None
    assert accuracy_reward(tags, sorted(case.target), ["soap", "tea"], listed=3) == pytest.approx(sum(rates) / 2)


def test_alignment_is_a_mean() -> None:
    assert alignment_reward([0.2, 0.4, 0.9]) == pytest.approx(0.5)


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    assert diversity_reward(vectors) == pytest.approx((1 + 2 + 1) / 3)
    assert diversity_reward(vectors[[0, 0]]) == 0.0
    assert diversity_reward(vectors[:1]) == 0.0


def test_length_counts_words() -> None:
    tags = ["bananas", "white milk", "one two three four", "one two three four five", "a b c d e f"]
    assert length_reward(tags) == pytest.approx((0.5 + 1 + 1 + 0.5 + 0) / 5)


def test_sum_adds_and_constraints_multiply() -> None:
    assert summed_reward(PARTS, Parts(1.0, 0.5, 0.0, 0.25)) == pytest.approx(0.4 + 0.25 + 0.2)
    assert constrained_reward(PARTS, Thresholds(0.5, 0.6, 0.8)) == 0.4  # at a threshold is enough
    for missed in (Thresholds(0.51, 0, 0), Thresholds(0, 0.61, 0), Thresholds(0, 0, 0.81)):
        assert constrained_reward(PARTS, missed) == 0.0
    assert gates(PARTS, Thresholds(0.6, 0.6, 0.6)) == {"alignment": False, "diversity": True, "length": True}


def test_thresholds_rise_on_a_line() -> None:
    start, end = Thresholds(0.3, 0.5, 0.7), Thresholds(0.5, 0.6, 0.8)
    assert annealed(start, end, 0.0) == start
    assert annealed(start, end, 1.0).diversity == pytest.approx(0.6)
    assert annealed(start, end, 0.25).alignment == pytest.approx(0.35)


def test_an_explanation_like_the_last_ones_earns_nothing() -> None:
    assert explanation_reward(0.7, 1.0, 1.0) == 0.7
    assert explanation_reward(0.7, 0.99, 1.0) == 0.0


def test_thresholds_keep_out_a_share_of_the_answers() -> None:
    answers = [Parts(accuracy=0.0, alignment=n / 10, diversity=1 - n / 10, length=0.5) for n in range(11)]
    limits = thresholds_at(answers, 0.2)
    assert (limits.alignment, limits.diversity, limits.length) == pytest.approx((0.2, 0.2, 0.5))
    kept = [gates(one, limits) for one in answers]
    assert sum(one["alignment"] for one in kept) == 9 and all(one["length"] for one in kept)
    with pytest.raises(ValueError, match="no answers"):
        thresholds_at([], 0.2)
