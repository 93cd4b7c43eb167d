"""The rolling policy: no expert is left out of a round, and every client meets every expert."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import Problem, policy
from broker_server.assignment.rolling import turn


def make_problem(capacity: Any, experts: int, number: int = 1, **changes: Any) -> Problem:
    clients = len(capacity)
    fields: dict[str, Any] = {
        "quality": np.ones((clients, experts)),
        "samples": np.full(clients, 10),
        "capacity": np.asarray(capacity),
        "lower": np.zeros(experts),
        "upper": np.full(experts, np.inf),
        "seed": 0,
        "round": number,
    }
    return Problem(**{**fields, **changes})


def rolled(capacity: Any, experts: int, number: int = 1, **changes: Any) -> NDArray[np.bool_]:
    return policy("rolling")(make_problem(capacity, experts, number, **changes)).X


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[int], int]:
    """Capacities and E."""
    experts = draw(st.integers(1, 9))
    return draw(st.lists(st.integers(1, experts), min_size=1, max_size=7)), experts


@settings(max_examples=200, deadline=None)
@given(fleets(), st.integers(1, 10**9))
def test_each_round_shares_the_experts_out_evenly(
    fleet: tuple[list[int], int], number: int
) -> None:
    """Windows without gaps: no expert has two holders more than another."""
    capacity, experts = fleet
    answer = policy("rolling")(make_problem(capacity, experts, number))
    assert answer.X.sum(axis=1).tolist() == capacity
    holders = answer.X.sum(axis=0)
    assert holders.max() - holders.min() <= 1
    assert (holders > 0).all() or sum(capacity) < experts
    assert math.isnan(answer.bound) and answer.solver == "rolling"


@settings(max_examples=100, deadline=None)
@given(fleets(), st.integers(1, 50))
def test_in_a_cycle_each_client_holds_each_expert_equally_often(
    fleet: tuple[list[int], int], cycle: int
) -> None:
    """In rounds (cycle - 1) E + 1 to cycle E; also where all k are equal and divide E."""
    capacity, experts = fleet
    first = (cycle - 1) * experts + 1
    rounds = range(first, first + experts)
    held = sum(rolled(capacity, experts, number).astype(int) for number in rounds)
    assert np.array_equal(held, np.tile(np.array(capacity)[:, None], experts))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_equal_clients_that_divide_the_ring_meet_every_expert(k: int) -> None:
    met = np.zeros((16 // k, 8), dtype=bool)
    for number in range(1, 8 - k + 2):
        met |= rolled([k] * (16 // k), 8, number)
    assert met.all()


@pytest.mark.parametrize("experts", [2, 4, 6, 8])
@pytest.mark.parametrize("period", range(1, 10))
def test_a_client_of_every_nth_round_meets_every_expert(experts: int, period: int) -> None:
    for first in range(1, period + 1):
        met = np.zeros(experts, dtype=bool)
        for number in range(first, first + 30 * period * experts, period):
            met |= rolled([1], experts, number)[0]
        assert met.all()


def test_windows_follow_each_other_and_turn() -> None:
    assert rolled([2, 1, 2], 4).astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert rolled([2, 1], 4, 2).astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]


def test_the_first_cycle_turns_by_one_and_later_ones_start_elsewhere() -> None:
    assert [turn(number, 4) for number in range(1, 5)] == [0, 1, 2, 3]
    starts = [turn(1 + 4 * cycle, 4) for cycle in range(8)]
    assert set(starts) == {0, 1, 2, 3}


@settings(max_examples=60, deadline=None)
@given(fleets(), st.integers(1, 30), st.randoms(use_true_random=False))
def test_windows_go_by_place_and_not_by_row(
    fleet: tuple[list[int], int], number: int, random: Any
) -> None:
    capacity, experts = fleet
    order = random.sample(range(len(capacity)), len(capacity))
    places = [3 * place + 2 for place in order]  # gaps: who is away has no window
    moved = rolled([capacity[i] for i in order], experts, number, places=np.array(places))
    assert (moved == rolled(capacity, experts, number)[order]).all()


def test_neither_quality_nor_seed_nor_load_matter() -> None:
    rng = np.random.default_rng(0)
    other = rolled([2, 3], 6, quality=rng.random((2, 6)), samples=np.array([5, 9]), seed=77)
    assert (other == rolled([2, 3], 6)).all()
