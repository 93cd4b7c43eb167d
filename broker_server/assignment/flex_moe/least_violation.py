"""A floor under the total violation of the load bounds, without a search for an assignment.

CP-SAT by itself is slow to see why bounds cannot be kept, above all with few, unequal clients. Each
part here is a true floor for a reason of its own, and the largest counts:

- clients that could be split, in closed form: too few samples for the lower bounds of some experts,
  too many for the upper bounds of others;
- prices of the experts (`price_floor`): also clients that are larger than a bound, and bounds
  between the loads that there can be;
- prices of the clients (`set_floor`): sizes that do not add up to the bounds, for small fleets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe.price_floor import PriceFloor, held_by
from broker_server.assignment.flex_moe.set_floor import SetFloor
from broker_server.assignment.problem import Problem

_ENOUGH = 1 - 1e-12  # of a known violation: a floor there is as high as can be


def least_violation(problem: Problem, known: float = math.inf) -> float:
    """Samples of total violation that no assignment of `problem` can avoid; 0 if none is shown.

    known: the violation of some assignment; a floor as high ends the work. Takes at most about
    half a second, also for 100,000 x 64.
    """
    floor = PriceFloor(problem)
    best, value = np.zeros(problem.experts), 0.0
    if problem.weight is None:
        value, best = _of_totals(problem)
        value = max(value, floor.at(best))
    for prices in _starts(problem, floor):
        if floor.work <= 0 or value >= known * _ENOUGH:
            break
        found = floor.at(prices)
        if found > value:
            best, value = prices, found
    best, value = _climb(floor, best, value, known * _ENOUGH)
    value -= floor.rounding
    if problem.weight is None and value < known * _ENOUGH:
        sets = SetFloor.of(problem)
        if sets is not None:
            value = max(value, sets.best(floor.last_costs(best), known))
    return max(0.0, value)


def _starts(problem: Problem, floor: PriceFloor) -> Iterator[NDArray[np.float64]]:
    """Prices worth trying, the most telling first."""
    ones = np.ones(problem.experts)
    yield 0 * ones
    yield ones
    yield -ones
    if problem.weight is not None:
        short = problem.lower - problem.weight.sum(axis=0)
        yield np.where(short > 0, -1.0, 0.0)
    kinks = np.unique(floor.kinks())
    for kink in kinks[:: 1 + len(kinks) // 64]:
        yield kink * ones


def _climb(
    floor: PriceFloor, prices: NDArray[np.float64], value: float, enough: float
) -> tuple[NDArray[np.float64], float]:
    """Prices [E] and their floor, after changing one at a time for as long as that raises it."""
    prices = prices.copy()
    ends = np.array([[-1.0], [0.0], [1.0]]) * np.ones(len(prices))
    choices = np.vstack([floor.kinks(), ends])
    improved = True
    while improved:
        improved = False
        for e in range(len(prices)):
            for choice in choices[choices[:, e] != prices[e], e]:
                if floor.work <= 0 or value >= enough:
                    return prices, value
                before, prices[e] = prices[e], choice
                found = floor.at(prices)
                if found > value + floor.rounding:
                    value, improved = found, True
                else:
                    prices[e] = before
    return prices, value


def _of_totals(problem: Problem) -> tuple[float, NDArray[np.float64]]:
    """The least violation if clients could be split, and prices [E] that show (most of) it.

    For clients that weigh the same everywhere. Any s experts together get at most
    `sum_c n_c min(k_c, s)` and at least `sum_c n_c max(0, k_c - (E - s))`. The s experts with the
    largest lower bounds miss what is beyond the first, those with the smallest upper bounds what
    the second has too much; samples below and samples above are counted apart, so both add up.
    """
    held = held_by(problem.samples, problem.capacity, problem.experts)
    needy = np.argsort(-problem.lower, kind="stable")
    tight = np.argsort(problem.upper, kind="stable")
    below = np.cumsum(problem.lower[needy] - held)
    above = np.cumsum(held[::-1] - problem.upper[tight])
    prices = np.zeros(problem.experts)
    value = 0.0
    for missed, order, price in ((below, needy, -1.0), (above, tight, 1.0)):
        size = int(missed.argmax()) + 1
        if missed[size - 1] > 0:
            value += float(missed[size - 1])
            prices[order[:size]] += price
    return value, prices
