"""The floor under the violation against brute force, and against CP-SAT left alone."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_server.assignment import Problem
from broker_server.assignment.flex_moe import exact
from broker_server.assignment.flex_moe.integer_program import IntegerProgram
from broker_server.assignment.flex_moe.least_violation import least_violation
from broker_server.assignment.flex_moe.price_floor import PriceFloor
from broker_server.assignment.flex_moe.set_floor import SetFloor
from tests.broker_server.sample_problems import everything, problems

EXAMPLES = settings(max_examples=100, deadline=None)


def bounded(
    samples: list[int], capacity: list[int], lower: list[float], upper: list[float], **changes: Any
) -> Problem:
    shape = (len(samples), len(lower))
    fields: dict[str, Any] = {"quality": np.zeros(shape), "samples": samples, "capacity": capacity}
    return Problem(**{**fields, "lower": lower, "upper": upper, "seed": 0, **changes})


def vectors(size: int, numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Arrays [size] of `numbers`."""
    return st.lists(numbers, min_size=size, max_size=size).map(
        lambda values: np.array(values, np.float64)
    )


@settings(max_examples=250, deadline=None)
@given(problems())
@example(bounded([30, 30], [1, 1], [0, 0], [10, 10]))
def test_no_assignment_is_below_the_floor(problem: Problem) -> None:
    violations, _ = everything(problem)
    assert 0 <= least_violation(problem) <= violations.min() + 1e-9


@EXAMPLES
@given(problems(weighted=True))
def test_no_assignment_is_below_the_floor_where_clients_weigh_differently(
    problem: Problem,
) -> None:
    violations, _ = everything(problem)
    assert 0 <= least_violation(problem) <= violations.min() + 1e-9


@EXAMPLES
@given(problems(clients=3, experts=3), st.integers(1, 10**7))
def test_the_floor_is_true_for_large_numbers_too(problem: Problem, factor: int) -> None:
    scaled = bounded(
        (problem.samples * factor).tolist(),
        problem.capacity.tolist(),
        (problem.lower * factor).tolist(),
        (problem.upper * factor).tolist(),
    )
    violations, _ = everything(scaled)
    assert 0 <= least_violation(scaled) <= violations.min() + 1e-9 * factor


@pytest.mark.parametrize(
    ("problem", "violation"),
    [
        # All loads together, 60, against upper bounds of 50 and lower bounds of 75.
        (bounded([10] * 3, [2] * 3, [0, 0], [25, 25]), 10),
        (bounded([10] * 3, [1] * 3, [25, 25], [40, 40]), 20),
        # A bound that all clients together do not reach; the other is missed by 5 in its place.
        (bounded([10, 10], [1, 1], [35, 0], [35, 15]), 15),
        # A client of 100 sits in two experts: the kindest allow 60 and 30.
        (bounded([100], [2], [0] * 4, [10, 60, 30, 20]), 40 + 70),
        # Two large clients share the expert that allows most, or each crowds one: 140 or 160.
        (bounded([100, 100], [1, 1], [0, 0], [60, 0]), 140),
        (bounded([7], [1], [0], [math.inf]), 0),
        # Loads are multiples of 100: 150 is missed by 50, whatever comes.
        (bounded([100] * 6, [1] * 6, [150] * 4, [150] * 4), 200),
        (bounded([100] * 6, [1] * 6, [140] * 4, [160] * 4), 160),
        # Two of three clients must share an expert, the least is 61 + 67 for bounds of 100.
        (bounded([61, 67, 71], [1, 1, 1], [0, 0], [100, 100]), 28),
        # Whole loads: 10 experts with 1.4 each miss it by 0.4 or 0.6.
        (bounded([1] * 14, [1] * 14, [1.4] * 10, [1.4] * 10), 6 * 0.4 + 4 * 0.6),
    ],
)
def test_the_floor_is_tight_where_one_reason_explains_the_violation(
    problem: Problem, violation: float
) -> None:
    assert least_violation(problem) == pytest.approx(violation, abs=1e-3)
    assert least_violation(problem, known=violation) == pytest.approx(violation, abs=1e-9)


@EXAMPLES
@given(st.one_of(problems(), problems(weighted=True)), st.data())
def test_any_prices_of_experts_give_a_true_floor(problem: Problem, data: st.DataObject) -> None:
    prices = data.draw(vectors(problem.experts, st.floats(-1, 1) | st.sampled_from([-1.0, 0, 1.0])))
    violations, _ = everything(problem)
    assert PriceFloor(problem).at(prices) <= violations.min() + 1e-9


@EXAMPLES
@given(problems(), st.data())
def test_any_prices_of_clients_give_a_true_floor(problem: Problem, data: st.DataObject) -> None:
    prices = data.draw(vectors(problem.clients, st.floats(-3, 1))) * problem.samples
    violations, _ = everything(problem)
    floor = SetFloor.of(problem)
    assert floor is not None
    assert floor.at(prices)[0] <= violations.min() + 1e-9


@EXAMPLES
@given(problems(clients=3, experts=3), st.data())
def test_prices_of_clients_are_priced_as_by_all_sets(problem: Problem, data: st.DataObject) -> None:
    """The knapsacks against every set of clients of every expert."""
    prices = data.draw(vectors(problem.clients, st.floats(-2, 1))) * problem.samples
    expected = float(problem.capacity @ prices)
    for low, high in zip(problem.lower, problem.upper, strict=True):
        expected += min(
            max(low - load, load - high, 0) - price
            for chosen in itertools.product([0, 1], repeat=problem.clients)
            for load, price in [(problem.samples @ chosen, prices @ chosen)]
        )
    floor = SetFloor.of(problem)
    assert floor is not None
    value, pull = floor.at(prices)
    assert value == pytest.approx(expected, abs=1e-9)
    # It is concave: no other prices are above the slope that it claims.
    other = data.draw(vectors(problem.clients, st.floats(-2, 1))) * problem.samples
    assert floor.at(other)[0] <= value + pull @ (other - prices) + 1e-9


def test_few_unequal_clients_have_a_floor() -> None:
    """Each of 8 experts has one or two of 6 clients; totals and load prices explain a part."""
    rng = np.random.default_rng(0)
    problem = Problem.balanced(
        np.zeros((6, 8)), rng.integers(100, 400, 6), np.full(6, 2), delta=0.02, grain=0
    )
    answer = exact.solve(problem)
    assert answer.violation_bound == pytest.approx(answer.violation)
    assert answer.violation > 100
    floor = PriceFloor(problem)
    assert (
        max(floor.at(np.full(8, price)) for price in np.linspace(-1, 1, 41))
        < 0.5 * answer.violation
    )


def test_a_known_violation_ends_the_search_where_it_is_reached() -> None:
    problem = bounded([100] * 6, [1] * 6, [150] * 4, [150] * 4)
    assert least_violation(problem, known=200.0) == pytest.approx(200)
    assert least_violation(problem, known=1e9) == pytest.approx(200)


def test_the_floor_says_what_cp_sat_alone_does_not_find_out() -> None:
    """Equal clients and bounds between their multiples; and five large clients, each too large
    for any expert, among many small ones."""
    rng = np.random.default_rng(1)
    between = bounded([100] * 22, [3] * 22, [812.5] * 8, [837.5] * 8)
    crowd = rng.integers(40, 60, 60).tolist() + [5000] * 5
    crowded = bounded(crowd, [2] * 65, [1600.0] * 16, [1700.0] * 16)
    for problem in (between, crowded):
        X = exact.balanced_start(problem)
        program = IntegerProgram(problem, 0)
        program.minimize_violation()
        alone = program.violation_bound(program.solve(X, 0.1).bound)
        answer = exact.solve(problem, 0.1)
        assert answer.violation_bound == pytest.approx(answer.violation, abs=1e-6)
        assert alone < 0.9 * answer.violation


def test_a_large_fleet_has_a_floor_too() -> None:
    """20,000 x 64, with and without weights: 10 % more is asked than there is."""
    rng = np.random.default_rng(2)
    samples, capacity = rng.integers(50, 500, 20_000), rng.integers(1, 5, 20_000)
    work = float(samples @ capacity)
    asked = np.full(64, 1.1 * work / 64)
    for weight in (None, np.repeat(samples[:, None], 64, axis=1).astype(np.float64)):
        problem = Problem(
            np.zeros((20_000, 64), np.float32), samples, capacity, asked, asked, 0, weight=weight
        )
        assert least_violation(problem) == pytest.approx(0.1 * work)
