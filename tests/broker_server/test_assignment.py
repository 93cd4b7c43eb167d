"""The contract of problem and answer, kept by every assignment policy."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server import load
from broker_server.assignment import POLICIES, Assignment, AssignmentPolicy, Problem, assign, policy
from edge_runtime.errors import ConfigError, FleetError
from tests.broker_server.sample_problems import everything, problems, sample_problem

FREE = [name for name in POLICIES if name != "fixed"]
"""Policies that decide for themselves."""
BY_CAPACITY = [name for name in FREE if name != "full"]
"""Those that give each client its k_c experts."""
EXAMPLES = settings(max_examples=30, deadline=None)


@pytest.fixture
def decide(request: pytest.FixtureRequest, tmp_path: Path) -> AssignmentPolicy:
    """The policy that the test is about; `fixed` gives a client one expert, by its place."""
    if request.param != "fixed":
        return policy(request.param)

    def from_file(problem: Problem) -> Assignment:
        rows = problem.clients if problem.places is None else int(problem.places.max()) + 1
        X = np.arange(problem.experts) == np.arange(rows)[:, None] % problem.experts
        np.save(tmp_path / "X.npy", X)
        return policy("fixed", file=tmp_path / "X.npy")(problem)

    return from_file


def check(problem: Problem, answer: Assignment) -> None:
    """Everything that an answer says of its `X`, computed anew, one pair at a time."""
    X, loads, objective = answer.X, [0.0] * problem.experts, 0.0
    assert X.dtype == np.bool_ and X.shape == problem.quality.shape
    for c, e in np.argwhere(X):
        own = problem.samples[c] if problem.weight is None else problem.weight[c, e]
        loads[e] += float(own)
        objective += float(problem.quality[c, e])
    scale = 1 + float(np.abs(problem.quality).max()) * X.sum()
    assert answer.objective == pytest.approx(objective, abs=1e-12 * scale)
    assert answer.load == pytest.approx(np.array(loads))
    outside = [
        a - min(max(a, low), high)
        for a, low, high in zip(loads, problem.lower, problem.upper, strict=True)
    ]
    assert answer.violated == pytest.approx(np.array(outside), abs=1e-9 * (1 + sum(loads)))
    assert answer.violation == pytest.approx(sum(map(abs, outside)), abs=1e-9 * (1 + sum(loads)))
    assert answer.solve_s >= 0 and answer.solver
    if math.isnan(answer.bound):
        assert math.isnan(answer.gap)
    else:
        assert answer.bound >= answer.objective and answer.gap >= 0
        expected = (answer.bound - answer.objective) / (abs(answer.bound) or 1)
        assert answer.gap == pytest.approx(expected)
    assert math.isnan(answer.violation_bound) or answer.violation_bound <= answer.violation


@pytest.mark.parametrize("decide", POLICIES, indirect=True)
@pytest.mark.parametrize("weighted", [False, True])
def test_an_answer_says_the_truth_and_is_the_same_again(
    decide: AssignmentPolicy, weighted: bool
) -> None:
    weight = np.random.default_rng(6).random((8, 8)) * 200 if weighted else None
    problem = sample_problem(
        lower=np.repeat([500.0, 0.0], 4),
        upper=np.repeat([600.0, 100.5], 4),
        weight=weight,
        history=np.arange(8) * 100.0,
        places=np.arange(8)[::-1] + 3,
        round=5,
    )
    answer, again = decide(problem), decide(problem)
    check(problem, answer)
    assert (answer.X == again.X).all()


@pytest.mark.parametrize("name", BY_CAPACITY)
@EXAMPLES
@given(problem=st.one_of(problems(), problems(weighted=True)))
def test_each_client_gets_its_number_of_experts_and_each_certificate_is_true(
    name: str, problem: Problem
) -> None:
    answer = policy(name)(problem)
    check(problem, answer)
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    violations, objectives = everything(problem)
    if not math.isnan(answer.bound):
        assert answer.bound >= objectives[violations <= answer.violation].max() - 1e-9
    if not math.isnan(answer.violation_bound):
        assert answer.violation_bound <= violations.min() + 1e-9


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize(
    "changes",
    [
        {"quality": np.zeros((8, 8))},
        {"quality": np.full((8, 8), -1e29)},
        {"quality": 1e9 + np.arange(64).reshape(8, 8) / 64},
        {"quality": np.arange(64).reshape(8, 8) * 1e-320},
        {"quality": np.arange(64, dtype=np.float32).reshape(8, 8)},
        {"samples": np.full(8, 10**9)},
        {"samples": np.array([10**9, 1, 1, 1, 1, 1, 1, 1])},
        {"upper": np.full(8, np.inf)},
        {"lower": np.full(8, 1e12), "upper": np.full(8, 1e13)},
        {"capacity": np.full(8, 8)},
        {"weight": np.zeros((8, 8))},
        {"weight": np.full((8, 8), 8e9)},
    ],
    ids=[
        "constant",
        "low",
        "offset",
        "tiny",
        "float32",
        "huge",
        "one-huge",
        "unbounded",
        "out-of-reach",
        "all",
        "weightless",
        "heavy",
    ],
)
def test_strange_numbers_give_no_nan(name: str, changes: dict[str, Any]) -> None:
    problem = sample_problem(**changes)
    answer = policy(name)(problem)
    check(problem, answer)
    wanted = 8 if name == "full" else problem.capacity
    assert (answer.X.sum(axis=1) == wanted).all()
    assert np.isfinite([answer.objective, answer.violation]).all()


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


@settings(max_examples=60, deadline=None)
@given(problems())
def test_greedy_takes_the_best_and_ignores_the_load(problem: Problem) -> None:
    answer = policy("greedy")(problem)
    _, objectives = everything(problem)
    assert answer.objective == pytest.approx(objectives.max(), abs=1e-9)
    assert answer.bound == answer.objective and answer.gap == 0


def test_greedy_crowds_the_expert_that_all_prefer_and_flex_moe_does_not() -> None:
    problem = sample_problem(quality=np.tile(np.linspace(1, 0, 8), (8, 1)))
    assert (policy("greedy")(problem).load > 0).tolist() == [True] * 2 + [False] * 6
    assert policy("flex_moe")(problem).violation == 0


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


@pytest.mark.parametrize("decide", POLICIES, indirect=True)
def test_one_client_and_one_expert(decide: AssignmentPolicy) -> None:
    problem = Problem(
        quality=np.array([[0.25]]),
        samples=np.array([7]),
        capacity=np.array([1]),
        lower=np.array([0.0]),
        upper=np.array([5.0]),
        seed=0,
    )
    answer = decide(problem)
    assert answer.X.tolist() == [[True]] and answer.objective == 0.25
    assert answer.load.tolist() == [7] and answer.violated.tolist() == [2.0]


@pytest.mark.parametrize("decide", BY_CAPACITY, indirect=True)
def test_one_client_of_many_experts_and_many_clients_of_one(decide: AssignmentPolicy) -> None:
    quality = np.array([[0.5, 0.75, 0.25]])
    alone = decide(Problem.balanced(quality, [9], [2], delta=0.0))
    assert alone.X.sum() == 2 and alone.load.sum() == 18
    single = decide(Problem.balanced(quality.T, [9, 8, 7], [1, 1, 1], delta=0.0))
    assert single.X.all() and single.load.tolist() == [24] and single.violation == 0


def test_an_unknown_policy_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'fair'.*flex_moe, .*greedy, random, .*full"):
        policy("fair")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": np.full((8, 8), np.nan)}, r"quality\[0, 0\] must be a finite number, not nan"),
        ({"quality": np.full((8, 8), np.inf)}, r"quality\[0, 0\] must be a finite number"),
        ({"quality": np.full((8, 8), -np.inf)}, r"quality\[0, 0\] must be a finite number"),
        ({"quality": np.zeros((0, 8))}, "at least one of each"),
        ({"quality": np.zeros((8, 0))}, "at least one of each"),
        ({"quality": np.zeros(8)}, "at least one of each"),
        ({"quality": "high"}, "quality must be an array of numbers"),
        ({"quality": [[1.0], [1.0, 2.0]]}, "quality must be an array of numbers"),
        ({"quality": np.zeros((7, 8))}, r"samples must have shape \(7,\)"),
        ({"samples": np.full(8, 2.5)}, "samples must be an array of whole numbers"),
        ({"samples": [1, 1, 1, 0, 1, 1, 1, 1]}, r"samples\[3\] must be 1 to \d+, not 0"),
        ({"samples": np.full(8, 10**9 + 1)}, r"samples\[0\] must be 1 to 1000000000, not"),
        ({"capacity": np.full(8, 0)}, r"capacity\[0\] must be 1 to 8"),
        ({"capacity": np.full(8, 9)}, r"capacity\[0\] must be 1 to 8.* not 9"),
        ({"capacity": np.ones((8, 1), int)}, r"capacity must have shape \(8,\)"),
        ({"lower": np.full(8, -1.0)}, r"lower\[0\] must be 0 or more, not -1.0"),
        ({"lower": np.full(8, np.inf), "upper": np.full(8, np.inf)}, r"lower\[0\]"),
        ({"lower": np.full(7, 1.0)}, r"lower must have shape \(8,\)"),
        ({"upper": np.full(8, 0.5)}, r"upper\[0\] must be at least its lower bound"),
        ({"upper": np.full(8, np.nan)}, r"upper\[0\]"),
        ({"weight": np.ones(8)}, r"weight must have shape \(8, 8\)"),
        ({"weight": np.full((8, 8), -1.0)}, r"weight\[0, 0\] must be a number of 0 or more"),
        ({"weight": np.full((8, 8), np.nan)}, r"weight\[0, 0\] must be .* not nan"),
        ({"weight": np.full((8, 8), np.inf)}, r"weight\[0, 0\] must be .* not inf"),
        ({"weight": np.full((8, 8), 8e9 + 1)}, r"weight\[0, 0\] must be a number of 0 or more"),
        ({"history": np.full(8, np.nan)}, r"history\[0\] must be a number of 0 or more, not nan"),
        ({"history": np.full(8, np.inf)}, r"history\[0\] must be a number of 0 or more, not inf"),
        ({"history": np.ones(7)}, r"history must have shape \(8,\)"),
        ({"places": np.full(8, -1)}, r"places\[0\] must be a number of 0 or more, not -1"),
        ({"places": np.full(8, 0.5)}, "places must be an array of whole numbers"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"round": 0}, "round 1 or more, not 3 and 0"),
    ],
)
def test_a_bad_problem_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError, match=message) as caught:
        sample_problem(**changes)
    assert "\n" not in str(caught.value)


def test_a_bad_number_is_named_by_its_place_in_a_later_block() -> None:
    quality = np.zeros((70_000, 64), np.float32)
    quality[69_999, 3] = np.nan
    problem: Any = (quality, np.ones(70_000, int), np.ones(70_000, int))
    with pytest.raises(FleetError, match=r"quality\[69999, 3\] must be a finite number, not nan"):
        Problem(*problem, np.zeros(64), np.ones(64), 0)


def test_a_problem_does_not_change_with_the_arrays_it_was_made_of() -> None:
    quality = np.ones((8, 8))
    problem = sample_problem(quality=quality)
    quality[:] = 0
    assert (problem.quality == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        problem.quality[0, 0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.seed = 4  # type: ignore[misc]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_memory_map_is_not_copied(tmp_path: Path, kind: Any) -> None:
    quality = np.random.default_rng(0).random((8, 8)).astype(kind)
    np.save(tmp_path / "Q.npy", quality)
    mapped = np.load(tmp_path / "Q.npy", mmap_mode="r")
    problem = sample_problem(quality=mapped)
    assert np.shares_memory(problem.quality, mapped) and problem.quality.dtype == kind
    balanced = Problem.balanced(mapped, problem.samples, problem.capacity, delta=0.1)
    assert np.shares_memory(balanced.quality, mapped)
    copied = sample_problem(quality=np.load(tmp_path / "Q.npy", mmap_mode="r+"))
    assert (copied.quality == quality).all() and not copied.quality.flags.writeable


@pytest.mark.parametrize("name", BY_CAPACITY)
def test_a_memory_map_is_decided_as_an_array_is(tmp_path: Path, name: str) -> None:
    quality = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    np.save(tmp_path / "Q.npy", quality)
    mapped = sample_problem(quality=np.load(tmp_path / "Q.npy", mmap_mode="r"))
    assert (policy(name)(mapped).X == policy(name)(sample_problem(quality=quality)).X).all()


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 3)), min_size=1, max_size=5),
    st.floats(0, 1),
    st.sampled_from([0.0, load.GRAIN, 2.0]),
    st.none() | st.lists(st.integers(0, 900), min_size=3, max_size=3),
)
def test_balanced_takes_its_bounds_from_the_history(
    clients: list[tuple[int, int]], delta: float, grain: float, history: list[int] | None
) -> None:
    samples, capacity = np.array(clients).T
    quality = np.zeros((len(clients), 3))
    problem = Problem.balanced(
        quality, samples, capacity, delta=delta, grain=grain, history=history, seed=4
    )
    past: NDArray[Any] = np.array(history or [0, 0, 0])
    lower, upper = load.bounds(past, samples, capacity, delta, grain)
    assert problem.lower == pytest.approx(lower) and problem.upper == pytest.approx(upper)
    assert problem.history is not None and problem.history.tolist() == past.tolist()
    assert problem.seed == 4


@pytest.mark.parametrize("bad", [-0.01, math.nan, math.inf])
def test_balanced_refuses_a_bad_tolerance(bad: float) -> None:
    with pytest.raises(ConfigError, match="delta: must be 0 to"):
        Problem.balanced(np.zeros((2, 2)), [1, 1], [1, 1], delta=bad)
    with pytest.raises(ConfigError, match="grain: must be 0 to"):
        Problem.balanced(np.zeros((2, 2)), [1, 1], [1, 1], delta=0.1, grain=bad)


def test_balanced_says_what_is_wrong_with_the_fleet_before_it_makes_bounds() -> None:
    with pytest.raises(FleetError, match=r"quality must be \[clients, experts\]"):
        Problem.balanced(np.zeros((0, 3)), [], [], delta=0.1)
    with pytest.raises(FleetError, match=r"samples must have shape \(2,\)"):
        Problem.balanced(np.zeros((2, 3)), [5], [1, 1], delta=0.1)
    with pytest.raises(FleetError, match=r"history must have shape \(3,\)"):
        Problem.balanced(np.zeros((2, 3)), [5, 5], [1, 1], delta=0.1, history=[1.0])


def test_assign_balances_lists_of_ones_own() -> None:
    answer = assign([[0.9, 0.1], [0.8, 0.3]], [10, 10], [1, 1], delta=0.05)
    assert answer.X.tolist() == [[True, False], [False, True]]
    assert answer.load.tolist() == [10, 10] and answer.violation == 0


def test_assign_passes_on_history_policy_seed_and_options() -> None:
    # An expert with a past gets less.
    behind = assign([[0.9, 0.1], [0.8, 0.3]], [10, 10], [1, 1], history=[20, 0])
    assert behind.load.tolist() == [0, 20]
    # Both like the first expert, and within two mean clients of its share both may have it.
    loose = assign([[0.9, 0.1], [0.8, 0.3]], [10, 10], [1, 1], grain=2)
    assert loose.load.tolist() == [20, 0] and loose.violation == 0
    crowded = assign([[0.9, 0.1], [0.8, 0.3]], [10, 10], [1, 1], name="greedy")
    assert crowded.load.tolist() == [20, 0] and crowded.solver == "greedy"
    drawn = {
        tuple(assign([[1.0] * 4] * 2, [5, 5], [1, 1], seed=seed, name="random").load)
        for seed in range(20)
    }
    assert len(drawn) > 3
    with pytest.raises(TypeError, match="speed"):
        assign([[1.0]], [5], [1], name="greedy", speed=9)
