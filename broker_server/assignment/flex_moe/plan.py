"""An assignment under change: clients move from expert to expert, and loads follow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import violation_of

STILL = 1e-9
"""Samples: less violation than this is rounding."""


class Plan:
    """The assignment `X` [C, E] of `problem`, its `load` [E], and what changes would do to it.

    order [E]: the experts in the order in which they are looked at. One that follows from what they
    are, not from where they stand, makes repairs do so, too.
    """

    def __init__(
        self, problem: Problem, X: NDArray[np.bool_], order: NDArray[np.int64] | None = None
    ) -> None:
        self.problem = problem
        self.X = X
        self.order = np.arange(problem.experts) if order is None else order
        self.load = problem.load_of(X).astype(np.float64)

    @property
    def violated(self) -> NDArray[np.float64]:
        """Samples [E] above the upper bound, or, negative, below the lower one."""
        return violation_of(self.problem, self.load)

    @property
    def violation(self) -> float:
        return float(np.abs(self.violated).sum())

    def weights(self, clients: NDArray[Any], experts: NDArray[Any]) -> NDArray[np.float64]:
        """What `clients` bring to the load of `experts`: arrays of any shapes that go together."""
        if self.problem.weight is not None:
            chosen: NDArray[np.float64] = self.problem.weight[clients, experts]
            return chosen
        return np.broadcast_arrays(self.problem.samples[clients].astype(np.float64), experts)[0]

    def outside(self, experts: NDArray[Any], load: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how many samples a `load` of `experts` would be outside their bounds."""
        above = load - self.problem.upper[experts]
        below = self.problem.lower[experts] - load
        most: NDArray[np.float64] = np.maximum(np.maximum(above, below), 0.0)
        return most

    def worsening(self, experts: NDArray[Any], change: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how much the violation grows if the load of `experts` changes; negative: it falls."""
        load = self.load[experts]
        return self.outside(experts, load + change) - self.outside(experts, load)

    def may_move(self, client: int, source: int, target: int) -> bool:
        return bool(self.X[client, source] and not self.X[client, target])

    def move(self, client: int, source: int, target: int) -> None:
        """`client` gives up expert `source` for `target`."""
        one = np.array([client])
        self.X[client, source], self.X[client, target] = False, True
        self.load[source] -= self.weights(one, np.array([source]))[0]
        self.load[target] += self.weights(one, np.array([target]))[0]
