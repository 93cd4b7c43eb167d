"""The dual's bounds against brute force and a linear program, and its steps against their KKT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from broker_server.assignment import Problem
from broker_server.assignment.flex_moe import dual
from broker_server.assignment.flex_moe.market import Market
from broker_server.assignment.flex_moe.native import _prices
from tests.broker_server.sample_problems import everything, problems, sample_problem

pytestmark = pytest.mark.filterwarnings("error")

NUMBERS = st.floats(-3, 3)


def certified(problem: Problem, prices: NDArray[np.float64]) -> dual.Prices:
    with Market(problem) as market:
        return dual.certify(problem, market, prices)


@settings(max_examples=150, derandomize=True)
@given(
    st.booleans().flatmap(lambda weighted: problems(weighted=weighted)),
    st.lists(NUMBERS, min_size=4, max_size=4),
)
def test_no_assignment_beats_the_bound_of_any_prices(problem: Problem, drawn: list[float]) -> None:
    prices = np.array(drawn[: problem.experts])
    prices = np.where(np.isinf(problem.upper), np.minimum(prices, 0), prices)
    best = certified(problem, prices)
    violations, objectives = everything(problem)
    for violation, objective in zip(violations, objectives, strict=True):
        assert objective <= best.bound(violation) + 1e-12 * (1 + abs(best.value))


def test_the_dual_is_what_clients_get_and_what_bounds_are_paid() -> None:
    problem = Problem(
        quality=np.array([[3.0, 1.0, 0.0], [2.0, 2.5, 1.0]]),
        samples=np.array([10, 20]),
        capacity=np.array([1, 2]),
        lower=np.array([5.0, 0.0, 15.0]),
        upper=np.array([25.0, np.inf, 40.0]),
        seed=0,
    )
    # At 0.1, 0 and -0.2: client 0 has 2, 1, 2, client 1 has 0, 2.5, 5.
    best = certified(problem, np.array([0.1, 0.0, -0.2]))
    assert best.value == pytest.approx(2.0 + 7.5 + 0.1 * 25 - 0.2 * 15)
    assert best.bound(10) == pytest.approx(best.value + 2.0)
    dear = np.array([0.0, 0.1, 0.0])
    assert np.isinf(dual.bounds_share(dear, problem))
    assert dual.bounds_share(np.array([0.1, 0.0, -0.2]), problem, 0.5) == pytest.approx(-0.25)


@settings(max_examples=100, derandomize=True)
@given(problems(clients=6), st.lists(NUMBERS, min_size=4, max_size=4))
def test_levelling_lowers_the_dual_and_changes_no_choice(
    problem: Problem, drawn: list[float]
) -> None:
    prices = np.array(drawn[: problem.experts])
    prices = np.where(np.isinf(problem.upper), np.minimum(prices, 0), prices)
    levelled = dual._levelled(prices, problem)
    assert np.ptp(levelled - prices) <= 1e-12
    value = certified(problem, levelled).value
    assert value <= certified(problem, prices).value + 1e-9
    # No other shift is better, unless D falls for ever or prices would be above an open bound.
    for shift in (-1.0, -0.1, 0.1, 1.0):
        shifted = levelled + shift
        total = problem.samples @ problem.capacity
        if (
            problem.lower.sum() < total < problem.upper.sum()
            and not (np.isinf(problem.upper) & (shifted > 0)).any()
        ):
            assert value <= certified(problem, shifted).value + 1e-9


def mid_size(seed: int) -> Problem:
    """50 to 300 clients of very different sizes, often with equal qualities."""
    rng = np.random.default_rng(seed)
    clients, experts = int(rng.integers(50, 301)), int(rng.integers(2, 13))
    quality = rng.random((clients, experts))
    if seed % 3 == 0:
        quality = np.round(quality * 4) / 4
    samples = np.maximum(1, (rng.pareto(1.2, clients) * 50).astype(np.int64))
    capacity = rng.integers(1, min(experts, 4) + 1, clients)
    weight = samples[:, None] * rng.random(quality.shape) if seed % 4 == 1 else None
    load = samples @ capacity if weight is None else weight.mean(axis=1) @ capacity
    fair = float(load) / experts
    upper = 1.1 * fair * (1 + rng.random(experts))
    return Problem(
        quality=quality,
        samples=samples,
        capacity=capacity,
        lower=0.9 * fair * rng.random(experts) ** 0.3,
        upper=np.where(rng.random(experts) < 0.2, np.inf, upper),
        seed=seed,
        weight=weight,
    )


def linear_optimum(problem: Problem) -> float | None:
    """The most quality if clients could be split; None if even so the bounds cannot be kept."""
    clients, experts = problem.quality.shape
    weight = problem.samples[:, None] * np.ones(experts)
    weight = weight if problem.weight is None else problem.weight
    loads = np.zeros((experts, clients, experts))
    loads[np.arange(experts), :, np.arange(experts)] = weight.T
    loads = loads.reshape(experts, -1)
    closed = np.isfinite(problem.upper)
    result: Any = linprog(
        -np.asarray(problem.quality, np.float64).ravel(),
        A_ub=np.vstack([loads[closed], -loads]),
        b_ub=np.concatenate([problem.upper[closed], -problem.lower]),
        A_eq=np.kron(np.eye(clients), np.ones(experts)),
        b_eq=problem.capacity,
        bounds=(0, 1),
    )
    return -float(result.fun) if result.status == 0 else None


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_linear_optimum(seed: int) -> None:
    problem = mid_size(seed)
    optimum = linear_optimum(problem)
    assert optimum is not None
    scale = dual.Scale.of(problem)
    with Market(problem) as market:
        prices = dual.search(problem, market, scale)
        best = dual.certify(problem, market, prices)
    assert optimum - 1e-6 <= best.value <= optimum + 1e-3 * scale.stake
    assert not (np.isinf(problem.upper) & (prices > 0)).any()


@pytest.mark.parametrize("seed", range(6))
def test_newton_steps_alone_find_it_where_clients_are_of_like_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = Problem.balanced(
        rng.random((300, 8)) + np.linspace(0, 1, 8),
        rng.integers(50, 100, 300),
        rng.integers(1, 4, 300),
        delta=0.05,
    )
    optimum = linear_optimum(problem)
    assert optimum is not None
    scale = dual.Scale.of(problem)
    with Market(problem) as market:
        prices, left = dual.refine(problem, market, scale, np.zeros(8), scale.limit)
        value = dual.certify(problem, market, prices).value
    assert optimum - 1e-6 <= value <= optimum + 1e-3 * scale.stake
    assert left <= 0.05 * scale.stake


@pytest.mark.parametrize("limit", [0.0, 1e-5, 1e-3])
def test_refined_prices_are_within_their_limit(limit: float) -> None:
    problem = mid_size(2)
    scale = dual.Scale.of(problem)
    with Market(problem) as market:
        start = np.full(problem.experts, -1.0)
        prices, left = dual.refine(problem, market, scale, start, limit)
        free, _ = dual.refine(problem, market, scale, start, scale.limit)
        values = [dual.certify(problem, market, p).value for p in (0 * prices, prices, free)]
    assert np.abs(prices).max() <= limit and left >= 0
    assert values[0] >= values[1] - 1e-9 >= values[2] - 2e-9


def test_the_search_sees_a_sample_first() -> None:
    """More clients than it takes, a sample without weight, and open bounds."""
    rng = np.random.default_rng(0)
    weight = np.where(np.arange(3000)[:, None] < 3, 1000.0 * rng.random((3000, 3)), 0.0)
    problem = Problem(
        quality=rng.random((3000, 3)),
        samples=np.ones(3000, np.int64),
        capacity=np.ones(3000, np.int64),
        lower=np.array([0.0, 0.0, 200.0]),
        upper=np.array([np.inf, 300.0, np.inf]),
        seed=0,
        weight=weight,
    )
    with Market(problem) as market:
        prices = dual.search(problem, market, dual.Scale.of(problem))
        assert np.isfinite(prices).all()
        assert np.isfinite(dual.certify(problem, market, prices).value)


def test_the_scale_is_in_the_units_of_the_problem() -> None:
    problem = sample_problem(
        quality=np.array([[1.0, 3.0], [5.0, 9.0]]),
        samples=[10, 30],
        capacity=[1, 2],
        lower=np.zeros(2),
        upper=np.ones(2),
    )
    scale = dual.Scale.of(problem)
    assert (scale.spread, scale.stake) == (3.0, 9.0)
    assert scale.unit == pytest.approx(3.0 / 25)  # 10 of 40 samples are of a client of 10
    assert scale.limit == pytest.approx(4 * 4.0 / 10)
    offset = replace(problem, quality=problem.quality + 1e6)
    assert dual.Scale.of(offset) == scale
    for nothing in (0.0, 1e-308):
        equal = replace(problem, quality=nothing * problem.quality)
        assert dual.Scale.of(equal).spread == 1.0
    constant = dual.Scale.of(replace(problem, quality=np.full((2, 2), 1e9)))
    assert constant.jitter > 10 * np.spacing(1e9)
    for weight in (0.0, 5e-324, 1e9):
        weighed = dual.Scale.of(replace(problem, weight=np.full((2, 2), weight)))
        assert 0 < weighed.unit < np.inf and 0 < weighed.limit < np.inf


def assert_minimal(
    x: NDArray[np.float64],
    prices: NDArray[np.float64],
    load: NDArray[np.float64],
    curvature: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    radius: float,
    limit: float,
) -> None:
    """No coordinate can fall: enough for a convex model whose kinks are separate."""
    least = np.maximum(prices - radius, -limit)
    most = np.minimum(prices + radius, limit)
    assert (x >= least).all() and (x <= most).all()
    slope = curvature @ (x - prices) - load
    to_right = slope + np.where(x >= 0, upper, lower)
    to_left = slope + np.where(x > 0, upper, lower)
    tolerance = 1e-5 * (1 + np.abs(load) + lower)
    assert (to_right >= -tolerance)[x < most].all()
    assert (to_left <= tolerance)[x > least].all()


@pytest.mark.parametrize("experts", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(6))
def test_a_step_minimizes_its_model(seed: int, experts: int) -> None:
    rng = np.random.default_rng(100 * experts + seed)
    root = rng.normal(size=(experts, experts))
    curvature = root @ root.T + np.eye(experts)
    load = 10 * rng.random(experts)
    lower = 5 * rng.random(experts)
    upper = np.where(rng.random(experts) < 0.3, np.inf, lower + 5 * rng.random(experts))
    prices = np.where(np.isinf(upper), -1.0, 1.0) * rng.random(experts)
    for radius, limit in ((0.1, 10.0), (5.0, 0.5), (100.0, 100.0)):
        start = np.clip(prices, -limit, limit)
        x = _prices.step(start, load, curvature, lower, upper, radius, limit)
        assert_minimal(x, start, load, curvature, lower, upper, radius, limit)


def test_a_step_of_no_radius_stays() -> None:
    one = np.ones(2)
    assert (_prices.step(one, one, np.eye(2), 0 * one, one, 0.0, 5.0) == one).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("load", np.ones(3)),
        ("curvature", np.ones((2, 3))),
        ("curvature", np.diag([1.0, 0.0])),
        ("lower", np.ones(1)),
        ("upper", np.ones(2, np.float32)),
    ],
)
def test_a_step_refuses_what_does_not_go_together(name: str, value: Any) -> None:
    given = {key: np.ones(2) for key in ("prices", "load", "lower", "upper")}
    with pytest.raises((ValueError, TypeError)):
        _prices.step(**{**given, "curvature": np.eye(2), "radius": 1.0, "limit": 1.0, name: value})
