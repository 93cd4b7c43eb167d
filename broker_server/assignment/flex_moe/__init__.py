"""The load-balanced assignment of FLEX-MoE.

Paper: Zhang et al., "FLEX-MoE: Federated Mixture-of-Experts with Load-balanced Expert Assignment",
arXiv 2512.23070::

    maximize   sum_{c,e} Q[c,e] X[c,e]
    subject to sum_e X[c,e] = k_c,   lower[e] <= sum_c n_c X[c,e] <= upper[e],   X in {0, 1}

The paper names no solver. There are two, and both give a certificate: `prices`, for any size, and
`exact`, an integer program for small fleets. Where the bounds cannot be kept (one client with many
samples is enough; the paper is silent), the least violation comes first, then the most quality.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from broker_server.assignment.flex_moe import exact, prices
from broker_server.assignment.flex_moe.exact import WORK_LIMIT
from broker_server.assignment.flex_moe.plan import STILL
from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment
from edge_runtime.errors import ConfigError

Solver = Literal["auto", "exact", "prices"]

EXACT_PAIRS = 256
"""Clients times experts up to which `auto` looks for the optimum."""

AUTO_WORK_LIMIT = 0.25
"""CP-SAT's deterministic seconds in `auto`: a round should not wait for the last digit."""

_PROVEN = 1e-4  # a gap that leaves nothing to look for


def assign(
    problem: Problem, solver: Solver = "auto", work_limit: float | None = None
) -> Assignment:
    """The assignment of least violation, then most quality, as far as the solver finds it.

    ``prices``: near optimal, in seconds for 100,000 clients. ``exact``: CP-SAT. ``auto``: prices,
    and where these leave a gap and there are at most `EXACT_PAIRS` pairs, CP-SAT goes on from
    there. work_limit: CP-SAT's deterministic seconds (about 1 s each) at most; by default
    `WORK_LIMIT`, and `AUTO_WORK_LIMIT` for auto. `ConfigError` for another solver.
    """
    if solver == "exact":
        return exact.solve(problem, WORK_LIMIT if work_limit is None else work_limit)
    if solver == "prices":
        return prices.solve(problem)
    if solver != "auto":
        raise ConfigError(f"unknown solver {solver!r}; choose one of {', '.join(get_args(Solver))}")
    small = problem.clients * problem.experts <= EXACT_PAIRS
    first = prices.solve(problem, alone=not small)
    if not small or (first.gap <= _PROVEN and first.violation <= first.violation_bound + STILL):
        return first
    best = exact.solve(
        problem,
        AUTO_WORK_LIMIT if work_limit is None else work_limit,
        first.X,
        best_bound=first.bound,
        least_violation=first.violation_bound,
    )
    return replace(
        best,
        solve_s=first.solve_s + best.solve_s,
        solver=first.solver if best.solver == "start" else best.solver,
    )
