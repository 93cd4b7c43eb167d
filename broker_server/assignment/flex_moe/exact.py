"""The load-balanced assignment of FLEX-MoE, as an integer program for OR-Tools CP-SAT.

Paper: Zhang et al., "FLEX-MoE: Federated Mixture-of-Experts with Load-balanced Expert Assignment",
arXiv 2512.23070::

    maximize   sum_{c,e} Q[c,e] X[c,e]
    subject to sum_e X[c,e] = k_c,   lower[e] <= sum_c n_c X[c,e] <= upper[e],   X in {0, 1}

The paper is silent about bounds that cannot be met (one client with many samples is enough). Here
they are soft, in a strict order: first the least total violation, then the most quality among the
assignments of that violation. So there are two solves, and each starts from what is known:

1. A balanced start, large clients first, or the caller's. If it keeps the bounds, and it mostly
   does, or if `least_violation` shows that none is better, solve 2 is skipped.
2. Minimize the violation, from the start.
3. Maximize the quality, the violation held at what 1 or 2 reached.

Where loads are not whole numbers, violations that the integer program cannot tell apart count as
equal. The bound of the quality then comes from a solve that allows a little more violation, and if
that one's answer makes use of it, a fourth solve finds the answer without.

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

from broker_server.assignment.flex_moe.integer_program import IntegerProgram, weight_of
from broker_server.assignment.flex_moe.least_violation import least_violation as provable_violation
from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment, objective_of, violation_of
from edge_runtime.errors import FleetError

WORK_LIMIT = 1.0
"""Default limit of all solves together, in CP-SAT's deterministic seconds (about 1 s each)."""

_ROUNDING = 1e-9  # of a number, and of 1; what differs by less is equal


def solve(
    problem: Problem,
    work_limit: float = WORK_LIMIT,
    start: NDArray[np.bool_] | None = None,
    *,
    best_bound: float = math.inf,
    least_violation: float = 0.0,
) -> Assignment:
    """The assignment of least violation, then most quality, that was found within `work_limit`.

    start [C, E]: an assignment to start from, if it is better than the balanced one; `FleetError`
    if it does not give each client its k_c experts. What is known already makes the certificate
    tighter and the search shorter: best_bound, a quality that no assignment of at most the
    violation of `start` exceeds (without a start: no assignment at all); least_violation, samples
    of violation that no assignment can avoid. The nan of a policy without a certificate says
    nothing.

    If the limit ends the search, this is the best so far and `gap` or `violation_bound` shows it.
    `solver` is ``cp-sat``, or ``start`` or ``balanced-start`` where CP-SAT found nothing better
    within the limit, as can happen from about a thousand clients on, or was not needed.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(problem.seed)
    rows, columns = rng.permutation(problem.clients), rng.permutation(problem.experts)
    shuffled = _reordered(problem, rows, columns)
    X, solver = balanced_start(shuffled), "balanced-start"
    allowed = math.inf
    if start is not None:
        _require_assignment(problem, start)
        given = start[np.ix_(rows, columns)]
        allowed = _violation(shuffled, given)
        if _is_better(shuffled, given, X):
            X, solver = given, "start"
    done = _gain(shuffled, X) >= _best_gain(shuffled) or objective_of(shuffled, X) >= best_bound
    least = float(np.fmax(least_violation, 0.0))
    found = _search(shuffled, int(rng.integers(2**31)), work_limit, X, least, done)
    if found.X is not None:
        X, solver = found.X, "cp-sat"
    bound = min(found.bound, best_quality(problem))
    if _violation(shuffled, X) <= allowed:
        bound = float(np.fmin(bound, best_bound))
    answer = np.zeros_like(X)
    answer[np.ix_(rows, columns)] = X
    return Assignment.of(
        problem,
        answer,
        solver=solver,
        solve_s=time.perf_counter() - started,
        bound=bound,
        violation_bound=found.least,
    )


def balanced_start(problem: Problem) -> NDArray[np.bool_]:
    """An assignment [C, E] with even loads: the client with most samples first, each takes the
    `k_c` experts that it leaves furthest below the middle of their bounds (Graham's longest
    first)."""
    weight = weight_of(problem)
    load = -(problem.lower + np.minimum(problem.upper, weight.sum(axis=0))) / 2
    X = np.zeros(problem.quality.shape, dtype=np.bool_)
    for client in np.argsort(-weight.max(axis=1), kind="stable"):
        after = load + weight[client]
        chosen = np.argsort(after, kind="stable")[: problem.capacity[client]]
        X[client, chosen] = True
        load[chosen] = after[chosen]
    return X


def best_quality(problem: Problem) -> float:
    """The quality when each client takes its top `k_c`: what load bounds can only lower."""
    total = 0.0
    for rows in problem.blocks():
        ranked = np.sort(problem.quality[rows], axis=1)[:, ::-1]
        top = np.arange(problem.experts) < problem.capacity[rows, None]
        total += float(ranked[top].sum(dtype=np.float64))
    return total


@dataclass(frozen=True)
class _Found:
    """What CP-SAT found: `X` [C, E] (None: nothing as good as what was known), the most quality at
    its violation, and the least violation in samples."""

    X: NDArray[np.bool_] | None
    bound: float
    least: float


def _search(
    problem: Problem,
    seed: int,
    work_limit: float,
    X: NDArray[np.bool_],
    least: float,
    done: bool,
) -> _Found:
    """Solves 2 to 4, from `X`. done: no assignment of the violation of `X` is better than it."""
    missed = _violation(problem, X)
    if not _at_most(missed, least):
        least = max(least, provable_violation(problem, missed))
    settled = _at_most(missed, least)
    if settled and done:
        return _Found(None, objective_of(problem, X), least)
    program = IntegerProgram(problem, seed)
    program.require_violation(least, X)
    found: NDArray[np.bool_] | None = None
    left = work_limit
    # 2. The least violation.
    if not settled:
        program.minimize_violation()
        step = program.solve(X, work_limit / 2)
        # fmin and fmax pass over the nan of a solve that ended without a bound.
        least = float(np.fmax(least, program.violation_bound(step.bound)))
        left = max(work_limit - step.work, work_limit / 2)
        if step.X is not None and program.violation(step.X) <= program.violation(X):
            X = found = step.X
        missed = _violation(problem, X)
        if not _at_most(missed, least):
            least = max(least, provable_violation(problem, missed))
    # 3. The most quality at that violation.
    most = program.violation(X)
    as_bad = program.as_bad(most)
    program.maximize_quality(as_bad)
    step = program.solve(X, left if as_bad == most else left / 2)
    bound = float(np.fmin(program.quality_bound(step.bound), math.inf))
    # 4. The answer, where that of 3 has a violation that only its bound may have.
    if step.X is not None and program.violation(step.X) > most:
        program.maximize_quality(most)
        step = program.solve(X, left - step.work)
    if step.X is not None and _gain(problem, step.X) >= _gain(problem, X):
        found = step.X
    return _Found(found, bound, least)


def _reordered(problem: Problem, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Problem:
    """The problem with its clients and experts in another order."""
    return replace(
        problem,
        quality=problem.quality[np.ix_(rows, columns)],
        samples=problem.samples[rows],
        capacity=problem.capacity[rows],
        lower=problem.lower[columns],
        upper=problem.upper[columns],
        weight=None if problem.weight is None else problem.weight[np.ix_(rows, columns)],
        history=None,
        places=None,
    )


def _require_assignment(problem: Problem, X: NDArray[np.bool_]) -> None:
    """`FleetError` unless `X` gives each client its k_c experts."""
    shape = problem.quality.shape
    if X.shape != shape or X.dtype != np.bool_:
        raise FleetError(f"assignment: the start must be bool {shape}, not {X.dtype} {X.shape}")
    wrong = np.flatnonzero(X.sum(axis=1) != problem.capacity)
    if len(wrong):
        client = int(wrong[0])
        raise FleetError(
            f"assignment: the start must give client {client} its {problem.capacity[client]} "
            f"experts, not {X[client].sum()}"
        )


def _gains(problem: Problem) -> NDArray[np.float64]:
    """Quality [C, E] above each client's lowest: what is left of it if all of it is huge."""
    quality = np.asarray(problem.quality, np.float64)
    gains: NDArray[np.float64] = quality - quality.min(axis=1, keepdims=True)
    return gains


def _gain(problem: Problem, X: NDArray[np.bool_]) -> float:
    """The sum of `_gains` over `X` [C, E]."""
    return math.fsum(_gains(problem)[X])


def _best_gain(problem: Problem) -> float:
    """The largest `_gain` of all."""
    ranked = np.sort(_gains(problem), axis=1)[:, ::-1]
    return math.fsum(ranked[np.arange(problem.experts) < problem.capacity[:, None]])


def _violation(problem: Problem, X: NDArray[np.bool_]) -> float:
    """Samples by which the loads of `X` [C, E] miss their bounds."""
    return float(np.abs(violation_of(problem, problem.load_of(X))).sum())


def _is_better(problem: Problem, X: NDArray[np.bool_], than: NDArray[np.bool_]) -> bool:
    """Whether `X` [C, E] has less violation than another, or as much and more quality."""
    here, there = _violation(problem, X), _violation(problem, than)
    if _at_most(here, there) and _at_most(there, here):
        return _gain(problem, X) > _gain(problem, than)
    return here < there


def _at_most(violation: float, limit: float) -> bool:
    """Whether `violation` is no larger than `limit`, float noise aside."""
    return violation <= limit + _ROUNDING * (1 + abs(limit))
