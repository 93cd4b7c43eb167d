"""The assignment by prices: near optimal, with a certificate, at any scale.

The dual gives prices and a bound (`dual`); at these prices each client chooses for itself
(`market`); what does not fit the bounds is repaired (`repair`). The result is the same for the same
problem, and its clients and experts may come in any order.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe import dual
from broker_server.assignment.flex_moe.least_violation import least_violation
from broker_server.assignment.flex_moe.market import Market
from broker_server.assignment.flex_moe.neighbourhood import settle
from broker_server.assignment.flex_moe.plan import STILL, Plan
from broker_server.assignment.flex_moe.repair import fit, improve, move_out
from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment, objective_of

_NEAREST = 4096  # clients that a repair looks at first
_MORE = 8  # times as many, when these did not do
_FEW_PAIRS = 1024  # up to which all violation counts
_SLIVER = 0.01  # of a mean client's load, for each expert; at most a sample
_FINE = 1e-6  # of the stake: a gap that is not worth more work
_LIMITS = (0.3, 0.1, 0.03, 0.01)  # of the largest price: bounds for a violation that stays


def solve(problem: Problem, alone: bool = True) -> Assignment:
    """The assignment of (nearly) least violation, then (nearly) most quality.

    alone: no other solver goes on from here, so where bounds are missed, the clients that matter
    most are assigned by an integer program.
    """
    started = time.perf_counter()
    scale = dual.Scale.of(problem)
    with Market(problem) as market:
        prices = dual.search(problem, market, scale)
        best = dual.certify(problem, market, prices)
        answer = market.respond(prices, jitter=scale.jitter, choices=True)
        X = _chosen(answer.picks, problem.experts)
        plan = Plan(problem, X, np.argsort(market.expert_keys))
        nearest = np.argsort(answer.margins, kind="stable")
        nearest = nearest[np.isfinite(answer.margins[nearest])]  # the others hold every expert
        _repair(plan, prices, nearest, best.bound, _FINE * scale.stake)
        least = least_violation(problem, plan.violation) if plan.violation > STILL else 0.0
        if alone and len(nearest) and plan.violation > least + _negligible(problem):
            settle(plan, nearest)
        bound = best.bound(plan.violation)
        if plan.violation > STILL:
            bound = _bound_for(plan.violation, problem, market, scale, best)
    return Assignment.of(
        problem,
        plan.X,
        solver="prices",
        solve_s=time.perf_counter() - started,
        bound=bound,
        violation_bound=least,
    )


def _chosen(picks: NDArray[np.int32], experts: int) -> NDArray[np.bool_]:
    """X [C, E] of each client's experts; -1 is none."""
    X = np.zeros((len(picks), experts), np.bool_)
    for column in picks.T:
        rows = np.flatnonzero(column >= 0)
        X[rows, column[rows]] = True
    return X


def _repair(
    plan: Plan,
    prices: NDArray[np.float64],
    nearest: NDArray[np.int64],
    bound: Callable[[float], float],
    fine: float,
) -> None:
    """Fit `plan` into its bounds. Clients with the smallest margins lose least: they come first.

    bound: the most quality at a violation; within `fine` of it, no more is looked for.
    """
    count = _NEAREST
    while len(nearest):
        clients = nearest[:count]
        move_out(plan, prices, clients)
        fit(plan, prices, clients)
        if plan.violation <= _negligible(plan.problem) or count >= len(nearest):
            break
        count *= _MORE
    gap = bound(plan.violation) - objective_of(plan.problem, plan.X)
    if len(nearest) and gap > fine:
        improve(plan, prices, nearest[:_NEAREST])


def _negligible(problem: Problem) -> float:
    """Violation that is not worth more search: bounds lie between the loads that can be."""
    if problem.clients * problem.experts <= _FEW_PAIRS:
        return STILL
    weight = problem.samples if problem.weight is None else problem.weight
    return problem.experts * min(1.0, _SLIVER * float(weight.mean()))


def _bound_for(
    violation: float,
    problem: Problem,
    market: Market,
    scale: dual.Scale,
    best: dual.Prices,
) -> float:
    """The smallest bound for assignments that miss their bounds by `violation`.

    High prices make such a bound loose, low ones the dual: some limits between are tried.
    """
    highest = float(np.abs(best.prices).max())
    bound = min(best.bound(violation), dual.certify(problem, market, 0 * best.prices).value)
    for share in _LIMITS:
        limit = share * highest
        if violation * limit <= _FINE * scale.stake:
            break
        prices, _ = dual.refine(problem, market, scale, best.prices, limit)
        bound = min(bound, dual.certify(problem, market, prices).bound(violation))
    return bound
