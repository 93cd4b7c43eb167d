"""The integer program and its certificate against brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.assignment import Problem
from broker_server.assignment.flex_moe.exact import balanced_start, best_quality, solve
from broker_server.assignment.flex_moe.integer_program import IntegerProgram
from edge_runtime.errors import FleetError
from tests.broker_server.sample_problems import (
    all_assignments,
    everything,
    problems,
    rounding,
    sample_problem,
)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_it_is_as_good_as_brute_force(problem: Problem) -> None:
    answer = solve(problem)
    violations, objectives = everything(problem)
    least = violations.min()
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    best = objectives[violations <= answer.violation + 1e-9].max()
    assert answer.objective <= best + 1e-9 <= answer.bound + 2e-9
    assert answer.violation_bound <= least + 1e-9
    bounds = np.concatenate([problem.lower, problem.upper[np.isfinite(problem.upper)]])
    if (bounds * 8 % 1 == 0).all():  # the program counts eighths exactly
        assert answer.violation == pytest.approx(least, abs=1e-9)
        assert answer.violation_bound == pytest.approx(least, abs=1e-6)
        assert best - rounding(problem) <= answer.objective
        assert answer.bound <= best + rounding(problem)
    else:  # it rounds each bound by less than a thousandth
        unseen = 0.001 * problem.experts + 1e-6
        assert least - unseen <= answer.violation_bound
        assert answer.violation <= least + unseen
        known = objectives[violations <= answer.violation - unseen]
        assert answer.objective >= known.max(initial=-np.inf) - rounding(problem)


@settings(max_examples=150, deadline=None)
@given(problems(weighted=True))
def test_loads_that_are_not_whole_keep_the_certificate_true(problem: Problem) -> None:
    answer = solve(problem)
    violations, objectives = everything(problem)
    # Half a unit for each pair that is held and one for each bound, to both sides.
    unseen = 0.001 * (int(problem.capacity.sum()) + problem.experts) + 1e-6
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert violations.min() - unseen <= answer.violation_bound <= violations.min() + 1e-9
    assert answer.violation <= violations.min() + unseen
    assert answer.bound >= objectives[violations <= answer.violation].max() - 1e-9
    most = objectives[violations <= answer.violation + 2 * unseen].max()
    assert answer.bound <= most + rounding(problem)
    known = objectives[violations <= answer.violation - 2 * unseen]
    assert answer.objective >= known.max(initial=-np.inf) - rounding(problem)


def test_no_load_is_too_much_without_an_upper_bound() -> None:
    """Also if it is rounded up to more than all of it: 1/7 is 142.86 thousandths."""
    problem = Problem(
        quality=np.array([[1.0, 0.0], [0.0, 0.0]]),
        samples=np.array([1, 1]),
        capacity=np.array([1, 1]),
        lower=np.zeros(2),
        upper=np.array([np.inf, 0.0]),
        seed=0,
        weight=np.array([[1 / 7, 0.0], [0.0, 0.0]]),
    )
    assert solve(problem).objective == 1.0


def test_a_violation_too_small_for_the_program_does_not_buy_quality_unseen() -> None:
    """Bounds of 0, and loads that the program sees as 0, but for the last, which it sees as 1."""
    problem = Problem(
        quality=np.array([[0.0, 1.0], [0.0, 1.0]]),
        samples=np.array([1, 1]),
        capacity=np.array([1, 1]),
        lower=np.zeros(2),
        upper=np.zeros(2),
        seed=0,
        weight=np.array([[0.0003, 0.0004], [0.0003, 0.0007]]),
    )
    answer = solve(problem)
    # Client 0 changes to expert 1 unseen, client 1 must not; the bound allows for both.
    assert answer.X.tolist() == [[False, True], [True, False]]
    assert answer.violation == pytest.approx(0.0007) and answer.violation_bound <= 0.0006
    assert answer.objective == 1.0 and answer.bound == pytest.approx(2.0)


@settings(max_examples=100, deadline=None)
@given(problems(), st.booleans(), st.sampled_from([0.0, 1e-6, 1e-4]), st.data())
def test_stopped_early_it_still_answers_with_true_certificates(
    problem: Problem, started: bool, work_limit: float, data: st.DataObject
) -> None:
    every = all_assignments(problem)
    start = every[data.draw(st.integers(0, len(every) - 1))] if started else None
    answer = solve(problem, work_limit, start)
    violations, objectives = everything(problem)
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert answer.violation_bound <= violations.min() + 1e-9
    assert answer.bound >= objectives[violations <= answer.violation + 1e-9].max() - 1e-9
    assert answer.gap >= 0


def test_without_work_it_keeps_its_balanced_start() -> None:
    problem = sample_problem()
    stopped, finished = solve(problem, 0.0), solve(problem)
    assert (stopped.solver, finished.solver) == ("balanced-start", "cp-sat")
    assert stopped.objective < finished.objective <= stopped.bound
    assert stopped.gap > 0.01 and finished.gap < 1e-5


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_the_answer_is_no_worse_than_the_start(problem: Problem, data: st.DataObject) -> None:
    every = all_assignments(problem)
    number = data.draw(st.integers(0, len(every) - 1))
    violations, objectives = everything(problem)
    answer = solve(problem, 0.0, every[number])
    assert answer.violation <= violations[number] + 1e-9
    if answer.violation > violations[number] - 1e-9:
        assert answer.objective >= objectives[number] - 1e-9


def test_of_two_starts_the_one_with_less_violation_and_then_more_quality_counts() -> None:
    problem = sample_problem()
    best = solve(problem).X
    ends = solve(problem, 0.0, best)
    assert np.array_equal(ends.X, best) and ends.solver == "start"
    crowded = np.zeros((8, 8), bool)
    crowded[:, :2] = True
    ends = solve(problem, 0.0, crowded)
    assert ends.violation == 0 and ends.solver == "balanced-start"


def test_a_known_bound_ends_the_search() -> None:
    problem = sample_problem()
    best = solve(problem)
    again = solve(problem, 0.0, best.X, best_bound=best.objective)
    assert (again.X == best.X).all() and again.solver == "start"
    assert again.gap == 0 and again.bound == best.objective
    # It is said of what is no worse than the start, and balanced is worse than that.
    crowded = np.zeros((8, 8), bool)
    crowded[:, :2] = True
    looser = solve(problem, 0.0, crowded, best_bound=best.bound)
    assert looser.bound == best.bound < solve(problem, 0.0).bound


def test_a_known_violation_tightens_the_certificate() -> None:
    problem = hard_problem()
    without, known = solve(problem, 0.0), solve(problem, 0.0, least_violation=90.5)
    assert without.violation_bound < 90
    assert known.violation_bound == 90.5 < known.violation


def test_bounds_of_nan_say_nothing() -> None:
    plain, told = (
        solve(hard_problem(), 0.01, **known)
        for known in ({}, {"best_bound": math.nan, "least_violation": math.nan})
    )
    assert (told.bound, told.violation_bound) == (plain.bound, plain.violation_bound)
    assert np.array_equal(told.X, plain.X)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.zeros((8, 7), bool), r"the start must be bool \(8, 8\), not bool \(8, 7\)"),
        (np.zeros((8, 8)), r"the start must be bool \(8, 8\), not float64 \(8, 8\)"),
        (np.eye(8, dtype=bool), "must give client 0 its 2 experts, not 1"),
    ],
)
def test_a_start_that_is_no_assignment_is_refused(start: Any, message: str) -> None:
    with pytest.raises(FleetError, match=message):
        solve(sample_problem(), start=start)


def test_the_bound_covers_differences_too_small_for_the_integer_program() -> None:
    """Experts 0 and 1 look alike at a million steps; 2 and 3 are closed."""
    answers = [
        solve(
            Problem(
                quality=np.array([[0.3333331, 0.3333334, 1.0, 0.0]]),
                samples=np.array([10]),
                capacity=np.array([1]),
                lower=np.zeros(4),
                upper=np.array([10.0, 10.0, 0.0, 0.0]),
                seed=seed,
            )
        )
        for seed in range(8)
    ]
    assert {answer.objective for answer in answers} == {0.3333331, 0.3333334}
    assert all(0.3333334 <= answer.bound < 0.333335 for answer in answers)


def hard_problem(seed: int = 3) -> Problem:
    """Few, unequal clients: the work limit ends the search, and the floor is far off."""
    samples = np.array([111, 132, 147, 158, 163, 171, 189, 207, 214, 229, 251, 278])
    share = samples.sum() * 2 / 9
    quality = np.random.default_rng(5).random((12, 9))
    even = np.full(9, share)
    return Problem(quality, samples, np.full(12, 2), even, even, seed)


def test_it_repeats_itself() -> None:
    """Also where the work limit ends the search."""
    problem = hard_problem()
    first, second = solve(problem, 0.1), solve(problem, 0.1)
    assert first.violation > first.violation_bound + 1
    assert (first.X == second.X).all()
    assert (first.objective, first.bound) == (second.objective, second.bound)


@settings(max_examples=30, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_clients_and_experts_does_not_matter(problem: Problem, random: Any) -> None:
    rows = random.sample(range(problem.clients), problem.clients)
    columns = random.sample(range(problem.experts), problem.experts)
    moved = Problem(
        problem.quality[np.ix_(rows, columns)],
        problem.samples[rows],
        problem.capacity[rows],
        problem.lower[columns],
        problem.upper[columns],
        problem.seed,
    )
    here, there = solve(problem), solve(moved)
    unseen = 0.002 * problem.experts
    assert there.violation == pytest.approx(here.violation, abs=unseen)
    if here.violation == pytest.approx(there.violation, abs=1e-9):
        assert there.objective == pytest.approx(here.objective, abs=rounding(problem))


def test_the_answer_permutes_with_the_problem() -> None:
    """With distinct qualities the best answer is one, and moves along with clients and experts."""
    problem = sample_problem()
    rows, columns = np.roll(np.arange(8), 3), np.arange(8)[::-1]
    moved = sample_problem(
        quality=problem.quality[np.ix_(rows, columns)], samples=problem.samples[rows]
    )
    there, here = solve(moved), solve(problem)
    assert here.violation == 0 and here.gap < 1e-5
    assert (here.X[np.ix_(rows, columns)] == there.X).all()


def test_weights_move_with_clients_and_experts() -> None:
    """Each client is light for one expert, its own, and too heavy for the others."""
    own = np.random.default_rng(4).permutation(8)
    weight = np.full((8, 8), 50.0)
    weight[np.arange(8), own] = 7.5
    answer = solve(
        sample_problem(
            capacity=np.ones(8, int), lower=np.full(8, 7.5), upper=np.full(8, 7.5), weight=weight
        )
    )
    assert answer.X.argmax(axis=1).tolist() == own.tolist()
    assert answer.load.tolist() == [7.5] * 8 and answer.violation == answer.violation_bound == 0


def test_an_offset_of_quality_hides_nothing() -> None:
    """Only differences within a row matter, also where they are a billionth of the quality."""
    problem = sample_problem()
    steps = np.floor(problem.quality * 1024) / 1024  # exact beside a billion
    plain, raised = (solve(sample_problem(quality=steps + offset)) for offset in (0.0, 1e9))
    assert (raised.X == plain.X).all()
    assert raised.objective == plain.objective + 16e9
    assert raised.objective <= raised.bound <= 16e9 + plain.bound + 1e-4


def test_equal_qualities_need_no_search() -> None:
    answer = solve(sample_problem(quality=np.full((8, 8), -0.25)))
    assert answer.solver == "balanced-start" and answer.violation == 0
    assert answer.objective == answer.bound == -4 and answer.gap == 0


@pytest.mark.parametrize("unit", [10**9, 3_300_000])
def test_a_billion_samples_a_client(unit: int) -> None:
    """Sizes 1 to 1/8 of `unit`, which fill the experts to the sample."""
    samples = np.array([unit, unit // 2, unit // 2, *[unit // 4] * 2, *[unit // 8] * 4])
    answer = solve(
        Problem(
            np.random.default_rng(1).random((9, 3)),
            samples,
            np.ones(9, int),
            np.full(3, float(unit)),
            np.full(3, float(unit)),
            0,
        )
    )
    assert answer.load.tolist() == [unit] * 3
    assert answer.violation == answer.violation_bound == 0 and answer.gap < 1e-5


def test_large_loads_do_not_lead_the_presolve_astray() -> None:
    """OR-Tools 9.15 calls 1,812,916,617 the least violation here, with its presolve complete."""
    problem = Problem(
        np.random.default_rng(0).random((3, 3)),
        np.array([966666657, 466666662, 333333330]),
        np.array([2, 3, 2]),
        np.array([637.5e6, 641.25e6, 97.5e6]),
        np.array([1151.25e6, 975e6, 1027.5e6]),
        0,
    )
    answer = solve(problem)
    assert answer.violation == everything(problem)[0].min() == 1021249968
    assert answer.violation_bound == pytest.approx(1021249968, abs=0.1)


@settings(max_examples=60, deadline=None)
@given(problems(clients=4, experts=3), st.integers(10**6, 3 * 10**7))
def test_large_loads_are_solved_as_small_ones(problem: Problem, factor: int) -> None:
    scaled = replace(
        problem,
        samples=problem.samples * factor,
        lower=np.round(problem.lower * factor),
        upper=np.round(problem.upper * factor),
    )
    answer = solve(scaled)
    violations, objectives = everything(scaled)
    least = violations.min()
    noise = 1e-9 * factor
    assert answer.violation == pytest.approx(least, abs=0.1)
    assert least - 0.1 <= answer.violation_bound <= least + noise
    best = objectives[violations <= answer.violation + noise].max()
    assert best - rounding(problem) <= answer.objective <= best + 1e-9 <= answer.bound + 2e-9


def test_loads_beyond_64_bits_are_counted_in_larger_units() -> None:
    problem = Problem(
        np.random.default_rng(2).random((400, 24)),
        np.full(400, 10**9),
        np.full(400, 12),
        np.full(24, 1e14),
        np.full(24, 1e15),
        0,
    )
    program = IntegerProgram(problem, 0)
    X = balanced_start(problem)
    assert program.violation(X) < 2**53
    answer = solve(problem, 0.0)
    assert answer.violation == pytest.approx(24 * 1e14 - 400 * 12e9)
    assert answer.violation_bound == pytest.approx(answer.violation, rel=1e-9)
    assert answer.violation_bound <= answer.violation


def test_best_quality_adds_in_double_precision() -> None:
    quality = np.full((3, 2), 2**24 + 2, np.float32)
    problem = Problem(quality, [1] * 3, [2] * 3, [0.0] * 2, [9.0] * 2, 0)  # type: ignore[arg-type]
    assert best_quality(problem) == 6 * (2**24 + 2)
