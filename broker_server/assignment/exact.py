"""The load-balanced assignment of FLEX-MoE, as an integer program for OR-Tools CP-SAT.

Paper: Zhang et al., "FLEX-MoE: Federated Mixture-of-Experts with Load-balanced Expert Assignment",
arXiv 2512.23070::

    maximize   sum_{c,e} Q[c,e] X[c,e]
    subject to sum_e X[c,e] = k_c,   lower[e] <= sum_c n_c X[c,e] <= upper[e],   X in {0, 1}

The paper is silent about bounds that cannot be met (one client with many samples is enough). Here
they are soft, in a strict order: first the least total violation, then the most quality among the
assignments of that violation. So there are two solves, and each starts from what is known:

1. A balanced start, large clients first. If it keeps the bounds, and it mostly does, the least
   violation is 0 and solve 2 is skipped.
2. Minimize the violation, from the start.
3. Maximize the quality, the violation held at what 1 or 2 reached.

One worker, a seed, and a limit on CP-SAT's deterministic time: a problem has one answer, on a fast
machine or a slow one (of the same OR-Tools release). Clients and experts are shuffled by the seed
before the solver sees them, so that it, not the order of names, settles ties.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment
from edge_runtime.errors import FleetError

WORK_LIMIT = 1.0
"""Default limit of both solves together, in CP-SAT's deterministic seconds (about 1 s each)."""

_QUALITY_STEPS = 1_000_000  # levels of quality that the integer program tells apart
_UNITS = 1_000  # units of load per sample, since bounds are fractions of samples
_ROUNDING = 1e-6  # units; float noise in a bound


def solve(problem: Problem, work_limit: float = WORK_LIMIT) -> Assignment:
    """The assignment of least violation, then most quality, that was found within `work_limit`.

    If the limit ends the search, this is the best so far and `gap` or `violation_bound` shows it.
    `solver` is ``cp-sat``, or ``balanced-start`` where CP-SAT found nothing within the limit, as
    can happen from about a thousand clients on.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(problem.seed)
    rows, columns = rng.permutation(problem.clients), rng.permutation(problem.experts)
    shuffled = replace(
        problem,
        quality=problem.quality[np.ix_(rows, columns)],
        samples=problem.samples[rows],
        capacity=problem.capacity[rows],
        lower=problem.lower[columns],
        upper=problem.upper[columns],
    )
    program = _Program(shuffled, int(rng.integers(2**31)))

    # 1. A start that is always there.
    X, solver, work = balanced_start(shuffled), "balanced-start", 0.0
    least = 0.0
    # 2. The least violation.
    if program.slack(X).any():
        program.minimize_violation()
        step = program.solve(X, work_limit / 2)
        least, work = step.bound / _UNITS, step.work
        if step.X is not None:
            X, solver = step.X, "cp-sat"
    # 3. The most quality at that violation.
    program.maximize_quality(int(program.slack(X).sum()))
    step = program.solve(X, max(work_limit - work, work_limit / 2))
    if step.X is not None:
        X, solver = step.X, "cp-sat"

    answer = np.zeros_like(X)
    answer[np.ix_(rows, columns)] = X
    return Assignment.of(
        problem,
        answer,
        solver=solver,
        solve_s=time.perf_counter() - started,
        # fmin and fmax pass over the nan of a solve that ended without a bound.
        bound=float(np.fmin(program.quality_bound(step.bound), best_quality(problem))),
        violation_bound=float(np.fmax(least - problem.experts / _UNITS, 0.0)),
    )


def balanced_start(problem: Problem) -> NDArray[np.bool_]:
    """An assignment [C, E] with even loads: the client with most samples first, each takes the
    `k_c` experts that are furthest below the middle of their bounds (Graham's longest first)."""
    load = -(problem.lower + np.minimum(problem.upper, problem.samples.sum())) / 2
    X = np.zeros(problem.quality.shape, dtype=np.bool_)
    for client in np.argsort(-problem.samples, kind="stable"):
        chosen = np.argsort(load, kind="stable")[: problem.capacity[client]]
        X[client, chosen] = True
        load[chosen] += problem.samples[client]
    return X


def best_quality(problem: Problem) -> float:
    """The quality when each client takes its top `k_c`: what load bounds can only lower."""
    ranked = np.sort(problem.quality, axis=1)[:, ::-1]
    return float(ranked[np.arange(problem.experts) < problem.capacity[:, None]].sum())


@dataclass(frozen=True)
class _Step:
    """What one solve gave: `X` and the bound of its goal (None and nan if nothing was found), and
    the work it took."""

    X: NDArray[np.bool_] | None
    bound: float
    work: float


class _Program:
    """The integer program: variables, constraints with slacks, and one goal at a time."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem, self._seed = problem, seed
        all_samples = int(problem.samples.sum())
        # Loads are whole, so rounding bounds inwards by less than a sample loses nothing feasible.
        self._lower = np.ceil(problem.lower * _UNITS - _ROUNDING).astype(np.int64)
        upper = np.minimum(problem.upper, all_samples)
        self._upper = np.floor(upper * _UNITS + _ROUNDING).astype(np.int64)
        rows = problem.quality - problem.quality.min(axis=1, keepdims=True)
        self._step = max(float(rows.max()), np.finfo(np.float64).tiny) / _QUALITY_STEPS
        self._weights = np.rint(rows / self._step).astype(np.int64)

        self._model = cp_model.CpModel()
        self._x = np.array(
            [
                [self._model.new_bool_var(f"x{c},{e}") for e in range(problem.experts)]
                for c in range(problem.clients)
            ]
        )
        for client, k in zip(self._x, problem.capacity, strict=True):
            self._model.add(cp_model.LinearExpr.sum(client.tolist()) == int(k))
        blocks = (problem.samples * _UNITS).tolist()
        self._slacks = []  # [2 E]: below, then above, of each expert in turn
        for e in range(problem.experts):
            low, high = int(self._lower[e]), int(self._upper[e])
            load = cp_model.LinearExpr.weighted_sum(self._x[:, e].tolist(), blocks)
            below = self._model.new_int_var(0, low, f"below{e}")
            above = self._model.new_int_var(0, max(all_samples * _UNITS - high, 0), f"above{e}")
            self._model.add(load + below >= low)
            self._model.add(load - above <= high)
            self._slacks += [below, above]

    def slack(self, X: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Units [2 E] by which the loads of `X` miss their bounds, in the order of the slacks."""
        load = (self._problem.samples @ X) * _UNITS
        pairs = np.stack([self._lower - load, load - self._upper], axis=1)
        return np.maximum(pairs, 0).ravel()

    def minimize_violation(self) -> None:
        """The goal is now the smallest sum of slacks."""
        self._model.minimize(cp_model.LinearExpr.sum(self._slacks))

    def maximize_quality(self, violation: int) -> None:
        """The goal is now the most quality with at most `violation` units of slack."""
        self._model.add(cp_model.LinearExpr.sum(self._slacks) <= violation)
        flat = self._x.ravel().tolist()
        self._model.maximize(cp_model.LinearExpr.weighted_sum(flat, self._weights.ravel().tolist()))

    def quality_bound(self, weight: float) -> float:
        """The quality that no assignment exceeds, if none exceeds `weight` in integer steps."""
        problem = self._problem
        lowest = problem.quality.min(axis=1)
        lost = (problem.quality - lowest[:, None] - self._weights * self._step).max(axis=1)
        return float(weight * self._step + (problem.capacity * (lowest + lost)).sum())

    def solve(self, start: NDArray[np.bool_], work_limit: float) -> _Step:
        """Search from `start`, which keeps every constraint, for `work_limit` at most."""
        self._model.clear_hints()
        for variable, value in zip(self._x.ravel(), start.ravel(), strict=True):
            self._model.add_hint(variable, bool(value))
        for variable, value in zip(self._slacks, self.slack(start), strict=True):
            self._model.add_hint(variable, int(value))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = self._seed
        solver.parameters.max_deterministic_time = work_limit
        # Else CP-SAT leaves Ctrl-C without a handler: the next one would kill us on the spot.
        solver.parameters.catch_sigint_signal = False
        status = solver.solve(self._model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN):
            raise FleetError(
                f"assignment: CP-SAT refuses the program ({solver.status_name(status)}); "
                f"check samples, bounds and work limit {work_limit}"
            )
        work = solver.response_proto.deterministic_time
        if status == cp_model.UNKNOWN:
            return _Step(None, math.nan, work)
        X = np.array([[solver.boolean_value(x) for x in row] for row in self._x])
        return _Step(X, solver.best_objective_bound, work)
