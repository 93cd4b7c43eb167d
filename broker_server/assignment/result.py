"""A policy's answer, and its certificate: how far from the best it can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.problem import Problem


@dataclass(frozen=True, eq=False)
class Assignment:
    """Who trains what. Build one with `Assignment.of`.

    X [C, E]: True where client c holds expert e.
    objective: sum of quality over X.
    bound: no assignment of at most this total violation has a larger objective; nan if the policy
        gives no such certificate.
    gap: (bound - objective) / |bound|, at least 0; nan without a bound.
    load [E]: this round's load of each expert, in samples.
    violated [E]: samples by which a load is below `lower` (negative) or above `upper` (positive).
    solve_s: seconds that it took. solver: what found X.
    violation_bound: no assignment has a smaller total violation; nan without a certificate.
    """

    X: NDArray[np.bool_]
    objective: float
    bound: float
    gap: float
    load: NDArray[Any]
    violated: NDArray[np.float64]
    solve_s: float
    solver: str
    violation_bound: float = math.nan

    @classmethod
    def of(
        cls,
        problem: Problem,
        X: NDArray[np.bool_],
        *,
        solver: str,
        solve_s: float,
        bound: float = math.nan,
        violation_bound: float = math.nan,
    ) -> Assignment:
        """The assignment `X` [C, E] of `problem`: objective, loads and gap are computed here."""
        objective = objective_of(problem, X)
        load = problem.load_of(X)
        violated = violation_of(problem, load)
        # A bound that was summed in another order may fall short by rounding alone.
        bound = bound if math.isnan(bound) else max(bound, objective)
        least = violation_bound
        gap = bound - objective
        return cls(
            X=X,
            objective=objective,
            bound=bound,
            gap=gap / abs(bound) if gap > 0 and bound != 0 else gap,
            load=load,
            violated=violated,
            solve_s=solve_s,
            solver=solver,
            violation_bound=min(least, float(np.abs(violated).sum())),
        )

    @property
    def violation(self) -> float:
        """Total violation: samples outside the bounds, summed over the experts."""
        return float(np.abs(self.violated).sum())


def objective_of(problem: Problem, X: NDArray[np.bool_]) -> float:
    """The sum of quality over `X` [C, E]."""
    return float(
        sum(problem.quality[rows][X[rows]].sum(dtype=np.float64) for rows in problem.blocks())
    )


def violation_of(problem: Problem, load: NDArray[Any]) -> NDArray[np.float64]:
    """Samples [E] by which `load` [E] is above its bound, or, negative, below."""
    above = np.maximum(load - problem.upper, 0.0)
    below: NDArray[np.float64] = np.maximum(problem.lower - load, 0.0)
    return above - below
