"""Assign a few clients anew, exactly, while all others keep what they have.

Large neighbourhood search (Shaw 1998): where single moves and swaps end, an integer program looks
at all changes of a few clients at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe import exact
from broker_server.assignment.flex_moe.plan import STILL, Plan
from broker_server.assignment.problem import Problem
from broker_server.assignment.result import objective_of

_PAIRS = 1024  # of client and expert: as many as CP-SAT searches well
_WORK_LIMIT = 0.3  # CP-SAT's deterministic seconds


def settle(plan: Plan, clients: NDArray[np.int64]) -> None:
    """Assign the first of `clients`, as many as can be, anew: for less violation, then quality."""
    problem = plan.problem
    free = clients[: max(2, _PAIRS // problem.experts)]
    fixed = plan.X.copy()
    fixed[free] = False
    kept = problem.load_of(fixed)
    part = Problem(
        problem.quality[free],
        problem.samples[free],
        problem.capacity[free],
        np.maximum(problem.lower - kept, 0.0),
        np.maximum(problem.upper - kept, 0.0),
        problem.seed,
        weight=None if problem.weight is None else problem.weight[free],
    )
    found = exact.solve(part, _WORK_LIMIT, plan.X[free])
    fixed[free] = found.X
    settled = Plan(problem, fixed)
    gained = objective_of(problem, fixed) > objective_of(problem, plan.X)
    if settled.violation < plan.violation - STILL or (
        settled.violation <= plan.violation and gained
    ):
        plan.X, plan.load = settled.X, settled.load
