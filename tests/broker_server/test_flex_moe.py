"""The policy's choice of solver, and that together they are no worse than prices alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.assignment import Problem, flex_moe, policy
from broker_server.assignment.flex_moe import EXACT_PAIRS, assign, exact, prices
from edge_runtime.errors import ConfigError
from tests.broker_server.sample_problems import everything, problems, rounding, sample_problem

pytestmark = pytest.mark.filterwarnings("error")

SMALL = st.booleans().flatmap(lambda weighted: problems(weighted=weighted))


@settings(max_examples=100, derandomize=True)
@given(SMALL)
def test_auto_is_no_worse_than_prices_alone(problem: Problem) -> None:
    auto, alone = assign(problem), prices.solve(problem)
    unseen = 1e-9
    bounds = np.append(problem.lower, problem.upper[np.isfinite(problem.upper)])
    if problem.weight is not None or (bounds * 8 % 1).any():
        # CP-SAT counts what are not eighths in thousandths.
        unseen += 0.001 * (int(problem.capacity.sum()) + problem.experts)
    assert auto.violation <= alone.violation + unseen
    violations, objectives = everything(problem)
    best = objectives[violations <= auto.violation + 1e-9].max()
    assert auto.bound >= best - 1e-9
    assert auto.violation_bound <= violations.min() + 1e-9
    if abs(auto.violation - alone.violation) <= 1e-9:
        assert auto.objective >= alone.objective - rounding(problem)
        assert auto.bound - auto.objective <= alone.bound - alone.objective + 2 * rounding(problem)


@settings(max_examples=50, derandomize=True)
@given(problems())
def test_auto_finds_the_optimum_of_small_problems(problem: Problem) -> None:
    auto = assign(problem)
    violations, objectives = everything(problem)
    unseen = 0.001 * problem.experts + 1e-6
    assert auto.violation <= violations.min() + unseen
    # Violations that CP-SAT cannot tell apart count as equal.
    best = objectives[violations <= auto.violation - unseen].max(initial=-math.inf)
    if violations.min() <= auto.violation <= 1e-9:
        best = objectives[violations <= auto.violation].max()
    left = max(2e-6, flex_moe._PROVEN) * abs(auto.bound)
    assert auto.objective >= best - left - rounding(problem)


def of_size(clients: int, experts: int, **changes: Any) -> Problem:
    rng = np.random.default_rng(clients)
    return Problem.balanced(
        rng.random((clients, experts)),
        rng.integers(50, 500, clients),
        rng.integers(1, min(4, experts) + 1, clients),
        delta=0.1,
        **changes,
    )


def test_auto_picks_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = of_size(EXACT_PAIRS // 8, 8), of_size(EXACT_PAIRS // 8 + 1, 8)
    assert min(prices.solve(small).gap, prices.solve(large).gap) > flex_moe._PROVEN
    asked: list[int] = []
    solve = exact.solve

    def counted(problem: Problem, *args: Any, **options: Any) -> Any:
        asked.append(problem.clients)
        return solve(problem, *args, **options)

    monkeypatch.setattr(flex_moe.exact, "solve", counted)
    assert assign(small, work_limit=0.05).violation == 0
    assert asked == [small.clients]
    assert assign(large).solver == "prices"
    assert asked == [small.clients]


def test_auto_asks_nobody_where_prices_leave_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(flex_moe.exact, "solve", never)
    free = sample_problem(lower=np.zeros(8), upper=np.full(8, math.inf))
    answer = assign(free)
    assert answer.solver == "prices" and answer.gap <= flex_moe._PROVEN
    with pytest.raises(AssertionError, match="asked"):
        assign(free, "exact")


def test_auto_names_the_solver_that_found_the_answer() -> None:
    problem = sample_problem()
    first = prices.solve(problem)
    stopped = assign(problem, work_limit=0.0)
    assert stopped.solver in ("prices", "balanced-start")
    assert stopped.objective >= first.objective - 1e-9 and stopped.gap <= first.gap + 1e-9
    best = assign(problem)
    assert best.objective >= first.objective and best.gap <= first.gap and best.solve_s > 0
    assert best.solver in (
        ("cp-sat",) if best.objective > first.objective else ("cp-sat", "prices")
    )


@pytest.mark.parametrize("solver", ["prices", "exact"])
def test_a_solver_can_be_asked_for(solver: Any) -> None:
    problem = replace(sample_problem(), seed=5)
    wanted = (prices if solver == "prices" else exact).solve(problem)
    for answer in (assign(problem, solver), policy("flex_moe", solver=solver)(problem)):
        assert answer.solver == wanted.solver
        np.testing.assert_array_equal(answer.X, wanted.X)


def test_there_is_no_other_solver() -> None:
    with pytest.raises(ConfigError, match=r"unknown solver 'glop'; choose one of auto, exact, pri"):
        assign(sample_problem(), "glop")  # type: ignore[arg-type]
