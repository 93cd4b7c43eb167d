"""The assignment by prices and its certificate, against brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from broker_server.assignment import Assignment, Problem
from broker_server.assignment.flex_moe import dual, exact, prices
from broker_server.assignment.flex_moe.prices import solve
from tests.broker_server.sample_problems import everything, permuted, problems, sample_problem

pytestmark = pytest.mark.filterwarnings("error")


def as_float64(problem: Problem) -> Problem:
    return replace(problem, quality=np.asarray(problem.quality, np.float64))


def assert_certified(problem: Problem, answer: Assignment) -> tuple[float, float]:
    """The certificate is true by brute force; the least violation, and the best quality at that of
    the answer."""
    violations, objectives = everything(as_float64(problem))
    size = float(np.abs(problem.quality).sum(dtype=np.float64))
    load = np.abs(answer.load).sum() + problem.lower.sum()
    best = float(objectives[violations <= answer.violation + 1e-12 * load].max())
    assert (answer.X.sum(axis=1) == problem.capacity).all()
    assert answer.solver == "prices" and answer.solve_s > 0
    assert answer.bound >= best - 1e-13 * size
    assert answer.bound >= answer.objective
    gap = answer.bound - answer.objective
    assert answer.gap == pytest.approx(gap / abs(answer.bound) if answer.bound else gap)
    assert 0 <= answer.violation_bound <= violations.min() + 1e-9 + 1e-12 * load
    return float(violations.min()), best


@settings(max_examples=300, derandomize=True)
@given(problems())
def test_it_keeps_the_bounds_wherever_they_can_be_kept(problem: Problem) -> None:
    answer = solve(problem)
    least, _ = assert_certified(problem, answer)
    # CP-SAT, which settles what the prices leave, counts in thousandths.
    assert answer.violation <= least + 0.001 * problem.experts + 1e-6


@settings(max_examples=150, derandomize=True)
@given(problems(weighted=True))
def test_it_keeps_the_bounds_of_weighed_pairs(problem: Problem) -> None:
    answer = solve(problem)
    least, _ = assert_certified(problem, answer)
    unseen = 0.001 * (int(problem.capacity.sum()) + problem.experts) + 1e-6
    assert answer.violation <= least + unseen


@pytest.mark.parametrize("seed", range(60))
def test_the_certificate_is_true_in_any_units(seed: int) -> None:
    """Offsets, constants, tiny and huge numbers, sizes from 1 to 1e9, pairs without weight."""
    rng = np.random.default_rng(seed)
    clients, experts = (int(n) for n in rng.integers(1, 6, 2))
    shape = (clients, experts)
    quality: NDArray[Any] = [
        rng.random(shape) + 1e9,
        np.full(shape, 7.0),
        rng.integers(0, 3, shape) * 1e-12,
        rng.normal(size=shape) * 10 ** rng.uniform(-3, 8, (clients, 1)),
        rng.random(shape) * 1e29,
    ][seed % 5]
    samples = np.where(rng.random(clients) < 0.5, 1, 10**9)
    weight = [None, np.zeros(shape), samples[:, None] * rng.integers(0, 2, shape) * 0.7][seed % 3]
    load = samples[:, None] * np.ones(shape) if weight is None else weight
    fair = float(load.sum()) / experts
    lower = fair * rng.random(experts) * rng.choice([0.0, 0.3, 3.0])
    upper = np.where(rng.random(experts) < 0.4, math.inf, fair * rng.random(experts))
    problem = Problem(
        quality=quality.astype(np.float32 if seed % 2 else np.float64),
        samples=samples,
        capacity=np.full(clients, experts)
        if seed % 7 == 0
        else rng.integers(1, experts + 1, clients),
        lower=lower,
        upper=np.maximum(lower, upper),
        seed=seed,
        weight=weight,
    )
    answer = solve(problem)
    assert math.isfinite(answer.bound) and math.isfinite(answer.gap)
    assert_certified(problem, answer)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_near_the_optimum_of_medium_problems(seed: int) -> None:
    """Far from each other are the sizes of clients, not those of the answers."""
    rng = np.random.default_rng(seed)
    problem = Problem.balanced(
        rng.random((40, 6)) + (1e9 if seed % 4 == 0 else 0.0),
        rng.integers(20, 200, 40),
        rng.integers(1, 4, 40),
        delta=0.1,
        seed=seed,
    )
    answer = solve(problem)
    stake = dual.Scale.of(problem).stake
    best = exact.solve(problem, 0.2, answer.X, best_bound=answer.bound)
    assert answer.violation == best.violation == 0
    assert best.objective <= answer.bound + 1e-9 * abs(answer.bound)
    assert answer.bound - answer.objective <= 0.03 * stake
    assert best.objective - answer.objective <= 0.02 * stake


def distinct(seed: int, clients: int, experts: int, **changes: Any) -> Problem:
    """A problem without ties whose bounds bind, and can be kept."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "quality": rng.random((clients, experts)) + np.linspace(0, 0.5, experts),
        "samples": rng.integers(1, 50, clients),
        "capacity": rng.integers(1, experts, clients),
        "delta": 0.1,
        "seed": seed,
    }
    return Problem.balanced(**{**fields, **changes})


@pytest.mark.parametrize(
    "problem",
    [*(distinct(seed, 60, 6) for seed in range(8)), distinct(9, 3000, 5)],
    ids=lambda problem: f"{problem.clients}-{problem.seed}",
)
def test_the_order_of_clients_and_experts_does_not_matter(problem: Problem) -> None:
    rng = np.random.default_rng(problem.seed)
    rows, columns = rng.permutation(problem.clients), rng.permutation(problem.experts)
    answer = solve(problem)
    assert answer.violation == 0 < answer.gap < 0.02
    other = solve(permuted(replace(problem, history=None), rows, columns))
    np.testing.assert_array_equal(other.X, answer.X[np.ix_(rows, columns)])


@pytest.mark.parametrize("quality", [np.zeros((60, 6)), np.arange(360).reshape(60, 6) // 4 % 3])
def test_ties_are_broken_by_the_seed(quality: NDArray[Any]) -> None:
    changes = {"quality": quality, "samples": np.full(60, 10), "capacity": np.full(60, 2)}
    answers = [solve(distinct(seed, 60, 6, **changes)) for seed in (1, 1, 2, 3)]
    first, again, *others = answers
    np.testing.assert_array_equal(first.X, again.X)
    assert first.violation == 0
    for other in others:
        assert (other.X != first.X).any()
        assert other.objective == pytest.approx(first.objective, abs=1e-3)
        assert other.violation == 0


@pytest.mark.parametrize("problem", [distinct(1, 60, 6), sample_problem(upper=np.full(8, np.inf))])
def test_the_same_problem_has_the_same_answer(problem: Problem) -> None:
    first, again = solve(problem), solve(problem)
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.bound, first.objective) == (again.bound, again.objective)


def test_without_bounds_each_client_takes_its_best() -> None:
    problem = sample_problem(lower=np.zeros(8), upper=np.full(8, np.inf))
    answer = solve(problem)
    assert answer.objective == pytest.approx(exact.best_quality(problem))
    assert answer.gap <= 1e-12 and answer.violation == answer.violation_bound == 0


@pytest.mark.parametrize(
    ("clients", "experts"), [(1, 1), (1, 5), (5, 1), (30, 20)], ids=["1x1", "1x5", "5x1", "30x20"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_who_takes_every_expert_has_one_answer(clients: int, experts: int, weighted: bool) -> None:
    rng = np.random.default_rng(clients)
    shape = (clients, experts)
    problem = Problem(
        quality=rng.normal(size=shape),
        samples=rng.integers(1, 100, clients),
        capacity=np.full(clients, experts),
        lower=np.full(experts, 10.0),
        upper=np.full(experts, 20.0),
        seed=0,
        weight=100 * rng.random(shape) if weighted else None,
    )
    answer = solve(problem)
    assert answer.X.all()
    assert answer.objective == pytest.approx(problem.quality.sum()) and answer.gap <= 1e-12
    assert answer.violation_bound <= answer.violation


@pytest.mark.parametrize("clients", [1, 2])
def test_a_few_clients_of_many_experts(clients: int) -> None:
    problem = sample_problem(clients=clients, experts=20)
    answer = solve(problem)
    best = exact.solve(problem)
    assert answer.violation <= best.violation + 0.02
    assert answer.violation_bound <= best.violation + 0.02


def test_quality_of_a_file_gives_the_same_answer(tmp_path: Path) -> None:
    held = distinct(5, 60, 6)
    held = replace(held, quality=held.quality.astype(np.float32))
    np.save(tmp_path / "quality.npy", held.quality)
    mapped = replace(held, quality=np.load(tmp_path / "quality.npy", mmap_mode="r"))
    assert isinstance(mapped.quality.base, np.memmap)
    np.testing.assert_array_equal(solve(mapped).X, solve(held).X)


@pytest.mark.parametrize("weighted", [False, True])
def test_where_bounds_are_too_tight_the_certificate_says_how_near_it_is(weighted: bool) -> None:
    """More load than the upper bounds take: who misses least is known."""
    rng = np.random.default_rng(0)
    samples, capacity = rng.integers(50, 500, 400), rng.integers(1, 4, 400)
    load = float(samples @ capacity)
    problem = Problem(
        quality=rng.random((400, 8)),
        samples=samples,
        capacity=capacity,
        lower=np.zeros(8),
        upper=np.full(8, 0.1 * load),
        seed=0,
        weight=samples[:, None] * np.ones(8) if weighted else None,
    )
    answer = solve(problem)
    assert answer.violation == pytest.approx(0.2 * load)
    assert answer.violation_bound == pytest.approx(0.2 * load)
    assert answer.gap < 1e-3


def test_more_clients_are_looked_at_where_the_nearest_do_not_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = distinct(3, 400, 6, delta=0.0)
    wide = solve(problem)
    monkeypatch.setattr(prices, "_NEAREST", 2)
    narrow = solve(problem)
    assert wide.violation == narrow.violation == 0
    assert narrow.gap < 0.05


def test_alone_it_settles_what_moves_and_swaps_do_not() -> None:
    """Sizes that add up in one way only."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(8):
        samples = rng.integers(100, 1000, 9)
        first = float(samples[[0, 2, 3, 7]].sum())
        limits = np.array([first, float(samples.sum()) - first])
        problem = Problem(rng.random((9, 2)), samples, np.ones(9, int), limits, limits, 0)
        alone, followed = solve(problem), solve(problem, alone=False)
        assert alone.violation == 0 <= followed.violation
        assert_certified(problem, followed)
        found.append(followed.violation > 0)
    assert any(found)
