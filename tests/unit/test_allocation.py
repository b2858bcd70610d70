"""The quadratic program of section 8: a solver agrees with it, what the hard rule loses, faults are named."""

import numpy as np
import pytest
from qpsolvers import solve_qp
from scipy.sparse import csc_matrix, eye

from tools.allocation import Program, Vector, multipliers, solve_in_closed_form, threshold, worth
from tools.errors import SettingError


def random_program(seed: int) -> Program:
    """Sizes, scores, smoothing and bounds of all kinds; the floor is one that can be met."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    scores = rng.normal(0.3, rng.choice([0.1, 1.0]), count)
    conversion = rng.random(count)
    least = rng.choice([0.0, float(rng.integers(0, count + 1)), rng.uniform(0, count)])
    most = rng.uniform(least, count)
    reachable = np.sort(conversion)[::-1][: max(1, int(np.ceil(least)))].mean()
    floor = reachable * rng.uniform(0.3, 0.999)
    return Program(scores, conversion, floor, least, most, smoothing=float(rng.choice([0.05, 0.3, 1.0, 4.0])))


def solve_numerically(program: Program) -> Vector:
    """x, (n,), by an interior-point solver (clarabel): the check of the closed form."""
    n = len(program.scores)
    ones = np.ones((1, n))
    rows = np.vstack([-(program.conversion - program.floor)[None], ones, -ones])
    x = solve_qp(
        P=csc_matrix(program.smoothing * eye(n)),
        q=-program.scores,
        G=csc_matrix(rows),
        h=np.array([0.0, program.most, -program.least]),
        lb=np.zeros(n),
        ub=np.ones(n),
        solver="clarabel",
        tol_gap_abs=1e-12,
        tol_gap_rel=1e-12,
        tol_feas=1e-12,
    )
    assert x is not None
    return np.clip(np.asarray(x), 0.0, 1.0)


@pytest.mark.parametrize("seed", range(60))
def test_closed_form_and_solver_agree(seed: int) -> None:
    program = random_program(seed)
    numeric, closed = solve_numerically(program), solve_in_closed_form(program)
    assert np.abs(numeric - closed).max() < 1e-6
    assert (program.conversion - program.floor) @ closed > -1e-9
    assert program.least - 1e-9 <= closed.sum() <= program.most + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_nothing_allowed_is_worth_more_than_the_optimum(seed: int) -> None:
    program = random_program(seed)
    best = solve_in_closed_form(program)
    rng = np.random.default_rng(seed)
    for _ in range(50):
        other = np.clip(best + rng.normal(0, 0.1, len(best)), 0, 1)
        allowed = (program.conversion - program.floor) @ other >= 0 and program.least <= other.sum() <= program.most
        assert not allowed or worth(program, other) <= worth(program, best) + 1e-9


def test_without_binding_bounds_exposure_is_the_score_over_the_smoothing() -> None:
    program = Program(np.array([0.2, 0.6, -1.0, 3.0]), np.ones(4), floor=0.5, least=0, most=4, smoothing=2.0)
    assert multipliers(program) == (0.0, 0.0)
    assert solve_in_closed_form(program).tolist() == [0.1, 0.3, 0.0, 1.0]


def test_a_floor_moves_exposure_to_what_converts() -> None:
    program = Program(np.array([0.9, 0.8]), np.array([0.1, 0.5]), floor=0.3, least=0, most=2)
    exposed = solve_in_closed_form(program)
    assert exposed[1] == pytest.approx(exposed[0])  # 0.2 above the floor pays for 0.2 below
    assert multipliers(program)[0] > 0


def test_the_hard_rule_exposes_what_scores_above_the_smoothing() -> None:
    program = Program(np.array([0.9, 1.2, 0.1, 1.1]), np.ones(4), floor=0.0, least=0, most=4)
    assert threshold(program).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least": 3.0, "most": 2.0}, "0 <= least <= most"),
        ({"least": 5.0, "most": 9.0}, "at least 5.0 exposures were asked for and there are 3 candidates"),
        ({"floor": 0.9, "least": 2.0}, "no 2.0 of 3 candidates convert at 0.9000 on average; their best misses it by"),
        ({"smoothing": 0.0}, "above 0"),
        ({"conversion": np.ones(2)}, "3 scores but 2 conversions"),
        ({"scores": np.array([1.0, np.nan, 0.0])}, "finite"),
    ],
)
def test_what_cannot_be_met_is_said(changes: dict[str, object], message: str) -> None:
    usual = {"scores": np.ones(3), "conversion": np.array([0.2, 0.5, 0.9]), "floor": 0.1, "least": 0.0, "most": 3.0}
    with pytest.raises(SettingError, match=message):
        Program(**(usual | changes))  # type: ignore[arg-type]
