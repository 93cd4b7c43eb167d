"""Dear experts: who gives what for them, and that balance hardly suffers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from broker_server.assignment import Assignment, Problem
from broker_server.budget import Allowance
from broker_server.capacity import Capacity
from broker_server.dear import dear_pairs, without_dear

COSTS = [900, 900, 300, 200]
ALLOWED = {"a": Allowance(1500, 0, 800, COSTS, COSTS)}
DEAR = {"a": np.array([True, True, False, False])}


def made(X: ArrayLike, samples: ArrayLike) -> tuple[Assignment, Problem]:
    """An assignment, and the problem that it answers."""
    table = np.array(X, np.bool_)
    problem = Problem.balanced(np.ones(table.shape), samples, table.sum(axis=1), delta=0.1)
    found = Assignment.of(problem, table, solver="s", solve_s=1.0, bound=9.0, violation_bound=0.0)
    return found, problem


def test_who_has_a_budget_has_dear_experts() -> None:
    held = {"a": Capacity(2, "link"), "b": Capacity(1, "asked")}
    dear = dear_pairs(held, ALLOWED)
    assert list(dear) == ["a"] and dear["a"].tolist() == DEAR["a"].tolist()


def test_an_expert_is_exchanged_with_the_client_that_is_most_alike() -> None:
    before, problem = made(
        [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], [10, 30, 12, 10]
    )
    after = without_dear(before, problem, ["a", "b", "c", "d"], ALLOWED, DEAR)
    assert after.X.astype(int).tolist() == [
        [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0],
    ]  # fmt: skip
    assert math.isnan(after.bound) and after.violation_bound == 0.0
    assert (after.solver, after.solve_s) == ("s", 1.0)


def test_without_another_to_give_one_the_cheapest_is_taken() -> None:
    before, problem = made([[1, 0, 0, 0], [1, 0, 0, 0]], [10, 20])
    after = without_dear(before, problem, ["a", "b"], ALLOWED, DEAR)
    assert after.X.astype(int).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]


def test_what_nobody_else_trains_stays() -> None:
    before, problem = made([[1, 0, 0, 0], [0, 1, 0, 0]], [10, 20])
    assert without_dear(before, problem, ["a", "b"], ALLOWED, DEAR) is before
    assert without_dear(before, problem, ["a", "b"], {}, {}) is before


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(2, 6))
def test_nobody_gets_more_or_fewer_and_no_expert_is_left_alone(
    seed: int, clients: int, experts: int
) -> None:
    rng = np.random.default_rng(seed)
    k = rng.integers(1, experts + 1, clients)
    X = np.argsort(rng.random((clients, experts)), axis=1) < k[:, None]
    before, problem = made(X, rng.integers(1, 100, clients))
    names = [f"c{i}" for i in range(clients)]
    costs = rng.integers(1, 1000, (clients, experts))
    has = [i for i in range(clients) if rng.random() < 0.6]
    allowed = {names[i]: Allowance(900, 0, 0, costs[i].tolist(), costs[i].tolist()) for i in has}
    dear = {names[i]: rng.random(experts) < 0.5 for i in has}
    after = without_dear(before, problem, names, allowed, dear)
    table = np.array([dear.get(name, np.zeros(experts, np.bool_)) for name in names])
    assert after.X.sum(axis=1).tolist() == k.tolist()
    assert ((after.X.sum(axis=0) == 0) <= (X.sum(axis=0) == 0)).all()
    assert (after.X & table).sum() <= (X & table).sum()
    assert not (after.X & table & ~X).any()
    assert (after is before) == (after.X == X).all()
