"""Loads, their bounds, and whether the bounds balance the experts over rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server import forecast, load
from broker_server.assignment import AssignmentPolicy, Problem, policy
from edge_runtime.errors import ConfigError

MEASURED: tuple[load.Balance, ...] = ("routed", "both")


def test_bounds_of_a_small_fleet() -> None:
    """W = 10*1 + 20*2 = 50 on top of 30: a share of 20 for each of the 4 experts."""
    history, samples, capacity = np.array([0, 5, 10, 15]), np.array([10, 20]), np.array([1, 2])
    lower, upper = load.bounds(history, samples, capacity, 0.5)
    assert lower.tolist() == [10, 5, 0, 0]
    assert upper.tolist() == [30, 25, 20, 15]


def test_a_tolerance_below_half_a_mean_client_is_that() -> None:
    """Clients of 10 and 20 samples: 7.5, which is more than 0.25 of 20."""
    history, samples, capacity = np.array([0, 5, 10, 15]), np.array([10, 20]), np.array([1, 2])
    for delta in (0, 0.25):
        lower, upper = load.bounds(history, samples, capacity, delta)
        assert lower.tolist() == [12.5, 7.5, 2.5, 0]
        assert upper.tolist() == [27.5, 22.5, 17.5, 12.5]
    lower, upper = load.bounds(history, samples, capacity, 0, grain=0)
    assert lower.tolist() == upper.tolist() == [20, 15, 10, 5]


def test_an_expert_above_its_share_should_get_nothing() -> None:
    lower, upper = load.bounds(np.array([100, 0]), np.array([10]), np.array([1]), 0.1)
    assert (lower[0], upper[0]) == (0, 0)
    assert lower[1] == pytest.approx(0.9 * 55) and upper[1] == pytest.approx(1.1 * 55)


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 8)), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.02]) | st.floats(0, 3),
    st.sampled_from([0.0, 0.5]) | st.floats(0, 3),
)
def test_bounds_are_as_the_formula_says_and_leave_room_for_the_round(
    history: list[int], clients: list[tuple[int, int]], delta: float, grain: float
) -> None:
    """The formula in fractions, an expert at a time."""
    work = sum(n * k for n, k in clients)
    share = Fraction(sum(history) + work, len(history))
    mean = Fraction(sum(n for n, _ in clients), len(clients))
    slack = max(Fraction(delta) * share, Fraction(grain) * mean)
    samples, capacity = np.array(clients).T
    lower, upper = load.bounds(np.array(history), samples, capacity, delta, grain)
    zero = Fraction(0)
    assert lower == pytest.approx([float(max(zero, share - slack - H)) for H in history], abs=1e-6)
    assert upper == pytest.approx([float(max(zero, share + slack - H)) for H in history], abs=1e-6)
    assert (lower <= upper).all() and upper.sum() >= work * (1 - 1e-12)
    if max(history) <= share - slack:
        assert (lower + upper).sum() / 2 == pytest.approx(work)


@pytest.mark.parametrize("bad", [-0.01, math.nan, math.inf, 1.01e6])
def test_a_bad_tolerance_is_refused(bad: float) -> None:
    nothing, one = np.zeros(2, int), np.array([1])
    with pytest.raises(ConfigError, match=f"delta: .* not {bad}"):
        load.bounds(nothing, one, one, bad)
    with pytest.raises(ConfigError, match=f"grain: .* not {bad}"):
        load.bounds(nothing, one, one, 0.1, bad)


def test_a_tolerance_of_a_million_shares_is_no_bound_at_all() -> None:
    samples, capacity = np.array([10**9]), np.array([2])
    lower, upper = load.bounds(np.array([5, 0]), samples, capacity, 1e6, 1e6)
    assert lower.tolist() == [0, 0] and np.isfinite(upper).all() and (upper > 1e15).all()


def test_update_adds_the_samples_of_the_clients_assigned() -> None:
    history = np.array([1, 2, 3])
    X = np.array([[True, False, True], [True, False, False]])
    assert load.update(history, X, np.array([10, 100])).tolist() == [111, 2, 13]
    assert history.tolist() == [1, 2, 3]


def test_routed_load_is_counted_in_the_units_of_assigned_load() -> None:
    """A client with 40 samples and 2 experts brings 80 either way."""
    routed = load.update_routed(np.array([1, 2, 3]), [0, 2], [40, 0])
    assert routed.tolist() == [81, 2, 3]
    assigned = load.update(np.array([1, 2, 3]), np.array([[True, False, True]]), np.array([40]))
    assert routed.sum() == assigned.sum()


@given(st.data())
def test_both_kinds_of_load_have_the_same_total_and_order_does_not_matter(
    data: st.DataObject,
) -> None:
    experts = 5
    order = data.draw(st.permutations(range(experts)))
    routed, moved, assigned = np.zeros((3, experts), np.int64)
    for _ in range(data.draw(st.integers(1, 4))):
        held = data.draw(st.lists(st.integers(0, experts - 1), unique=True, min_size=1))
        usage = [data.draw(st.integers(0, 99)) for _ in held]
        before = routed.copy()
        new = load.update_routed(routed, held, usage)
        assert (routed == before).all()
        routed = new
        moved = load.update_routed(moved, [order.index(e) for e in held], usage)
        assigned = load.update(
            assigned, np.isin(np.arange(experts), held)[None], np.array([sum(usage)])
        )
    assert routed.sum() == assigned.sum()
    assert moved.tolist() == routed[order].tolist()


def test_history_by_balance() -> None:
    H, R = np.array([90, 60, 30]), np.array([10, 80, 90])
    assert load.history("assigned", H, R).tolist() == [90, 60, 30]
    assert load.history("both", H, R).tolist() == [50, 70, 60]
    assert load.history("routed", H, R).tolist() == [30, 80, 90]  # 90 / 3 for who gets nothing


def test_weights_by_balance() -> None:
    samples, shares = np.array([10, 100]), np.array([[0.5, 1.5], [1.0, 0.1]])
    assert load.weights("assigned", samples, shares) is None
    for balance, expected in zip(MEASURED, ([5, 15, 100, 10], [7.5, 12.5, 100, 55]), strict=True):
        weight = load.weights(balance, samples, shares)
        assert weight is not None and weight.ravel() == pytest.approx(expected)


@given(st.integers(1, 10**9), st.lists(st.floats(0.1, 1), min_size=5, max_size=5))
def test_the_weights_of_known_experts_add_up_to_all_that_the_client_brings(
    samples: int, parts: list[float]
) -> None:
    """n k, where the client held these and no others; and each is above 0."""
    row = forecast.update(np.full(7, math.nan), [0, 1, 2, 4, 5], np.array(parts))
    shares = forecast.predict(row[None], np.array([5]), np.ones(7))
    for balance in MEASURED:
        weight = load.weights(balance, np.array([samples]), shares)
        assert weight is not None and np.isfinite(weight).all() and (weight > 0).all()
        assert np.delete(weight[0], [3, 6]).sum() == pytest.approx(5 * samples, rel=0.05)


def test_an_unknown_balance_is_refused() -> None:
    balance: Any = "luck"
    with pytest.raises(ConfigError, match=r"'luck'.*assigned, routed, both"):
        load.history(balance, np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(ConfigError, match=r"'luck'.*assigned, routed, both"):
        load.weights(balance, np.ones(1, int), np.ones((1, 1)))


def test_coefficient_of_variation() -> None:
    assert load.coefficient_of_variation([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(2 / 5)
    assert load.coefficient_of_variation([3, 3]) == 0
    assert load.coefficient_of_variation([0, 0]) == 0


def cv_after(decide: AssignmentPolicy, rounds: int, seed: int, delta: float) -> float:
    """Cumulative load CV of 8 clients with Dirichlet sizes, 8 experts, k = 2."""
    rng = np.random.default_rng(seed)
    samples = np.maximum(10, 1437 * rng.dirichlet(np.full(8, 0.5), 10).mean(axis=0)).astype(int)
    capacity, history, quality = np.full(8, 2), np.zeros(8, int), rng.random((8, 8))
    for t in range(rounds):
        lower, upper = load.bounds(history, samples, capacity, delta)
        problem = Problem(quality, samples, capacity, lower, upper, seed=t)
        history = load.update(history, decide(problem).X, samples)
    return load.coefficient_of_variation(history)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_flex_moe_balances_within_ten_rounds_and_greedy_does_not(seed: int) -> None:
    prices = policy("flex_moe", solver="prices")
    assert cv_after(prices, 10, seed, delta=0.02) < 0.05
    assert cv_after(policy("greedy"), 10, seed, delta=0.02) > 0.2


def largest_first(problem: Problem) -> NDArray[np.bool_]:
    """X [C, E]: by falling n_c, each client takes what lacks most load; quality breaks near ties.

    Stands in for a solver: quick, and it heeds pair weights.
    """
    weight = problem.weight
    if weight is None:
        weight = np.broadcast_to(problem.samples[:, None].astype(float), problem.quality.shape)
    lacks = (problem.lower + problem.upper) / 2
    X = np.zeros(problem.quality.shape, np.bool_)
    for c in np.argsort(-problem.samples):
        appeal = lacks + 0.5 * problem.samples[c] * problem.quality[c]
        chosen = np.argsort(-appeal)[: problem.capacity[c]]
        X[c, chosen] = True
        lacks[chosen] -= weight[c, chosen]
    return X


def solver(problem: Problem) -> NDArray[np.bool_]:
    return policy("flex_moe", solver="prices")(problem).X


def closed_loop(
    balance: load.Balance,
    seed: int,
    decide: Callable[[Problem], NDArray[np.bool_]] = largest_first,
    rounds: int = 60,
    shunned: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """H and R [E] of 12 clients and 8 experts, and the error (rms) of the shares foretold.

    Gates prefer some experts for good: samples split by hidden log-normal propensities among what
    a client holds. Where expert 0 is `shunned`, it gets next to nothing, and each client holds two
    experts at least: a single expert cannot be shunned.
    """
    clients, experts = 12, 8
    rng = np.random.default_rng(seed)
    samples = rng.integers(40, 200, clients)
    capacity = rng.integers(2 if shunned else 1, 4, clients)
    propensity = np.exp(rng.normal(0, 0.4, experts) + rng.normal(0, 0.8, (clients, experts)))
    propensity[:, 0] *= 1e-3 if shunned else 1
    taste = rng.random((clients, experts))
    names = [f"{c}" for c in range(clients)]
    shares: dict[str, NDArray[np.float64]] = {}
    H, R, errors = np.zeros(experts, np.int64), np.zeros(experts, np.int64), []
    for t in range(rounds):
        table = forecast.table(shares, names, experts)
        foretold = forecast.predict(table, capacity, forecast.popularity(table))
        past = load.history(balance, H, R)
        lower, upper = load.bounds(past, samples, capacity, 0.02)
        weight = load.weights(balance, samples, foretold)
        quality = taste + 0.3 * rng.random(taste.shape)
        X = decide(Problem(quality, samples, capacity, lower, upper, t, weight, past))
        for c, name in enumerate(names):
            held = np.flatnonzero(X[c]).tolist()
            odds = propensity[c, held] / propensity[c, held].sum()
            usage = rng.multinomial(samples[c], odds)
            if capacity[c] > 1:
                errors += (capacity[c] * odds - foretold[c, held]).tolist()
            shares[name] = forecast.update(table[c], held, usage)
            R = load.update_routed(R, held, usage)
        H = load.update(H, X, samples)
    assert H.sum() == R.sum()
    return H, R, float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize("seed", range(5))
def test_each_balance_evens_out_its_own_load(seed: int) -> None:
    cv = load.coefficient_of_variation
    ends = {balance: closed_loop(balance, seed) for balance in get_args(load.Balance)}
    by_assigned, by_routed, by_both = (
        (cv(ends[balance][0]), cv(ends[balance][1])) for balance in ("assigned", "routed", "both")
    )
    assert by_assigned[0] < 0.03 and by_assigned[1] > 0.1
    assert by_routed[1] < 0.03 and by_routed[0] > 0.1
    assert cv(ends["both"][0] + ends["both"][1]) < 0.03
    assert by_both[0] < by_routed[0] and by_both[1] < by_assigned[1]


@pytest.mark.parametrize("seed", range(5))
def test_forecasts_are_nearer_than_an_even_split(seed: int) -> None:
    """The same rounds with a table that never learns foretell 1 for every pair."""
    known = closed_loop("routed", seed)[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "update", lambda row, *_: row)
        even = closed_loop("routed", seed)[2]
    assert known < 0.7 * even


@pytest.mark.parametrize("seed", range(5))
def test_an_expert_that_gates_shun_does_not_take_every_place(seed: int) -> None:
    """Its assignments end at three times what the others see; under "both" at twice the mean."""
    for balance, most in zip(MEASURED, (3 * 8 / 7, 2), strict=True):
        H, R, _ = closed_loop(balance, seed, shunned=True)
        assert R[0] < 0.05 * R.mean()
        assert 0.8 * most * H.mean() < H[0] < 1.02 * most * H.mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_flex_moe_evens_out_the_load_that_it_is_told_to(seed: int) -> None:
    cv = load.coefficient_of_variation
    by_assigned = closed_loop("assigned", seed, solver, rounds=15)
    by_routed = closed_loop("routed", seed, solver, rounds=15)
    assert cv(by_assigned[0]) < 0.03 and cv(by_routed[1]) < 0.05
    assert cv(by_assigned[1]) > 3 * cv(by_routed[1])
    assert cv(by_routed[0]) > 3 * cv(by_assigned[0])
