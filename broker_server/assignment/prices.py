"""The assignment by prices: near optimal, with a certificate, at any scale.

The dual gives prices and a bound (`dual`); at these prices each client chooses for itself
(`market`); what does not fit the bounds is repaired (`repair`). The result is the same for the same
problem, and its clients and experts may come in any order.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment import dual
from broker_server.assignment.least_violation import least_violation
from broker_server.assignment.market import Market
from broker_server.assignment.neighbourhood import settle
from broker_server.assignment.plan import STILL, Plan
from broker_server.assignment.problem import Problem
from broker_server.assignment.repair import fit, improve, move_out
from broker_server.assignment.result import Assignment, objective_of

_NEAREST = 4096  # clients that a repair looks at first
_MORE = 8  # times as many, when these did not do
_FEW_PAIRS = 1024
_FINE = 1e-6  # a gap that is not worth more work
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
        plan = Plan(problem, _chosen(answer.picks, problem.experts))
        nearest = np.argsort(answer.margins, kind="stable")
        nearest = nearest[np.isfinite(answer.margins[nearest])]  # the others hold every expert
        _repair(plan, prices, nearest, best)
        if alone and len(nearest) and plan.violation > _worth_settling(problem):
            settle(plan, nearest)
        bound, least = best.bound(plan.violation), 0.0
        if plan.violation > STILL:
            bound = _bound_for(plan.violation, problem, market, scale, best)
            least = least_violation(problem, plan.violation)
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
    plan: Plan, prices: NDArray[np.float64], nearest: NDArray[np.int64], best: dual.Prices
) -> None:
    """Fit `plan` into its bounds. Clients with the smallest margins lose least: they come first."""
    count = _NEAREST
    while len(nearest):
        clients = nearest[:count]
        move_out(plan, prices, clients)
        fit(plan, prices, clients)
        if plan.violation <= _worth_settling(plan.problem) or count >= len(nearest):
            break
        count *= _MORE
    gap = best.bound(plan.violation) - objective_of(plan.problem, plan.X)
    if len(nearest) and gap > _FINE * abs(best.value):
        improve(plan, prices, nearest[:_NEAREST])


def _worth_settling(problem: Problem) -> float:
    """Violation up to which more search is in vain: bounds lie between the loads that can be."""
    small = problem.clients * problem.experts <= _FEW_PAIRS
    return STILL if small else float(problem.experts)


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
        if violation * limit < _FINE * abs(best.value):
            break
        prices, _ = dual.refine(problem, market, scale, best.prices, limit)
        bound = min(bound, dual.certify(problem, market, prices).bound(violation))
    return bound if math.isfinite(bound) else math.nan
