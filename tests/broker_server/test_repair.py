"""Plans, exits and their repair, each against what is computed anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import Problem
from broker_server.assignment.flex_moe.exits import Exits
from broker_server.assignment.flex_moe.neighbourhood import settle
from broker_server.assignment.flex_moe.plan import Plan
from broker_server.assignment.flex_moe.repair import fit, improve, move_out
from broker_server.assignment.result import objective_of
from tests.broker_server.sample_problems import everything, problems, sample_problem

pytestmark = pytest.mark.filterwarnings("error")

SMALL = st.booleans().flatmap(lambda weighted: problems(clients=8, experts=5, weighted=weighted))


def some_assignment(problem: Problem, rng: np.random.Generator) -> NDArray[np.bool_]:
    ranks = rng.random(problem.quality.shape).argsort(axis=1).argsort(axis=1)
    chosen: NDArray[np.bool_] = ranks < problem.capacity[:, None]
    return chosen


def some_prices(problem: Problem, rng: np.random.Generator) -> NDArray[np.float64]:
    """Far from good: what clients hold is often worth less to them than what they do not."""
    return rng.normal(size=problem.experts) * rng.choice([0.0, 0.01, 1.0])


def weights_of(problem: Problem) -> NDArray[np.float64]:
    if problem.weight is not None:
        return problem.weight
    return np.broadcast_to(problem.samples[:, None].astype(np.float64), problem.quality.shape)


def assert_in_step(plan: Plan) -> None:
    """The plan gives each client its k_c experts, and knows its loads."""
    problem = plan.problem
    assert (plan.X.sum(axis=1) == problem.capacity).all()
    load = (weights_of(problem) * plan.X).sum(axis=0)
    np.testing.assert_allclose(plan.load, load, rtol=1e-12, atol=1e-9)
    outside = np.maximum(load - problem.upper, 0) - np.maximum(problem.lower - load, 0)
    np.testing.assert_allclose(plan.violated, outside, atol=1e-8)
    assert plan.violation == pytest.approx(np.abs(outside).sum(), abs=1e-8)


def messy(seed: int, clients: int = 60, experts: int = 6) -> Problem:
    """Clients of very different sizes, equal qualities, and bounds that are hard to keep."""
    rng = np.random.default_rng(seed)
    samples = np.maximum(1, (rng.pareto(1.0, clients) * 20).astype(np.int64))
    capacity = rng.integers(1, experts + 1, clients)
    fair = float(samples @ capacity) / experts
    weight = None
    if seed % 2:
        weight = samples[:, None] * np.where(rng.random((clients, experts)) < 0.5, 0.0, 1.7)
    return Problem(
        quality=np.round(rng.normal(size=(clients, experts)), seed % 3),
        samples=samples,
        capacity=capacity,
        lower=fair * rng.random(experts),
        upper=np.where(rng.random(experts) < 0.3, math.inf, fair * (1 + rng.random(experts))),
        seed=seed,
        weight=weight,
    )


@settings(max_examples=100, derandomize=True)
@given(SMALL, st.integers(0, 2**32))
def test_a_move_is_worth_what_the_plan_foretold(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = Plan(problem, some_assignment(problem, rng))
    for _ in range(5):
        assert_in_step(plan)
        client = int(rng.integers(problem.clients))
        e, f = (int(i) for i in rng.integers(problem.experts, size=2))
        assert plan.may_move(client, e, f) == (plan.X[client, e] and not plan.X[client, f])
        if plan.may_move(client, e, f):
            weight, before = weights_of(problem)[client], plan.violation
            experts, change = np.array([e, f]), np.array([-weight[e], weight[f]])
            foretold = plan.worsening(experts, change).sum()
            plan.move(client, e, f)
            assert plan.violation - before == pytest.approx(foretold, abs=1e-8)
            assert plan.X[client, f] and not plan.X[client, e]


@settings(max_examples=100, derandomize=True)
@given(SMALL, st.integers(0, 2**32), st.integers(1, 4))
def test_exits_are_the_clients_that_lose_least(problem: Problem, seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    plan = Plan(problem, some_assignment(problem, rng))
    prices = some_prices(problem, rng)
    clients = rng.permutation(problem.clients)[: rng.integers(1, problem.clients + 1)]
    exits = Exits.of(plan, prices, clients, m)
    weights, quality = weights_of(problem), problem.quality
    worth = quality - weights * prices
    for e in range(problem.experts):
        for f in range(problem.experts):
            losses = sorted(worth[c, e] - worth[c, f] for c in clients if plan.may_move(c, e, f))
            wanted = np.full(m, np.inf)
            wanted[: len(losses[:m])] = losses[:m]
            np.testing.assert_allclose(exits.regret[e, f], wanted, atol=1e-12)
            places = np.flatnonzero(np.isfinite(exits.regret[e, f]))
            who = exits.client[e, f, places]
            assert len(set(who.tolist())) == len(who) and set(who.tolist()) <= set(clients.tolist())
            for place, c in zip(places, who, strict=True):
                assert plan.may_move(c, e, f)
                assert exits.regret[e, f, place] == pytest.approx(worth[c, e] - worth[c, f])
                assert exits.gain[e, f, place] == quality[c, f] - quality[c, e]
                assert exits.leaves[e, f, place] == weights[c, e]
                assert exits.enters[e, f, place] == weights[c, f]


def repaired(problem: Problem, seed: int) -> None:
    """Each stage keeps its promise, from any plan and at any prices."""
    rng = np.random.default_rng(seed)
    plan = Plan(problem, some_assignment(problem, rng))
    prices = some_prices(problem, rng)
    clients = rng.permutation(problem.clients)[: rng.integers(1, problem.clients + 1)]
    others = np.setdiff1d(np.arange(problem.clients), clients)
    untouched = plan.X[others].copy()
    for stage in (move_out, fit, improve):
        violation, objective = plan.violation, objective_of(problem, plan.X)
        stage(plan, prices, clients)
        assert_in_step(plan)
        assert plan.violation <= violation + 1e-8
        if stage is improve:
            assert objective_of(problem, plan.X) >= objective - 1e-9 * (1 + abs(objective))
    np.testing.assert_array_equal(plan.X[others], untouched)


@settings(max_examples=200, derandomize=True)
@given(SMALL, st.integers(0, 2**32))
def test_no_stage_makes_a_plan_worse(problem: Problem, seed: int) -> None:
    repaired(problem, seed)


@pytest.mark.parametrize("seed", range(16))
def test_no_stage_makes_a_larger_plan_worse(seed: int) -> None:
    repaired(messy(seed), seed)


@pytest.mark.parametrize("weight", [0.0, 5e-324, 1e-12])
def test_where_nobody_weighs_anything_there_is_nothing_to_move(weight: float) -> None:
    problem = sample_problem(weight=np.full((8, 8), weight))
    plan = Plan(problem, some_assignment(problem, np.random.default_rng(0)))
    for stage in (move_out, fit):
        stage(plan, np.zeros(8), np.arange(8))
    assert plan.violation == pytest.approx(problem.lower.sum())


def test_bounds_beyond_all_measure_are_missed_in_peace() -> None:
    problem = sample_problem(lower=np.full(8, 1e307), upper=np.full(8, 1e308))
    plan = Plan(problem, some_assignment(problem, np.random.default_rng(0)))
    for stage in (move_out, fit, improve):
        stage(plan, np.zeros(8), np.arange(8))
    assert_in_step(plan)


def test_move_out_takes_the_client_that_loses_least() -> None:
    """Of three clients of expert 0, which has room for two."""
    problem = Problem(
        quality=np.array([[1.0, 0.0], [1.0, 0.9], [1.0, 0.5]]),
        samples=np.array([10, 10, 10]),
        capacity=np.array([1, 1, 1]),
        lower=np.zeros(2),
        upper=np.array([20.0, 20.0]),
        seed=0,
    )
    plan = Plan(problem, np.array([[True, False]] * 3))
    move_out(plan, np.zeros(2), np.arange(3))
    assert plan.X[:, 0].tolist() == [True, False, True] and plan.violation == 0


def test_fit_swaps_two_clients_where_no_move_helps() -> None:
    problem = Problem(
        quality=np.zeros((2, 2)),
        samples=np.array([7, 5]),
        capacity=np.array([1, 1]),
        lower=np.array([5.0, 7.0]),
        upper=np.array([5.0, 7.0]),
        seed=0,
    )
    plan = Plan(problem, np.array([[True, False], [False, True]]))
    fit(plan, np.zeros(2), np.arange(2))
    assert plan.violation == 0 and plan.X.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("unit", [1e-15, 1.0, 1e25])
def test_improve_swaps_two_clients_for_their_good_in_any_unit(unit: float) -> None:
    problem = Problem(
        quality=np.array([[0.0, 1.0], [1.0, 0.0]]) * unit,
        samples=np.array([5, 5]),
        capacity=np.array([1, 1]),
        lower=np.array([5.0, 5.0]),
        upper=np.array([5.0, 5.0]),
        seed=0,
    )
    plan = Plan(problem, np.array([[True, False], [False, True]]))
    improve(plan, np.zeros(2), np.arange(2))
    assert plan.violation == 0 and plan.X.tolist() == [[False, True], [True, False]]


@settings(max_examples=30, derandomize=True)
@given(problems(), st.integers(0, 2**32))
def test_settling_all_clients_finds_the_least_violation(problem: Problem, seed: int) -> None:
    plan = Plan(problem, some_assignment(problem, np.random.default_rng(seed)))
    settle(plan, np.arange(problem.clients))
    assert_in_step(plan)
    unseen = 0.001 * problem.experts + 1e-6  # CP-SAT counts in thousandths
    assert plan.violation <= everything(problem)[0].min() + unseen


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_settling_some_clients_leaves_the_others(seed: int) -> None:
    problem = messy(seed, clients=300)
    rng = np.random.default_rng(seed)
    plan = Plan(problem, some_assignment(problem, rng))
    clients, before, X = rng.permutation(300), plan.violation, plan.X.copy()
    settle(plan, clients)
    assert_in_step(plan)
    assert plan.violation < before
    changed = np.flatnonzero((plan.X != X).any(axis=1))
    assert set(changed) <= set(clients[: 1024 // problem.experts])
