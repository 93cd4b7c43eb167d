"""The assignment policies against brute force and their own promises."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import POLICIES, Problem, policy
from broker_server.assignment import exact as engine
from edge_runtime.errors import ConfigError, FleetError

EIGHTHS = st.integers(0, 320).map(lambda n: n / 8)


@st.composite
def problems(draw: st.DrawFn, clients: int = 4, experts: int = 4) -> Problem:
    """Small problems, whose bounds are often impossible and whose qualities are often equal."""
    rows, columns = draw(st.integers(1, clients)), draw(st.integers(1, experts))
    numbers = draw(st.sampled_from([st.floats(-2, 2), st.sampled_from([0.0, 0.5, 1.0])]))
    limits = draw(st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=columns, max_size=columns))
    return Problem(
        quality=np.array([[draw(numbers) for _ in range(columns)] for _ in range(rows)]),
        samples=np.array([draw(st.integers(1, 30)) for _ in range(rows)]),
        capacity=np.array([draw(st.integers(1, columns)) for _ in range(rows)]),
        lower=np.array([min(pair) for pair in limits]),
        upper=np.array([draw(st.sampled_from([max(pair), math.inf])) for pair in limits]),
        seed=draw(st.integers(0, 2**40)),
    )


def everything(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Violation and objective [N] of every assignment that gives each client its k_c experts."""
    choices = [
        [np.isin(np.arange(problem.experts), chosen) for chosen in subsets]
        for subsets in (
            itertools.combinations(range(problem.experts), int(k)) for k in problem.capacity
        )
    ]
    X = np.array(list(itertools.product(*choices)))  # [N, C, E]
    load = np.einsum("nce,c->ne", X, problem.samples)
    outside = np.maximum(load - problem.upper, 0) + np.maximum(problem.lower - load, 0)
    return outside.sum(axis=1), (X * problem.quality).sum(axis=(1, 2))


def rounding(problem: Problem) -> float:
    """The quality that an integer program of a million steps cannot see."""
    return 1e-6 * float(np.ptp(problem.quality)) * int(problem.capacity.sum()) + 1e-9


def sample_problem(seed: int = 3, clients: int = 8, experts: int = 8, **changes: Any) -> Problem:
    rng = np.random.default_rng(5)
    samples = rng.integers(40, 300, clients)
    share = samples.sum() * 2 / experts
    fields: dict[str, Any] = {
        "quality": rng.random((clients, experts)),
        "samples": samples,
        "capacity": np.full(clients, 2),
        "lower": np.full(experts, 0.8 * share),
        "upper": np.full(experts, 1.2 * share),
        "seed": seed,
    }
    return Problem(**{**fields, **changes})


@settings(max_examples=150, deadline=None)
@given(problems())
def test_flex_moe_is_as_good_as_brute_force(problem: Problem) -> None:
    answer = policy("flex_moe")(problem)
    violations, objectives = everything(problem)
    least = violations.min()
    best = objectives[violations <= least + 1e-9].max()
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert answer.violation == pytest.approx(least, abs=1e-9)
    assert answer.violation_bound == pytest.approx(least, abs=0.01)
    assert answer.violation_bound <= least + 1e-9
    assert best - rounding(problem) <= answer.objective <= best + 1e-9
    assert best - 1e-9 <= answer.bound <= best + rounding(problem)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.0, 1e-6, 1e-4]))
def test_flex_moe_stopped_early_still_answers_with_true_certificates(
    problem: Problem, work_limit: float
) -> None:
    answer = engine.assign(problem, work_limit)
    violations, objectives = everything(problem)
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert answer.violation_bound <= violations.min() + 1e-9
    assert answer.bound >= objectives[violations <= answer.violation + 1e-9].max() - 1e-9
    assert answer.gap >= 0


def test_flex_moe_without_work_keeps_its_balanced_start() -> None:
    problem = sample_problem()
    stopped, finished = engine.assign(problem, 0.0), engine.assign(problem)
    assert (stopped.solver, finished.solver) == ("balanced-start", "cp-sat")
    assert stopped.objective < finished.objective <= stopped.bound
    assert stopped.gap > 0.01 and finished.gap < 1e-5


def test_the_bound_covers_differences_too_small_for_the_integer_program() -> None:
    """Experts 0 and 1 look alike at a million steps; 2 and 3 are closed."""
    answers = [
        engine.assign(
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


def test_flex_moe_repeats_itself() -> None:
    """Also where the work limit ends the search: bounds that no assignment can keep."""
    problem = sample_problem(lower=np.full(8, 301.5), upper=np.full(8, 301.5))
    first, second = engine.assign(problem, 0.1), engine.assign(problem, 0.1)
    assert first.violation > first.violation_bound + 1
    assert (first.X == second.X).all()
    assert (first.objective, first.bound) == (second.objective, second.bound)


@settings(max_examples=30, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_flex_moe_does_not_depend_on_the_order_of_clients_and_experts(
    problem: Problem, random: Any
) -> None:
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
    here, there = engine.assign(problem), engine.assign(moved)
    assert there.violation == pytest.approx(here.violation, abs=1e-9)
    assert there.objective == pytest.approx(here.objective, abs=rounding(problem))


def test_flex_moe_permutes_its_answer_with_the_problem() -> None:
    """With distinct qualities the best answer is one, and moves along with clients and experts."""
    problem = sample_problem()
    rows, columns = np.roll(np.arange(8), 3), np.arange(8)[::-1]
    moved = sample_problem(
        quality=problem.quality[np.ix_(rows, columns)], samples=problem.samples[rows]
    )
    there, here = engine.assign(moved), engine.assign(problem)
    assert here.violation == 0 and here.gap < 1e-5
    assert (here.X[np.ix_(rows, columns)] == there.X).all()


@pytest.mark.parametrize("name", ["flex_moe", "greedy", "random"])
def test_the_seed_and_not_the_order_breaks_ties(name: str) -> None:
    """Four equal clients and experts: over 64 seeds each pair is drawn 16 times on average."""
    counts = sum(
        policy(name)(
            Problem(
                np.ones((4, 4)),
                np.full(4, 10),
                np.ones(4, int),
                np.zeros(4),
                np.full(4, 10.0),
                seed,
            )
        ).X.astype(int)
        for seed in range(64)
    )
    assert np.min(counts) >= 4 and np.max(counts) <= 32


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_keeps_the_contract(name: str) -> None:
    problem = sample_problem(lower=np.repeat([500.0, 0.0], 4), upper=np.repeat([600.0, 100.5], 4))
    answer, again = policy(name)(problem), policy(name)(problem)
    assert answer.X.dtype == np.bool_ and answer.X.shape == (8, 8)
    assert (answer.X == again.X).all()
    for e in range(8):
        load = sum(int(problem.samples[c]) for c in range(8) if answer.X[c, e])
        assert answer.load[e] == load
        nearest = min(max(load, problem.lower[e]), problem.upper[e])
        assert answer.violated[e] == pytest.approx(load - nearest)
    objective = sum(problem.quality[c, e] for c, e in np.argwhere(answer.X))
    assert answer.objective == pytest.approx(objective)
    assert answer.violation == pytest.approx(np.abs(answer.violated).sum())
    assert answer.solve_s > 0 and answer.solver


@settings(max_examples=60, deadline=None)
@given(problems())
def test_greedy_takes_the_best_and_ignores_the_load(problem: Problem) -> None:
    answer = policy("greedy")(problem)
    _, objectives = everything(problem)
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert answer.objective == pytest.approx(objectives.max(), abs=1e-9)
    assert answer.bound == answer.objective and answer.gap == 0


def test_greedy_crowds_the_expert_that_all_prefer_and_flex_moe_does_not() -> None:
    problem = sample_problem(quality=np.tile(np.linspace(1, 0, 8), (8, 1)))
    assert (policy("greedy")(problem).load > 0).tolist() == [True] * 2 + [False] * 6
    assert policy("flex_moe")(problem).violation == 0


@settings(max_examples=60, deadline=None)
@given(problems())
def test_random_gives_each_client_its_number_of_experts(problem: Problem) -> None:
    answer = policy("random")(problem)
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert math.isnan(answer.bound) and math.isnan(answer.gap)


def test_random_draws_every_pair_of_experts() -> None:
    pairs = [
        tuple(np.flatnonzero(row).tolist())
        for seed in range(40)
        for row in policy("random")(sample_problem(seed, experts=4)).X
    ]
    counts = [pairs.count(pair) for pair in itertools.combinations(range(4), 2)]
    assert sum(counts) == 320 and min(counts) > 30  # 53 on average


def test_full_gives_all_to_all_whatever_the_capacity() -> None:
    problem = sample_problem()
    answer = policy("full")(problem)
    assert answer.X.all() and math.isnan(answer.bound)
    assert (answer.load == problem.samples.sum()).all()


def test_one_client_and_one_expert() -> None:
    problem = Problem(
        quality=np.array([[0.25]]),
        samples=np.array([7]),
        capacity=np.array([1]),
        lower=np.array([0.0]),
        upper=np.array([5.0]),
        seed=0,
    )
    for name in POLICIES:
        answer = policy(name)(problem)
        assert answer.X.tolist() == [[True]] and answer.objective == 0.25
        assert answer.load.tolist() == [7] and answer.violated.tolist() == [2.0]


def test_an_unknown_policy_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'fair'.*flex_moe, greedy, random, full"):
        policy("fair")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": np.full((8, 8), np.nan)}, r"quality\[0, 0\] must be a finite number, not nan"),
        ({"quality": np.full((8, 8), np.inf)}, r"quality\[0, 0\] must be a finite number"),
        ({"quality": np.zeros((0, 8))}, "at least one of each"),
        ({"quality": np.zeros((8, 0))}, "at least one of each"),
        ({"quality": np.zeros(8)}, "at least one of each"),
        ({"quality": "high"}, "quality must be an array of numbers"),
        ({"quality": np.zeros((7, 8))}, r"samples must have shape \(7,\)"),
        ({"samples": np.full(8, 2.5)}, "samples must be an array of whole numbers"),
        ({"samples": [1, 1, 1, 0, 1, 1, 1, 1]}, r"samples\[3\] must be 1 to \d+, not 0"),
        ({"capacity": np.full(8, 0)}, r"capacity\[0\] must be 1 to 8"),
        ({"capacity": np.full(8, 9)}, r"capacity\[0\] must be 1 to 8.* not 9"),
        ({"capacity": np.ones((8, 1), int)}, r"capacity must have shape \(8,\)"),
        ({"lower": np.full(8, -1.0)}, r"lower\[0\] must be 0 or more, not -1.0"),
        ({"lower": np.full(8, np.inf), "upper": np.full(8, np.inf)}, r"lower\[0\]"),
        ({"lower": np.full(7, 1.0)}, r"lower must have shape \(8,\)"),
        ({"upper": np.full(8, 0.5)}, r"upper\[0\] must be at least its lower bound"),
        ({"upper": np.full(8, np.nan)}, r"upper\[0\]"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_a_bad_problem_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError, match=message) as caught:
        sample_problem(**changes)
    assert "\n" not in str(caught.value)


def test_a_problem_does_not_change_with_the_arrays_it_was_made_of() -> None:
    quality = np.ones((8, 8))
    problem = sample_problem(quality=quality)
    quality[:] = 0
    assert (problem.quality == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        problem.quality[0, 0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.seed = 4  # type: ignore[misc]
