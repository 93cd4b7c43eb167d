"""Loads, their bounds, and whether the bounds balance the experts over rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server import load
from broker_server.assignment import Problem, policy
from edge_runtime.errors import ConfigError


def test_bounds_of_a_small_fleet() -> None:
    """W = 10*1 + 20*2 = 50 on top of 30: a share of 20 for each of the 4 experts."""
    history, samples, capacity = np.array([0, 5, 10, 15]), np.array([10, 20]), np.array([1, 2])
    lower, upper = load.bounds(history, samples, capacity, 0.25)
    assert lower.tolist() == [15, 10, 5, 0]
    assert upper.tolist() == [25, 20, 15, 10]


def test_an_expert_above_its_share_should_get_nothing() -> None:
    lower, upper = load.bounds(np.array([100, 0]), np.array([10]), np.array([1]), 0.1)
    assert (lower[0], upper[0]) == (0, 0)
    assert lower[1] == pytest.approx(0.9 * 55) and upper[1] == pytest.approx(1.1 * 55)


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 8)), min_size=1, max_size=8),
    st.floats(0, 3),
)
def test_bounds_are_ordered_and_leave_room_for_the_round(
    history: list[int], clients: list[tuple[int, int]], delta: float
) -> None:
    samples, capacity = np.array(clients).T
    lower, upper = load.bounds(np.array(history), samples, capacity, delta)
    work = int(samples @ capacity)
    assert (lower >= 0).all() and (lower <= upper).all()
    assert upper.sum() >= work * (1 - 1e-12)
    if delta == 0 and max(history) * len(history) <= sum(history) + work:
        assert lower.sum() == pytest.approx(work)


@pytest.mark.parametrize("delta", [-0.01, math.nan, math.inf])
def test_a_bad_tolerance_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        load.bounds(np.zeros(2, int), np.array([1]), np.array([1]), delta)


def test_update_adds_the_samples_of_the_clients_assigned() -> None:
    history = np.array([1, 2, 3])
    X = np.array([[True, False, True], [True, False, False]])
    assert load.update(history, X, np.array([10, 100])).tolist() == [111, 2, 13]
    assert history.tolist() == [1, 2, 3]


def test_coefficient_of_variation() -> None:
    assert load.coefficient_of_variation([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(2 / 5)
    assert load.coefficient_of_variation([3, 3]) == 0
    assert load.coefficient_of_variation([0, 0]) == 0


def cv_after(name: str, rounds: int, seed: int, delta: float) -> float:
    """Cumulative load CV of 8 clients with Dirichlet sizes, 8 experts, k = 2."""
    rng = np.random.default_rng(seed)
    samples = np.maximum(10, 1437 * rng.dirichlet(np.full(8, 0.5), 10).mean(axis=0)).astype(int)
    capacity, history, quality = np.full(8, 2), np.zeros(8, int), rng.random((8, 8))
    for t in range(rounds):
        lower, upper = load.bounds(history, samples, capacity, delta)
        problem = Problem(quality, samples, capacity, lower, upper, seed=t)
        history = load.update(history, policy(name)(problem).X, samples)
    return load.coefficient_of_variation(history)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_flex_moe_balances_within_ten_rounds_and_greedy_does_not(seed: int) -> None:
    assert cv_after("flex_moe", 10, seed, delta=0.02) < 0.05
    assert cv_after("greedy", 10, seed, delta=0.02) > 0.2
