"""Agreement against values computed by hand."""

import math

import pytest

from eval.agreement import GRADES, LABELS, against_people, agreement_figures, alpha, calibration, calibration_error


def test_scales_go_up() -> None:
    assert GRADES == ("Bad", "Average", "Superior")
    assert LABELS == ("negative", "neutral", "positive")


def test_agreement_of_grades() -> None:
    pairs = [("Bad", "Bad"), ("Superior", "Superior"), ("Average", "Superior"), ("Superior", "Average")]
    figures = agreement_figures(pairs, GRADES)
    assert figures["accuracy"].mean == 0.5
    assert figures["f1_superior"].mean == pytest.approx(0.5)
    assert figures["f1_bad"].mean == 1.0
    # Linear weights: two of four are one step apart; by chance (1/4, 1/4, 1/2 on both sides) it would be 14/16 steps.
    assert figures["kappa"].mean == pytest.approx(1 - 0.5 / (14 / 16))
    assert figures["accuracy"].low <= 0.5 <= figures["accuracy"].high


def test_a_judge_that_says_one_thing_has_no_agreement_beyond_chance() -> None:
    figures = agreement_figures([("Bad", "Bad"), ("Bad", "Average"), ("Bad", "Superior")], GRADES)
    assert figures["kappa"].mean == pytest.approx(0.0)
    assert figures["f1_superior"].mean == 0.0
    assert agreement_figures([], GRADES) == {}


def test_alpha_of_raters_who_agree_and_who_do_not() -> None:
    assert alpha([[0, 1, 2, 0], [0, 1, 2, None]]) == pytest.approx(1.0)
    assert alpha([[0, 0, 2, 2], [2, 2, 0, 0]]) < 0
    assert math.isnan(alpha([[1, 1], [1, 1]]))


def test_calibration_by_hand() -> None:
    assert calibration_error([0.9, 0.9, 0.1], [True, False, False]) == pytest.approx(0.3)
    assert calibration([0.9, 1.0, 0.1], [True, False, False]) == [(0.1, 0.0, 1), (0.95, 0.5, 2)]


def test_a_judge_like_the_mean_rater_beats_a_rater_and_a_random_one_does_not() -> None:
    ratings = {f"t{n}": [n % 5, (n + n % 2) % 5, n % 5] for n in range(40)}
    like = against_people(ratings, {text: sum(values) / 3 for text, values in ratings.items()})
    assert like["judge"].mean >= like["people"].mean > 0.7
    constant = against_people(ratings, dict.fromkeys(ratings, 1.0))
    assert constant["judge"].mean == 0.0
    assert like["pairs"].n == 40


def test_one_rater_has_no_peers() -> None:
    assert against_people({"t": [1.0]}, {"t": 1.0}) == {}
