"""The desirability policy against every order of clients, and its own promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import Problem, policy
from edge_runtime.errors import ConfigError

NUMBERS = st.sampled_from([st.floats(-2, 2), st.sampled_from([0.0, 0.5, 1.0])])


def make_problem(quality: Any, **changes: Any) -> Problem:
    quality = np.asarray(quality)
    clients, experts = quality.shape
    fields: dict[str, Any] = {
        "quality": quality,
        "samples": np.full(clients, 10),
        "capacity": np.ones(clients, int),
        "lower": np.zeros(experts),
        "upper": np.full(experts, np.inf),
        "seed": 0,
    }
    return Problem(**{**fields, **changes})


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 4 clients and 5 experts, often with equal qualities."""
    C, E = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    numbers = draw(NUMBERS)

    def table(values: st.SearchStrategy[float]) -> NDArray[np.float64]:
        return np.array([[draw(values) for _ in range(E)] for _ in range(C)])

    return make_problem(
        table(numbers),
        samples=np.array([draw(st.integers(1, 30)) for _ in range(C)]),
        capacity=np.array([draw(st.integers(1, E)) for _ in range(C)]),
        seed=draw(st.integers(0, 2**40)),
        weight=table(st.integers(0, 20).map(float)) if draw(st.booleans()) else None,
        history=table(st.integers(0, 50).map(float))[0] if draw(st.booleans()) else None,
    )


def scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def follows(X: NDArray[np.bool_], problem: Problem, order: Any, penalty: float) -> bool:
    """Whether clients that choose in this order, and break ties as they like, can give `X`."""
    experts = range(problem.experts)
    usage = [0.0] * problem.experts if problem.history is None else problem.history.tolist()
    for c in order:
        fit, used = scaled(problem.quality[c].tolist()), scaled(usage)
        d = [fit[e] - penalty * used[e] for e in experts]
        taken = [d[e] for e in experts if X[c, e]]
        left = [d[e] for e in experts if not X[c, e]]
        if len(taken) != problem.capacity[c] or min(taken) < max(left, default=-1e9) - 1e-12:
            return False
        load = problem.samples if problem.weight is None else problem.weight[c]
        for e in experts:
            usage[e] += X[c, e] * float(load[c if problem.weight is None else e])
    return True


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_the_clients_choose_one_after_the_other(problem: Problem, penalty: float) -> None:
    answer = policy("desirability", penalty=penalty)(problem)
    orders = itertools.permutations(range(problem.clients))
    assert any(follows(answer.X, problem, order, penalty) for order in orders)
    assert math.isnan(answer.bound) and answer.solver == "desirability"
    assert (policy("desirability", penalty=penalty)(problem).X == answer.X).all()


def test_the_penalty_is_1_by_default() -> None:
    rng = np.random.default_rng(1)
    problem = make_problem(rng.random((40, 8)), samples=rng.integers(50, 500, 40))
    tables = {p: policy("desirability", penalty=p)(problem).X.tobytes() for p in (0.5, 1.0, 2.0)}
    assert len(set(tables.values())) == 3
    assert policy("desirability")(problem).X.tobytes() == tables[1.0]


def test_without_a_penalty_it_is_greedy() -> None:
    rng = np.random.default_rng(2)
    problem = make_problem(rng.random((20, 6)), capacity=rng.integers(1, 6, 20))
    greedy = policy("greedy")(problem)
    assert (policy("desirability", penalty=0.0)(problem).X == greedy.X).all()


def test_a_large_penalty_spreads_what_all_prefer() -> None:
    problem = make_problem(np.tile(np.linspace(1, 0, 6), (30, 1)))
    assert policy("greedy")(problem).load.tolist() == [300, 0, 0, 0, 0, 0]
    assert policy("desirability", penalty=1e6)(problem).load.tolist() == [50] * 6


def test_who_chooses_first_changes_with_the_seed() -> None:
    """Both prefer expert 0; whoever is first gets it, the other finds it used."""
    winners = [
        policy("desirability", penalty=2.0)(make_problem([[1, 0.5], [1, 0.5]], seed=seed)).X[0, 0]
        for seed in range(64)
    ]
    assert 16 <= sum(winners) <= 48


def test_an_expert_with_a_past_is_avoided() -> None:
    quality = [[1.0, 0.4, 0.0]]
    fresh = make_problem(quality)
    used = make_problem(quality, history=np.array([100.0, 20.0, 0.0]))
    assert policy("desirability")(fresh).X.tolist() == [[True, False, False]]
    # d = 1 - 1, 0.4 - 0.2, 0 - 0
    assert policy("desirability")(used).X.tolist() == [[False, True, False]]


def test_the_history_is_left_as_it_is() -> None:
    history = np.array([3.0, 0.0])
    policy("desirability")(problem := make_problem([[1, 0], [0, 1]], history=history))
    assert problem.history is not None
    assert problem.history.tolist() == history.tolist() == [3.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.5, 4.0, 1024.0]))
def test_only_differences_within_a_row_matter(problem: Problem, factor: float) -> None:
    # Small whole numbers of eighths, times powers of 2: what is equal stays exactly equal.
    quality = np.rint(problem.quality * 8) * 0.125
    moved = quality * factor + np.arange(problem.clients)[:, None]
    fields = {name: getattr(problem, name) for name in ("samples", "capacity", "seed", "history")}
    here = policy("desirability")(make_problem(quality, **fields))
    there = policy("desirability")(make_problem(moved, **fields))
    assert (here.X == there.X).all()


def test_the_order_of_experts_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    quality, columns = rng.random((12, 7)), rng.permutation(7)
    fields = {"samples": rng.integers(50, 500, 12), "capacity": np.full(12, 2)}
    # At a penalty of 1 the best expert, most used, ties with the worst, least used.
    decide = policy("desirability", penalty=0.7)
    here = decide(make_problem(quality, **fields))
    there = decide(make_problem(quality[:, columns], **fields))
    assert (here.X[:, columns] == there.X).all()


def test_the_seed_breaks_ties() -> None:
    alone = [policy("desirability")(make_problem(np.ones((1, 4)), seed=seed)) for seed in range(64)]
    counts = np.sum([answer.X for answer in alone], axis=0)
    assert np.min(counts) >= 4 and np.max(counts) <= 32  # 16 on average
    problems = (make_problem(np.ones((4, 4)), seed=seed) for seed in range(64))
    counts = np.sum([policy("desirability")(problem).X for problem in problems], axis=0)
    assert np.min(counts) >= 4 and np.max(counts) <= 32  # 16 on average


@pytest.mark.parametrize("scale", [1e-320, 1e-30, 1e29])
def test_tiny_and_huge_qualities_are_ranked_alike(scale: float) -> None:
    quality = np.array([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]]) * scale
    answer = policy("desirability", penalty=0.0)(make_problem(quality))
    assert answer.X.tolist() == [[True, False, False], [False, True, False]]


def test_single_precision_is_ranked_as_double() -> None:
    quality = np.random.default_rng(4).random((30, 9), np.float32)
    single = policy("desirability")(make_problem(quality))
    double = policy("desirability")(make_problem(quality.astype(np.float64)))
    assert (single.X == double.X).all()
    close = np.array([[-1, 1e-9, 3e-9, 2e-9]], np.float32)  # less -1, equal in single precision
    chosen = {int(policy("desirability")(make_problem(close, seed=s)).X.argmax()) for s in range(9)}
    assert chosen == {2}


@pytest.mark.parametrize("penalty", [-0.1, math.nan, math.inf])
def test_a_bad_penalty_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match=r"penalty must be a number of 0 or more, not"):
        policy("desirability", penalty=penalty)(make_problem([[1.0]]))
