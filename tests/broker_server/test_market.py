"""The clients' answers to prices against numpy, and the keys that break their ties."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import Problem
from broker_server.assignment.flex_moe.market import Market, Response
from broker_server.assignment.flex_moe.native import _prices
from tests.broker_server.sample_problems import permuted

pytestmark = pytest.mark.filterwarnings("error")


def problem_of(
    seed: int, clients: int, experts: int, kind: Any = np.float64, weighted: bool = False
) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(
        quality=rng.random((clients, experts)).astype(kind),
        samples=rng.integers(1, 500, clients),
        capacity=rng.integers(1, experts + 1, clients),
        lower=np.zeros(experts),
        upper=np.full(experts, np.inf),
        seed=seed,
        weight=rng.random((clients, experts)) * 500 if weighted else None,
    )


def lots(client_keys: NDArray[np.uint32], expert_keys: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The lot of each pair [C, E], as the native code draws it."""
    x = client_keys[:, None] ^ expert_keys
    x *= np.uint32(0x9E3779B1)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x85EBCA77)
    x ^= x >> np.uint32(13)
    return (x >> np.uint32(1)) / 2**31


def weights_of(problem: Problem) -> NDArray[np.float64]:
    if problem.weight is not None:
        return problem.weight
    return np.broadcast_to(problem.samples[:, None].astype(np.float64), problem.quality.shape)


def expected(
    problem: Problem, market: Market, prices: NDArray[np.float64], jitter: float, window: float
) -> Response:
    """The answer of all clients, one after the other."""
    weights = weights_of(problem)
    chance = lots(market.client_keys, market.expert_keys)
    scores = problem.quality.astype(np.float64) - weights * prices - jitter * chance
    value, load = 0.0, np.zeros(problem.experts)
    curvature = np.zeros((problem.experts, problem.experts))
    picks = np.full((problem.clients, int(problem.capacity.max())), -1, np.int32)
    margins = np.full(problem.clients, np.inf)
    for c, k in enumerate(problem.capacity.tolist()):
        order = np.argsort(-scores[c], kind="stable")
        picks[c, :k] = order[:k]
        value += float(scores[c, order[:k]].sum())
        load[order[:k]] += weights[c, order[:k]]
        if k == problem.experts:
            continue
        last, following = order[k - 1], order[k]
        margins[c] = scores[c, last] - scores[c, following]
        a, b = weights[c, last], weights[c, following]
        # Prices that move apart by the window change the margin by as much as this.
        reach = window * (a + b) / 2
        if margins[c] < reach:
            change = np.zeros(problem.experts)
            change[last], change[following] = a, -b
            curvature += np.outer(change, change) / reach
    return Response(value, load, curvature, picks, margins)


def assert_alike(answer: Response, wanted: Response) -> None:
    assert answer.value == pytest.approx(wanted.value, rel=1e-12, abs=1e-9)
    np.testing.assert_allclose(answer.load, wanted.load, rtol=1e-12)
    np.testing.assert_array_equal(answer.picks, wanted.picks)
    np.testing.assert_allclose(answer.margins, wanted.margins, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(answer.curvature, wanted.curvature, rtol=1e-9, atol=1e-6)


@settings(max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    clients=st.integers(1, 30),
    experts=st.integers(1, 40),
    kind=st.sampled_from([np.float32, np.float64]),
    weighted=st.booleans(),
    jitter=st.sampled_from([0.0, 1e-3, 2.0]),
)
def test_each_client_takes_what_is_best_for_it(
    seed: int, clients: int, experts: int, kind: Any, weighted: bool, jitter: float
) -> None:
    problem = problem_of(seed, clients, experts, kind, weighted)
    prices = np.random.default_rng(seed + 1).normal(size=experts) / 500
    with Market(problem) as market:
        answer = market.respond(prices, jitter=jitter, window=1e-3, choices=True)
    assert_alike(answer, expected(problem, market, prices, jitter, 1e-3))


@pytest.mark.parametrize("experts", [5, 30])
def test_equal_scores_go_to_the_first_expert(experts: int) -> None:
    rng = np.random.default_rng(experts)
    problem = replace(
        problem_of(0, 50, experts), quality=rng.integers(0, 3, (50, experts)).astype(np.float64)
    )
    with Market(problem) as market:
        answer = market.respond(np.zeros(experts), window=1e-9, choices=True)
    assert_alike(answer, expected(problem, market, np.zeros(experts), 0.0, 1e-9))


def test_who_holds_every_expert_has_no_other_choice() -> None:
    problem = replace(problem_of(1, 4, 3), capacity=np.array([3, 1, 3, 2]))
    with Market(problem) as market:
        answer = market.respond(np.zeros(3), window=10.0, choices=True)
    assert np.isinf(answer.margins).tolist() == [True, False, True, False]
    assert_alike(answer, expected(problem, market, np.zeros(3), 0.0, 10.0))


def test_pairs_that_weigh_nothing_feel_no_price() -> None:
    problem = replace(problem_of(2, 20, 4, weighted=True), weight=np.zeros((20, 4)))
    with Market(problem) as market:
        answer = market.respond(np.array([5.0, -5.0, 0.0, 1.0]), window=1.0)
    assert not answer.load.any() and not answer.curvature.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_add_up(weighted: bool) -> None:
    """More clients than one strand takes."""
    problem = problem_of(3, 2500, 6, weighted=weighted)
    prices = np.linspace(-1, 1, 6) / 500
    with Market(problem) as market:
        answer = market.respond(prices, jitter=1e-6, window=1e-3, choices=True)
    assert_alike(answer, expected(problem, market, prices, 1e-6, 1e-3))


def test_more_cores_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(4, 2**14, 2**6, np.float32)
    prices = np.linspace(-1, 1, 2**6) / 500
    answers, threads = [], []
    for cores in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        before = threading.active_count()
        with Market(problem) as market:
            answers.append(market.respond(prices, jitter=1e-6, window=1e-3, choices=True))
            threads.append(threading.active_count() - before)
        assert threading.active_count() == before
    one, many = answers
    assert threads[0] == 0 < threads[1] <= 3
    assert one.value == many.value
    for name in ("load", "curvature", "picks", "margins"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("order", ["C", "F"])
def test_quality_may_be_mapped_from_a_file(tmp_path: Path, order: Any) -> None:
    problem = problem_of(5, 40, 7, np.float32)
    np.save(tmp_path / "quality.npy", np.array(problem.quality, order=order))
    mapped = replace(problem, quality=np.load(tmp_path / "quality.npy", mmap_mode="r"))
    assert isinstance(mapped.quality.base, np.memmap)
    with Market(mapped) as market:
        answer = market.respond(np.zeros(7), jitter=1e-3, window=0.1, choices=True)
    assert_alike(answer, expected(problem, market, np.zeros(7), 1e-3, 0.1))


def arguments(experts: int = 3, clients: int = 2) -> dict[str, Any]:
    """What `_prices.respond` takes."""
    return {
        "quality": np.zeros((clients, experts)),
        "samples": np.ones(clients, np.int64),
        "weight": np.ones((clients, experts)),
        "capacity": np.ones(clients, np.int64),
        "client_keys": np.zeros(clients, np.uint32),
        "expert_keys": np.zeros(experts, np.uint32),
        "jitter": 0.0,
        "prices": np.zeros(experts),
        "window": 1.0,
        "load": np.zeros(experts),
        "curvature": np.zeros((experts, experts)),
        "picks": np.zeros((clients, experts), np.int32),
        "margins": np.zeros(clients),
    }


def test_the_native_function_adds_to_what_it_is_given() -> None:
    given = arguments()
    given["load"][:] = 7.0
    assert _prices.respond(**given) == 0.0
    assert given["load"].tolist() == [9.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", np.zeros(3)),
        ("quality", np.zeros((2, 3), np.int64)),
        ("quality", np.zeros((3, 2)).T),
        ("samples", np.ones(3, np.int64)),
        ("samples", np.ones(2)),
        ("weight", np.ones((3, 3))),
        ("weight", np.ones((2, 3), np.float32)),
        ("capacity", np.ones(1, np.int64)),
        ("capacity", np.ones(2, np.int32)),
        ("capacity", np.array([1, 0])),
        ("capacity", np.array([4, 1])),
        ("client_keys", np.zeros(1, np.uint32)),
        ("client_keys", np.zeros(2, np.int64)),
        ("expert_keys", np.zeros(2, np.uint32)),
        ("prices", np.zeros(2)),
        ("prices", np.array([0.0, np.nan, 0.0])),
        ("prices", np.array([0.0, np.inf, 0.0])),
        ("window", 0.0),
        ("load", np.zeros(4)),
        ("load", np.zeros(3, np.int64)),
        ("curvature", np.zeros((3, 2))),
        ("picks", np.zeros((1, 3), np.int32)),
        ("picks", np.zeros((2, 0), np.int32)),
        ("picks", np.zeros((2, 3), np.int64)),
        ("margins", np.zeros(3)),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        _prices.respond(**{**arguments(), name: value})


def test_results_are_not_written_to_what_is_read_only() -> None:
    given = arguments()
    given["load"].setflags(write=False)
    with pytest.raises((ValueError, TypeError)):
        _prices.respond(**given)


PERMUTED: list[Callable[[int], Problem]] = [
    lambda seed: problem_of(seed, 3000, 5),
    lambda seed: problem_of(seed, 50, 8, np.float32),
    lambda seed: problem_of(seed, 50, 8, weighted=True),
]


@pytest.mark.parametrize("make", PERMUTED)
def test_keys_go_with_clients_and_experts(make: Callable[[int], Problem]) -> None:
    problem, rng = make(6), np.random.default_rng(6)
    rows, columns = rng.permutation(problem.clients), rng.permutation(problem.experts)
    here, there = Market(problem), Market(permuted(problem, rows, columns))
    np.testing.assert_array_equal(there.client_keys, here.client_keys[rows])
    np.testing.assert_array_equal(there.expert_keys, here.expert_keys[columns])
    assert len(np.unique(here.client_keys)) == problem.clients
    assert len(np.unique(here.expert_keys)) == problem.experts


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight": np.ones((100, 9))}, {"quality": np.arange(100)[:, None] % 2 * np.ones(9)}],
)
def test_equal_clients_and_experts_have_keys_of_their_own(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "quality": np.zeros((100, 9)),
        "samples": np.ones(100, np.int64),
        "capacity": np.ones(100, np.int64),
        "lower": np.zeros(9),
        "upper": np.full(9, np.inf),
        "seed": 2**70,
    }
    problem = Problem(**{**fields, **changes})
    market, other = Market(problem), Market(replace(problem, seed=1))
    for keys in (market.client_keys, market.expert_keys):
        assert len(np.unique(keys)) == len(keys)
    assert (market.client_keys != other.client_keys).mean() > 0.9
    assert (market.expert_keys != other.expert_keys).mean() > 0.5
    # Lots are even: a tie of nine is settled for each of them about as often.
    chance = lots(market.client_keys, market.expert_keys)
    assert 0 <= chance.min() < 0.05 and 0.95 < chance.max() < 1
    assert 0.45 < chance.mean() < 0.55


def test_a_sample_is_the_same_clients_in_any_order() -> None:
    problem = problem_of(7, 200, 4, weighted=True)
    rows = np.random.default_rng(7).permutation(200)
    with Market(problem) as market, Market(permuted(problem, rows, np.arange(4))) as other:
        part, again = market.sample(60), other.sample(60)
        assert len(part) == 60 and market.sample(200) is market and market.sample(500) is market
        assert sorted(part.client_keys) == sorted(again.client_keys)
        assert part.share == pytest.approx(part.total_load() / market.total_load())
        assert part.share == pytest.approx(again.share)
        prices = np.array([0.0, 1e-3, -1e-3, 1e-4])
        assert part.respond(prices).value == pytest.approx(again.respond(prices).value)


def test_clients_that_weigh_nothing_are_no_sample_of_the_others() -> None:
    problem = replace(problem_of(8, 200, 4, weighted=True), weight=np.zeros((200, 4)))
    with Market(problem) as market:
        assert market.sample(60) is market and market.share == 1.0
