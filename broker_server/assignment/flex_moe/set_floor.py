"""A floor under the violation for few, unequal clients: which sets of them fit an expert.

Where an expert is filled by one or two clients, what matters is which sizes add up to its bounds,
and no price on load sees that. Here the prices are on clients. Let V_e(S) be what expert e misses
of its bounds with the set S of clients. Each client is in k_c of the sets, so for any prices v_c

    violation >= sum_c k_c v_c + sum_e min over S of (V_e(S) - sum of v_c over S),

the Lagrangian bound of choosing one set for each expert (Gilmore and Gomory, "A Linear Programming
Approach to the Cutting-Stock Problem", Operations Research 9, 1961, price their patterns so). The
best set of each load is a knapsack, solved for all loads at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.problem import Problem

_WORK = 12_000_000  # entries of tables to compute at most from each start, about 0.1 s
_OVERHEAD = 500  # entries that cost as much as the fixed part of a client or an expert
_MOST_STEPS = 500
_LEAST_STEPS = 30  # for fewer it is not worth starting
_MOMENTUM = 0.7  # of the last way, kept in the next
_PATIENCE = 12  # steps without gain, after which the target comes nearer
_NEARER = 0.6
_NEAREST = 1e-3  # of the smallest client: a target so near ends the search
_ROUNDING = 1e-12  # of a sum, float noise


class SetFloor:
    """The floor of a problem at given prices of its clients, who weigh the same everywhere."""

    def __init__(self, problem: Problem, unit: int, loads: int, steps: int) -> None:
        self._problem, self._steps = problem, steps
        self._samples = problem.samples.astype(np.float64)
        self._blocks = (problem.samples // unit).tolist()
        load = unit * np.arange(loads, dtype=np.float64)[:, None]
        outside = np.maximum(problem.lower - load, load - problem.upper)
        self._missed = np.maximum(outside, 0.0)  # [loads, E]

    @classmethod
    def of(cls, problem: Problem) -> SetFloor | None:
        """None if there are too many clients, or loads, for a few steps."""
        unit = int(np.gcd.reduce(problem.samples))
        # Beyond its upper bound an expert gains nothing by one client more at a price up to n_c.
        most = float(problem.upper.max() + problem.samples.max())
        loads = int(min(most, float(problem.samples.sum())) // unit) + 1
        work = (loads + _OVERHEAD) * (problem.clients + problem.experts)
        steps = min(_MOST_STEPS, _WORK // work)
        return cls(problem, unit, loads, steps) if steps >= _LEAST_STEPS else None

    def at(self, prices: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Samples that no assignment can avoid to miss, as `prices` [C] show it, each at most n_c;
        and how that grows with them [C]."""
        loads = len(self._missed)
        gain = np.full(loads, -np.inf)  # most price of a set with this load
        gain[0] = 0.0
        taken = np.zeros((len(prices), loads), np.bool_)
        for client, block in enumerate(self._blocks):
            if block < loads:
                with_it = gain[: loads - block] + prices[client]
                np.greater(with_it, gain[block:], out=taken[client, block:])
                np.maximum(gain[block:], with_it, out=gain[block:])
        missed = self._missed - gain[:, None]
        chosen = missed.argmin(axis=0)
        value = float(missed.min(axis=0).sum() + self._problem.capacity @ prices)
        pull = self._problem.capacity.astype(np.float64)
        for client in range(len(prices) - 1, -1, -1):
            held = taken[client, chosen]
            pull[client] -= held.sum()
            chosen = chosen - held * self._blocks[client]
        return value, pull

    def best(self, guess: NDArray[np.float64], known: float) -> float:
        """The best floor that is found from the prices `guess` [C] and from two plain ones.

        known: the violation of some assignment, infinite if there is none.
        """
        value = 0.0
        for start in (guess, 0.0 * self._samples, -0.5 * self._samples):
            if value < known * (1 - _ROUNDING):
                value = max(value, self._climb(start, known))
        noise = self._samples @ self._problem.capacity + self._problem.lower.sum()
        return value - _ROUNDING * float(noise)

    def _climb(self, start: NDArray[np.float64], known: float) -> float:
        """The best floor on the way up from the prices `start` [C].

        Subgradient steps towards a target (Polyak's) that is above the best so far, never above
        `known`, and comes nearer whenever it seems too high.
        """
        samples = self._samples
        prices = np.minimum(start, samples)
        value, pull = self.at(prices)
        best = (value, prices, pull)
        way = np.zeros_like(pull)
        ahead, waited = float(samples.mean()), 0
        for _ in range(self._steps):
            done = best[0] >= known * (1 - _ROUNDING) or not pull.any()
            if done or ahead < _NEAREST * samples.min():
                break
            way = pull + _MOMENTUM * way  # else it goes to and fro across the ridge
            far = (min(best[0] + ahead, known) - value) / float(way @ way or 1.0)
            prices = np.minimum(prices + far * way, samples)
            value, pull = self.at(prices)
            waited += 1
            if value > best[0]:
                waited = 0 if value > best[0] + 0.1 * ahead else waited
                best = (value, prices, pull)
            if waited >= _PATIENCE:
                ahead, waited = _NEARER * ahead, 0
                value, prices, pull = best
                way = np.zeros_like(pull)
        return best[0]
