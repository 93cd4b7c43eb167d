"""One solver on one instance, in a process of its own: what `benchmarks/assign.py` starts.

    python benchmarks/assign_solvers.py SOLVER FOLDER LIMIT_S

Prints two lines of JSON: the process's peak memory before the solve, in MiB, and what came of it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import assign_instance
import numpy as np
from assign_instance import Instance
from numpy.typing import NDArray

from broker_server.assignment import Assignment, Problem
from broker_server.assignment.flex_moe import exact, prices

_STEPS = 1e-5  # gap that the integer steps of `exact` may leave


@dataclass(frozen=True)
class Outcome:
    """What a solver found; None where there is none.

    max_violation: samples by which the worst expert's load is outside its bounds. status: optimal:
    to 0.001 %, by its own bound; feasible: with a larger gap; fractional: the optimum of the linear
    relaxation, which is only a bound; time limit: the best until then.
    """

    objective: float | None
    bound: float | None
    gap: float | None
    max_violation: float | None
    status: str


Solve = Callable[[Instance, float], Outcome]


def _prices() -> Solve:
    """Ours for any size."""

    def solve(instance: Instance, limit_s: float) -> Outcome:
        return _ours(prices.solve(_problem(instance)), "feasible")

    return solve


def _cp_sat() -> Solve:
    """Ours for small fleets, on OR-Tools CP-SAT: one thread. Its limit is one of work, in units of
    about a second, building and presolve apart: it gets half of the time as that."""

    def solve(instance: Instance, limit_s: float) -> Outcome:
        return _ours(exact.solve(_problem(instance), limit_s / 2), "time limit")

    return solve


def _or_tools(name: str) -> Solve:
    """The linear relaxation, by a solver of OR-Tools."""
    from ortools.linear_solver import pywraplp

    def solve(instance: Instance, limit_s: float) -> Outcome:
        started = time.perf_counter()
        clients, experts = instance.quality.shape
        solver = pywraplp.Solver.CreateSolver(name)
        x = [[solver.NumVar(0, 1, "") for _ in range(experts)] for _ in range(clients)]
        for row, k in zip(x, instance.capacity.tolist(), strict=True):
            chosen = solver.Constraint(k, k)
            for variable in row:
                chosen.SetCoefficient(variable, 1)
        samples = instance.samples.tolist()
        for e, bounds in enumerate(zip(instance.lower, instance.upper, strict=True)):
            load = solver.Constraint(*map(float, bounds))
            for row, n in zip(x, samples, strict=True):
                load.SetCoefficient(row[e], n)
        objective = solver.Objective()
        for row, values in zip(x, instance.quality, strict=True):
            for variable, value in zip(row, values.tolist(), strict=True):
                objective.SetCoefficient(variable, value)
        objective.SetMaximization()
        left_s = limit_s - (time.perf_counter() - started)
        solver.SetTimeLimit(max(1, round(1000 * left_s)))
        status = solver.Solve()
        if status not in (solver.OPTIMAL, solver.FEASIBLE):
            return _fractional(instance, None, math.nan, status == solver.NOT_SOLVED, False)
        X = np.array([[variable.solution_value() for variable in row] for row in x])
        return _fractional(instance, X, objective.Value(), True, status == solver.OPTIMAL)

    return solve


def _highs() -> Solve:
    """The linear relaxation, by HiGHS through scipy, from sparse matrices."""
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    def solve(instance: Instance, limit_s: float) -> Outcome:
        started = time.perf_counter()
        clients, experts = instance.quality.shape
        chosen = sparse.kron(sparse.eye(clients), np.ones((1, experts)), format="csr")
        load = sparse.kron(instance.samples[None, :], sparse.eye(experts), format="csr")
        rows = LinearConstraint(
            sparse.vstack([chosen, load], format="csc"),
            np.concatenate([instance.capacity, instance.lower]),
            np.concatenate([instance.capacity, instance.upper]),
        )
        left_s = max(0.001, limit_s - (time.perf_counter() - started))
        answer = milp(
            -instance.quality.ravel().astype(np.float64),
            constraints=rows,
            bounds=Bounds(0, 1),
            options={"time_limit": left_s},
        )
        X = None if answer.x is None else answer.x.reshape(clients, experts)
        value = math.nan if X is None else -answer.fun
        return _fractional(instance, X, value, answer.status in (0, 1), answer.status == 0)

    return solve


SOLVERS: dict[str, Callable[[], Solve]] = {
    "prices": _prices,
    "cp_sat": _cp_sat,
    "glop": lambda: _or_tools("GLOP"),
    "pdlp": lambda: _or_tools("PDLP"),
    "highs": _highs,
}
"""What makes each solver ready: libraries are loaded before the clock starts."""


def _problem(instance: Instance) -> Problem:
    return Problem(
        instance.quality,
        instance.samples,
        instance.capacity,
        instance.lower,
        instance.upper,
        seed=0,
    )


def _ours(answer: Assignment, otherwise: str) -> Outcome:
    proven = answer.gap <= _STEPS and answer.violation <= answer.violation_bound + 1
    return Outcome(
        objective=answer.objective,
        bound=answer.bound,
        gap=answer.gap,
        max_violation=float(np.abs(answer.violated).max()),
        status="optimal" if proven else otherwise,
    )


def _fractional(
    instance: Instance, X: NDArray[Any] | None, value: float, sound: bool, done: bool
) -> Outcome:
    """What a solver of the linear relaxation gave: `X` [C, E], of quality `value`, if any."""
    status = "fractional" if done else "time limit" if sound else "failed"
    if X is None:
        return Outcome(None, None, None, None, status)
    load = instance.samples @ X
    outside = np.maximum(load - instance.upper, instance.lower - load).max()
    worst = max(0.0, float(outside))
    return Outcome(value, value if done else None, 0.0 if done else None, worst, status)


def peak_mib(process: int | str = "self") -> float:
    """The most memory (VmHWM) that a process has had, in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it has ended and is not yet collected


def main(name: str, folder: str, limit_s: str) -> None:
    instance = assign_instance.read(Path(folder))
    solve = SOLVERS[name]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from what is held now
    before_mib = peak_mib()
    print(json.dumps({"before_mib": before_mib}), flush=True)
    started = time.perf_counter()
    try:
        outcome = solve(instance, float(limit_s))
    except MemoryError:
        outcome = Outcome(None, None, None, None, "memory limit")
    seconds = time.perf_counter() - started
    found = asdict(outcome)
    print(json.dumps({"seconds": seconds, **found, "peak_mib": peak_mib() - before_mib}))


if __name__ == "__main__":
    main(*sys.argv[1:])
