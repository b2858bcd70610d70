"""Agreement against values computed by hand."""

import math

import pytest

from eval.agreement import (
    GRADES,
    LABELS,
    Judged,
    against_people,
    agreement_figures,
    alpha,
    calibration,
    calibration_error,
    calibration_estimate,
    gains,
)


def judged(*pairs: tuple[str | None, str]) -> list[Judged]:
    return [Judged(found, true, f"h{number}") for number, (found, true) in enumerate(pairs)]


def test_scales_go_up() -> None:
    assert GRADES == ("Bad", "Average", "Superior")
    assert LABELS == ("negative", "neutral", "positive")


def test_agreement_of_grades() -> None:
    pairs = [("Bad", "Bad"), ("Superior", "Superior"), ("Average", "Superior"), ("Superior", "Average")]
    figures = agreement_figures(judged(*pairs), GRADES)
    assert figures["accuracy"].mean == 0.5
    assert figures["f1_superior"].mean == pytest.approx(0.5)
    assert figures["f1_bad"].mean == 1.0
    # Linear weights: two of four are one step apart; by chance (1/4, 1/4, 1/2 on both sides) it would be 14/16 steps.
    assert figures["kappa"].mean == pytest.approx(1 - 0.5 / (14 / 16))
    assert figures["accuracy"].low <= 0.5 <= figures["accuracy"].high


def test_a_judge_that_says_one_thing_has_no_agreement_beyond_chance() -> None:
    figures = agreement_figures(judged(("Bad", "Bad"), ("Bad", "Average"), ("Bad", "Superior")), GRADES)
    assert figures["kappa"].mean == pytest.approx(0.0)
    assert figures["f1_superior"].mean == 0.0
    assert agreement_figures([], GRADES) == {}


def test_alpha_of_raters_who_agree_and_who_do_not() -> None:
    assert alpha([[0, 1, 2, 0], [0, 1, 2, math.nan]]) == pytest.approx(1.0)
    assert alpha([[0, 0, 2, 2], [2, 2, 0, 0]]) < 0
    assert math.isnan(alpha([[1, 1], [1, 1]]))


def test_calibration_by_hand() -> None:
    assert calibration_error([0.9, 0.9, 0.1], [True, False, False]) == pytest.approx(0.3)
    assert calibration([0.9, 1.0, 0.1], [True, False, False]) == [(0.1, 0.0, 1), (0.95, 0.5, 2)]


def test_calibration_has_an_interval_over_households() -> None:
    found = calibration_estimate([0.9, 0.9, 0.1], [True, False, False], ["a", "b", "c"])
    assert found.mean == pytest.approx(0.3) and found.n == 3
    assert found.low < 0.3 < found.high


def test_kappa_among_raters_by_hand() -> None:
    # Pairs, each in both orders: (0, 0) twice, (0, 1) and (1, 0); half differ, 3/4 are 0: by chance 6/16 differ.
    found = against_people({"a": [0, 0], "b": [0, 1]}, {"a": 0.0, "b": 0.0})
    assert found["kappa"].mean == pytest.approx(1 - 0.5 / (6 / 16))


def test_no_verdict_is_a_wrong_one() -> None:
    figures = agreement_figures(judged(("Superior", "Superior"), (None, "Superior"), (None, "Average")), GRADES)
    assert figures["accuracy"].mean == pytest.approx(1 / 3)
    assert figures["f1_superior"].mean == pytest.approx(2 / 3)  # one of two found, and none too many


def test_intervals_are_over_households() -> None:
    pairs = [("Bad", "Bad")] * 10 + [("Bad", "Superior")] * 10
    texts = agreement_figures([Judged(*pair, str(n)) for n, pair in enumerate(pairs)], GRADES)["accuracy"]
    two = agreement_figures([Judged(*pair, str(n // 10)) for n, pair in enumerate(pairs)], GRADES)["accuracy"]
    assert (two.low, two.high) == (0.0, 1.0)
    assert 0.2 < texts.low < texts.high < 0.8


def test_gains_are_of_the_same_texts() -> None:
    truth = ["Bad", "Average", "Superior", "Superior"]
    right = judged(*zip(truth, truth, strict=True))
    almost = judged(*zip(["Bad", "Bad", "Superior", "Superior"], truth, strict=True))
    found = gains(right, almost, GRADES)
    assert found["accuracy"].mean == pytest.approx(0.25)
    assert found["f1_superior"].mean == 0.0
    assert found["accuracy"].low <= 0.25 <= found["accuracy"].high


def test_a_resample_without_a_value_says_nothing_of_its_f1() -> None:
    found = agreement_figures(judged(("Bad", "Bad"), *[("Average", "Average")] * 4), GRADES)
    assert (found["f1_bad"].low, found["f1_bad"].high) == (1.0, 1.0)
    assert "f1_superior" not in found
    assert "f1_superior" not in gains(judged(("Bad", "Bad")), judged(("Average", "Bad")), GRADES)


def test_a_judge_like_the_mean_rater_beats_a_rater_and_a_random_one_does_not() -> None:
    ratings = {f"t{n}": [n % 5, (n + n % 2) % 5, n % 5] for n in range(40)}
    like = against_people(ratings, {text: sum(values) / 3 for text, values in ratings.items()})
    assert like["judge"].mean >= like["people"].mean > 0.7
    assert like["alpha"].mean > 0.6
    assert 0.5 < like["kappa"].low < like["kappa"].mean < like["kappa"].high < 1
    assert like["alpha"].low < like["alpha"].mean < like["alpha"].high
    constant = against_people(ratings, dict.fromkeys(ratings, 1.0))
    assert constant["judge"].mean == 0.0
    assert like["pairs"].n == 40


def test_texts_with_one_rater_are_left_out_and_not_the_others_with_them() -> None:
    assert against_people({"t": [1.0]}, {"t": 1.0}) == {}
    ratings = {"a": [1, 1], "b": [0, 0, 0], "c": [5], "d": [2, 1]}
    assert against_people(ratings, dict.fromkeys(ratings, 1.0))["people"].n == 3
