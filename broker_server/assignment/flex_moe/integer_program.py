"""An assignment problem in whole numbers, for OR-Tools CP-SAT, and what the rounding may cost.

CP-SAT knows whole numbers only. Loads and bounds are counted in units of a thousandth of a sample,
quality in millionths of its widest row. Rounded numbers prove nothing about the real ones by
themselves, so the program knows how far off it can be, and what it claims holds for the real
numbers (v: units of violation in the program, V: real samples of it, for the same assignment)::

    1000 V <= v + drift                v <= 1000 V + drift + inset

`drift` is how far the loads can be off; 0 where loads are whole, as sample counts are. `inset` is
what bounds that are no whole units lose by being rounded inwards: it costs a load in whole units
nothing to keep them, so v is 0 wherever V is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from broker_server.assignment.problem import Problem
from edge_runtime.errors import FleetError

_QUALITY_STEPS = 1_000_000  # levels of quality that the program tells apart
_UNITS = 1_000.0  # units of load in a sample
_LARGEST = float(2**53)  # units in all the slacks together, at most: CP-SAT adds in 64 bits
_NOISE = 1e-6  # units; float noise in a bound that is a whole number of units
_FLOAT_NOISE = 1e-15  # of a load, float noise in it


@dataclass(frozen=True)
class Step:
    """What one search gave.

    X [C, E]: the best found, None if there is none. bound: of the goal, in the program's numbers;
    nan if nothing was found. work: deterministic seconds that it took.
    """

    X: NDArray[np.bool_] | None
    bound: float
    work: float


class IntegerProgram:
    """Variables, constraints with slacks, and one goal at a time. seed: CP-SAT's."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem, self._seed = problem, seed
        weight = weight_of(problem)
        total = weight.sum(axis=0)
        # What a bound asks beyond the load of all clients together is missed in any case.
        lower, upper = np.minimum(problem.lower, total), np.minimum(problem.upper, total)
        self._beyond = float((problem.lower - lower).sum())
        self._units = min(_UNITS, _LARGEST / (2 * float(total.sum()) + 1))
        self._blocks = np.rint(weight * self._units).astype(np.int64)
        noise = _NOISE + _FLOAT_NOISE * self._units * total
        self._lower = np.ceil(lower * self._units - noise).astype(np.int64)
        most = self._blocks.sum(axis=0)
        highest = np.floor(upper * self._units + noise).astype(np.int64)
        self._upper = np.where(upper < total, highest, most)  # the loads of all are never too much
        lost = np.where(upper < total, upper * self._units - highest, 0.0)
        inset = np.maximum(self._lower - lower * self._units, lost)
        self._inset = float(np.maximum(inset, 0.0).sum())
        self._off = _most_off(weight * self._units - self._blocks, problem.capacity)
        self._drift = self._off + float(noise.sum())

        rows = np.asarray(problem.quality, np.float64)
        rows = rows - rows.min(axis=1, keepdims=True)
        self._step = max(float(rows.max()), np.finfo(np.float64).tiny) / _QUALITY_STEPS
        self._gains = np.rint(rows / self._step).astype(np.int64)
        self._lost = (rows - self._gains * self._step).max(axis=1)

        self._model = cp_model.CpModel()
        self._x = np.array(
            [
                [self._model.new_bool_var(f"x{c},{e}") for e in range(problem.experts)]
                for c in range(problem.clients)
            ]
        )
        for client, k in zip(self._x, problem.capacity, strict=True):
            self._model.add(cp_model.LinearExpr.sum(client.tolist()) == int(k))
        self._slacks = []  # [2 E]: below, then above, of each expert in turn
        for e in range(problem.experts):
            low, high = int(self._lower[e]), int(self._upper[e])
            blocks = self._blocks[:, e].tolist()
            load = cp_model.LinearExpr.weighted_sum(self._x[:, e].tolist(), blocks)
            below = self._model.new_int_var(0, max(low, 0), f"below{e}")
            above = self._model.new_int_var(0, max(int(most[e]) - high, 0), f"above{e}")
            self._model.add(load + below >= low)
            self._model.add(load - above <= high)
            self._slacks += [below, above]

    def violation(self, X: NDArray[np.bool_]) -> int:
        """Units by which the loads of `X` miss their bounds."""
        return int(self._slack(X).sum())

    def _slack(self, X: NDArray[np.bool_]) -> NDArray[np.int64]:
        """`violation` by its parts [2 E], in the order of the slacks."""
        load = np.where(X, self._blocks, 0).sum(axis=0)
        pairs: NDArray[np.int64] = np.stack([self._lower - load, load - self._upper], axis=1)
        return np.maximum(pairs, 0).ravel()

    def as_bad(self, violation: int) -> int:
        """Units that cover each assignment of at most the real violation that `violation` units
        may stand for: a bound of the quality up to there is one for the real numbers."""
        if violation == 0 and self._off == 0:
            return 0
        return math.floor(violation + self._inset + 2 * self._drift)

    def violation_bound(self, violation: float) -> float:
        """Samples that no assignment goes below, if none goes below `violation` units."""
        return (violation - self._inset - self._drift) / self._units + self._beyond

    def quality_bound(self, gain: float) -> float:
        """The quality that no assignment exceeds, if none exceeds `gain` steps."""
        problem = self._problem
        lowest = problem.quality.min(axis=1).astype(np.float64)
        parts = [gain * self._step, *(problem.capacity * lowest), *(problem.capacity * self._lost)]
        return math.fsum(parts)

    def require_violation(self, samples: float, known: NDArray[np.bool_]) -> None:
        """Tell the solver that no assignment, `known` [C, E] among them, is below `samples`."""
        units = math.ceil((samples - self._beyond) * self._units - self._drift)
        least = min(units, self.violation(known))
        if least > 0:
            self._model.add(cp_model.LinearExpr.sum(self._slacks) >= least)

    def minimize_violation(self) -> None:
        """The goal is now the smallest sum of slacks."""
        self._model.minimize(cp_model.LinearExpr.sum(self._slacks))

    def maximize_quality(self, violation: int) -> None:
        """The goal is now the most quality with at most `violation` units of slack."""
        self._model.add(cp_model.LinearExpr.sum(self._slacks) <= violation)
        flat = self._x.ravel().tolist()
        self._model.maximize(cp_model.LinearExpr.weighted_sum(flat, self._gains.ravel().tolist()))

    def solve(self, start: NDArray[np.bool_], work_limit: float) -> Step:
        """Search from `start`, which keeps every constraint, for `work_limit` at most."""
        self._model.clear_hints()
        for variable, value in zip(self._x.ravel(), start.ravel(), strict=True):
            self._model.add_hint(variable, bool(value))
        for variable, value in zip(self._slacks, self._slack(start), strict=True):
            self._model.add_hint(variable, int(value))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = self._seed
        solver.parameters.max_deterministic_time = max(work_limit, 0.0)
        # Its presolve takes wrong steps where loads have 11 digits or more (OR-Tools 9.15, issues
        # 5274 and 5293): a wrong optimum, or none. Without this part of it no case is known.
        solver.parameters.presolve_inclusion_work_limit = 0
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
            return Step(None, math.nan, work)
        X = np.array([[solver.boolean_value(x) for x in row] for row in self._x])
        return Step(X, solver.best_objective_bound, work)


def weight_of(problem: Problem) -> NDArray[np.float64]:
    """Samples [C, E] that each client brings to each expert."""
    if problem.weight is not None:
        return problem.weight
    shape = (problem.clients, problem.experts)
    return np.broadcast_to(problem.samples[:, None].astype(np.float64), shape)


def _most_off(off: NDArray[np.float64], capacity: NDArray[np.int64]) -> float:
    """How far all loads together can be off if pairs are by `off` [C, E], each client in k_c."""
    by_expert = np.maximum(np.maximum(off, 0).sum(axis=0), np.maximum(-off, 0).sum(axis=0))
    largest = -np.sort(-np.abs(off), axis=1)
    by_client = largest[np.arange(off.shape[1]) < capacity[:, None]]
    return float(min(by_expert.sum(), by_client.sum()))
