"""A floor under the total violation of the load bounds, for any prices of the experts.

Expert e with load `a` misses its bounds by `V_e(a) = max(lower[e] - a, a - upper[e], 0)`. Whatever
the assignment, loads come from a known set `A_e`: the sums of some clients' weights (all of them
where they are few, else the multiples of what divides them). Take any price `p_e` in [-1, 1]. The
line of slope `p_e` that touches V_e from below on `A_e` has the height

    h_e = min over a in A_e of (V_e(a) - p_e a),   and touches at t_e.

The function f_e that follows this line up to t_e, and from there the larger of line and V_e, is
convex and nowhere above V_e on `A_e`. A convex function grows faster than the sum of its steps, so

    V_e(load) >= f_e(load) >= h_e + sum over the clients c of e of (f_e(w[c,e]) - h_e),

and as each client holds k_c different experts, the total violation is at least

    sum_e h_e + sum_c (the k_c smallest f_e(w[c,e]) - h_e over e).

Every price gives a true floor. Special cases: all +1 or all -1 is the sum of loads against the sum
of the bounds; one expert at -1 is a lower bound that all clients together do not reach; all 0 is
the clients that are larger than an upper bound, each in its k_c least harmful experts; with linear
f it is the Lagrangian bound of the linear relaxation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.problem import Problem

_WORK = 20_000_000  # entries of [C, E] tables to compute at most, about 0.3 s
_OVERHEAD = 500  # entries that cost as much as the fixed part of trying one set of prices
_MOST_SUMS = 1 << 14  # different loads that are listed one by one
_MOST_CLIENTS = 64  # whose loads are listed; those of more are close together anyway
_MOST_LARGE = 1 << 18  # entries of the table of clients that are too large for a line
_ROWS = 2048  # clients in a table at a time, so that it stays in the cache
_ROUNDING = 1e-14  # of the largest sum: float noise


@dataclass(frozen=True)
class _Lines:
    """For each expert [E] a line below V_e: its slope, its height at load 0, where it touches."""

    price: NDArray[np.float64]
    height: NDArray[np.float64]
    touch: NDArray[np.float64]


class PriceFloor:
    """The floor of a problem at given prices of its experts.

    work: entries of tables that are left to compute. rounding: samples, float noise in a floor.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.work = _WORK
        self.near = _near_loads(problem)
        self._missed = _missed(problem, self.near)
        self._ranked = np.argsort(-problem.samples, kind="stable")[: _MOST_LARGE // problem.experts]
        self._held = held_by(problem.samples, problem.capacity, problem.experts)
        largest = self._held.sum() if problem.weight is None else problem.weight.sum()
        self.rounding = _ROUNDING * float(largest + self.near.sum() + problem.lower.sum())

    def kinks(self) -> NDArray[np.float64]:
        """Prices [3, E] at which the touching point of an expert's line moves."""
        ordered = np.sort(self.near, axis=0)
        missed = _missed(self._problem, ordered)
        wide = np.diff(ordered, axis=0)
        slopes = np.diff(missed, axis=0) / np.where(wide > 0, wide, 1.0)
        return np.clip(slopes, -1.0, 1.0)

    def at(self, prices: NDArray[np.float64]) -> float:
        """Samples that no assignment can avoid to miss, as `prices` [E] in [-1, 1] show it."""
        problem, lines = self._problem, self._lines(prices)
        total = float(lines.height.sum())
        self.work -= _OVERHEAD
        if problem.weight is not None:
            for first in range(0, problem.clients, _ROWS):
                rows = slice(first, first + _ROWS)
                total += self._least(lines, problem.weight[rows], problem.capacity[rows])
            return total
        # A client below every touching point is on the lines: its part is one for all of its size.
        ranked = problem.samples[self._ranked]
        large = self._ranked[: np.count_nonzero(ranked > lines.touch.min())]
        samples, capacity = problem.samples[large], problem.capacity[large]
        held = self._held - held_by(samples, capacity, problem.experts)
        return total + float(held @ np.sort(prices)) + self._least(lines, samples, capacity)

    def last_costs(self, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each client [C] adds to the floor in the last of its k_c experts; clients that
        weigh the same everywhere."""
        problem = self._problem
        cost = np.sort(self._costs(self._lines(prices), problem.samples), axis=1)
        last: NDArray[np.float64] = cost[np.arange(problem.clients), problem.capacity - 1]
        return last

    def _lines(self, prices: NDArray[np.float64]) -> _Lines:
        heights = self._missed - prices * self.near
        chosen = heights.argmin(axis=0)[None]
        return _Lines(
            prices,
            np.take_along_axis(heights, chosen, axis=0)[0],
            np.take_along_axis(self.near, chosen, axis=0)[0],
        )

    def _costs(self, lines: _Lines, weight: NDArray[Any]) -> NDArray[np.float64]:
        """What clients with `weight` [N, E] or [N] add to the floor in each expert: [N, E]."""
        weight = weight if weight.ndim == 2 else weight[:, None]
        cost: NDArray[np.float64] = lines.price * weight
        self.work -= cost.size
        large = weight > lines.touch
        if large.any():
            self.work -= cost.size
            np.maximum(cost, _missed(self._problem, weight) - lines.height, out=cost, where=large)
        return cost

    def _least(self, lines: _Lines, weight: NDArray[Any], capacity: NDArray[np.int64]) -> float:
        """What clients with `capacity` [N] add to the floor, each where it adds least."""
        if not len(capacity):
            return 0.0
        cost = self._costs(lines, weight)
        most = int(capacity.max())
        if most < cost.shape[1]:
            cost.partition(most - 1, axis=1)
            cost = cost[:, :most]
        cost.sort(axis=1)
        return float(cost[np.arange(most) < capacity[:, None]].sum())


def held_by(
    samples: NDArray[Any], capacity: NDArray[np.int64], experts: int
) -> NDArray[np.float64]:
    """Samples [E] of the clients that hold at least 1, 2, ... E experts."""
    exactly = np.bincount(capacity, samples, minlength=experts + 1)[1:]
    held: NDArray[np.float64] = np.cumsum(exactly[::-1], dtype=np.float64)[::-1]
    return held


def _missed(problem: Problem, load: NDArray[Any]) -> NDArray[np.float64]:
    """Samples [..., E] by which `load` [..., E] or [..., 1] misses the bounds."""
    outside: NDArray[np.float64] = np.maximum(problem.lower - load, load - problem.upper)
    return np.maximum(outside, 0.0, out=outside)


def _near_loads(problem: Problem) -> NDArray[np.float64]:
    """The loads [4, E] that experts can have just below and just above each of their bounds.

    A line of slope -1 to 1 that is below V on all possible loads touches it at one of these.
    """
    if problem.weight is not None:
        sums = [_sums(column, _MOST_SUMS // problem.experts) for column in problem.weight.T]
        total, grid = problem.weight.sum(axis=0), 0.0
    else:
        sums = [_sums(problem.samples, _MOST_SUMS)] * problem.experts
        total = np.full(problem.experts, float(problem.samples.sum()))
        grid = float(np.gcd.reduce(problem.samples))
    near: list[NDArray[np.float64]] = []
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    # The upper bound first: the first of equals is taken, and fewer clients are larger than it.
    for bound in (np.minimum(problem.upper, total), np.minimum(problem.lower, total)):
        below, above = bound, bound
        if grid:
            below, above = np.floor(bound / grid) * grid, np.ceil(bound / grid) * grid
        pairs = [
            (low, high) if all_sums is None else _around(all_sums, value)
            for all_sums, value, low, high in zip(sums, bound, below, above, strict=True)
        ]
        near += list(np.array(pairs).T)
    return np.array(near)


def _sums(weight: NDArray[Any], most: int) -> NDArray[np.float64] | None:
    """The sums of all subsets of `weight` [C], in order; None if they are too many to list."""
    if len(weight) > _MOST_CLIENTS:
        return None
    sums = np.zeros(1)
    for one in weight:
        sums = np.union1d(sums, sums + one)
        if len(sums) > most:
            return None
    return sums


def _around(ordered: NDArray[np.float64], value: float) -> tuple[float, float]:
    """The last of `ordered` that is at most `value`, and the first that is at least `value`."""
    below = int(np.searchsorted(ordered, value, side="right")) - 1
    above = min(int(np.searchsorted(ordered, value)), len(ordered) - 1)
    return float(ordered[below]), float(ordered[above])
