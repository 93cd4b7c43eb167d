"""One price an expert: the Lagrangian dual of the load-balanced assignment.

With a price p[e] on the load of expert e, clients need not agree on anything: each takes its top
k_c of ``Q[c,e] - n_c p[e]`` (`Market`). For any prices ::

    D(p) = sum_c (what c gets) + sum_e (p[e] upper[e] if p[e] > 0 else p[e] lower[e])

is at least the quality of every assignment within the bounds, and for one that misses them by V
samples in all, D(p) + V max|p| is (Lagrangian relaxation: Geoffrion 1974; for generalized
assignment Nauss, INFORMS J. Computing 2003, which FLEX-MoE cites). D is convex; its slope is the
bounds less the load. There are only E prices, so the search for the best takes a few dozen answers:

1. on a few thousand clients, Adam (Kingma & Ba, arXiv 1412.6980) finds the region;
2. on all, proximal Newton steps in a trust region (Lee, Sun & Saunders 2014) end the search: D's
   curvature is read off the clients that are about to change their minds, and the bounds' kinks
   are kept as they are;
3. where the sizes of clients differ so much that these stop short, Adam goes on, on all of them.

Equal qualities make D's kinks lie on each other: while the search goes on, every pair's quality is
lowered by its lot, at most `JITTER` of the spread. The bound is computed without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe.market import Market, Response
from broker_server.assignment.flex_moe.native import _prices
from broker_server.assignment.flex_moe.plan import STILL
from broker_server.assignment.problem import Problem

JITTER = 2e-6
"""Largest share of the spread of quality that a lot takes off a pair."""

_SAMPLE = 2048  # clients of the first search
_SHORT, _LONG = 100, 400  # steps of Adam
_RATE = 0.1  # units of price
_NEWTON_STEPS = 60
_FIRST_RADIUS, _WIDEST_WINDOW = 0.05, 0.3  # units of price
_LEAST_SPREAD = 1e-8  # of the largest quality
_TINIEST = 1e-200  # differences of quality that are as good as none: their units would overflow
_LIGHTEST = 1e-6  # of a typical weight: prices for lighter pairs are not looked for
_ROUNDING = 1e-15  # of what D adds up
_RIDGE = 1e-3  # of the usual curvature
_EQUAL = 1e-11  # of the stake: values that differ by less may do so by the order of their sum
_STILL = 1e-7  # of the stake: progress of a step that is as good as none
_STILL_STEPS = 6
_SHORT_OF_BEST = 2e-3  # of the stake: left to gain, by a rough guess, where Newton stopped short


@dataclass(frozen=True)
class Scale:
    """Units of a problem.

    spread: of quality, the mean over clients of the largest less the smallest. unit: a price that
    weighs as much for a typical piece of load. limit: a price that turns every client away.
    stake: quality that is up to the assignment, of all clients; what they get anyway, say by an
    offset of all qualities, is not in it.
    """

    spread: float
    unit: float
    limit: float
    stake: float

    @classmethod
    def of(cls, problem: Problem) -> Scale:
        total = widest = largest = 0.0
        for rows in problem.blocks():
            part = problem.quality[rows]
            high, low = part.max(axis=1), part.min(axis=1)
            ranges = high.astype(np.float64) - low
            total += float(ranges.sum())
            widest = max(widest, float(ranges.max()))
            largest = max(largest, float(np.abs(high).max()), float(np.abs(low).max()))
        # Where all are equal, the lots alone decide, in steps that floats can tell apart.
        spread = max(total / problem.clients, largest * _LEAST_SPREAD)
        spread = spread if spread > _TINIEST else 1.0
        weights = problem.samples if problem.weight is None else problem.weight.mean(axis=1)
        total_weight = float(weights.sum())
        # Of the mean sample of a client's load, not the mean client: large clients set prices.
        typical = float(weights @ (weights / total_weight)) if total_weight > STILL else STILL
        lightest = float((weights if problem.weight is None else problem.weight).min())
        limit = 4 * max(widest, spread) / max(lightest, _LIGHTEST * typical)
        return cls(spread, spread / typical, limit, spread * float(problem.capacity.sum()))

    @property
    def jitter(self) -> float:
        return JITTER * self.spread


@dataclass(frozen=True, eq=False)
class Prices:
    """`prices` [E], and the dual's `value` D there."""

    prices: NDArray[np.float64]
    value: float

    def bound(self, violation: float) -> float:
        """No assignment that misses its bounds by at most `violation` has more quality."""
        return self.value + violation * float(np.abs(self.prices).max())


def bounds_share(prices: NDArray[np.float64], problem: Problem, share: float = 1.0) -> float:
    """The bounds' part of D: ``sum_e p+ upper - p- lower``, with `share` of each bound."""
    dear, cheap = prices > 0, prices < 0  # upper may be infinite where a price is not above 0
    paid = prices[dear] @ problem.upper[dear] + prices[cheap] @ problem.lower[cheap]
    return float(paid) * share


def certify(problem: Problem, market: Market, prices: NDArray[np.float64]) -> Prices:
    """`prices` with the value of the dual, without lots, and rounded up."""
    response = market.respond(prices)
    priced = response.load + np.where(prices > 0, problem.upper, problem.lower)
    rounding = _ROUNDING * (abs(response.value) + float(np.abs(prices) @ priced))
    return Prices(prices, response.value + bounds_share(prices, problem) + rounding)


def search(problem: Problem, market: Market, scale: Scale) -> NDArray[np.float64]:
    """Prices [E] that (nearly) minimize the dual."""
    part = market.sample(max(_SAMPLE, 16 * problem.experts))
    start = _adam(problem, part, scale, _SHORT, np.zeros(problem.experts))
    prices, left = refine(problem, market, scale, start, scale.limit)
    if left > _SHORT_OF_BEST * scale.stake:
        start = _adam(problem, market, scale, _LONG, prices)
        prices, _ = refine(problem, market, scale, start, scale.limit)
    return prices


def refine(
    problem: Problem, market: Market, scale: Scale, start: NDArray[np.float64], limit: float
) -> tuple[NDArray[np.float64], float]:
    """Prices [E] within +-limit by Newton steps on all clients from `start`.

    And by how much D could still fall, by a guess: the price of the load that is out of place.
    """

    def answer(prices: NDArray[np.float64], window: float) -> tuple[float, Response]:
        response = market.respond(prices, jitter=scale.jitter, window=window)
        return response.value + bounds_share(prices, problem), response

    order = np.argsort(market.expert_keys)
    equal = _EQUAL * scale.stake
    radius = _FIRST_RADIUS * scale.unit
    prices = np.clip(_levelled(start, problem), -limit, limit)
    value, response = answer(prices, radius)
    none = np.zeros(problem.experts)
    value_of_none, response_to_none = answer(none, radius)
    if value_of_none < value - equal:
        prices, value, response = none, value_of_none, response_to_none
    still = 0
    for _ in range(_NEWTON_STEPS):
        curvature = _safe(response.curvature, problem, market, scale)
        following = np.empty_like(prices)
        # In an order that does not follow from where the experts stand: one goes after the other.
        following[order] = _prices.step(
            prices[order],
            response.load[order],
            curvature[np.ix_(order, order)],
            problem.lower[order],
            problem.upper[order],
            radius,
            limit,
        )
        # As far as it went, and a little on: there the next step's curvature is looked for.
        moved = float(np.abs(following - prices).max())
        following = np.clip(_levelled(following, problem), -limit, limit)
        window = max(min(2 * moved, _WIDEST_WINDOW * scale.unit), JITTER * scale.unit)
        next_value, next_response = answer(following, window)
        still = 0 if value - next_value > _STILL * scale.stake else still + 1
        if next_value < value - equal:
            prices, value, response = following, next_value, next_response
            radius = 2 * max(moved, radius / 4)
        else:
            radius = moved / 4
        if still == _STILL_STEPS:
            break
    misplaced = np.abs(_wanted(prices, response.load, problem.lower, problem.upper) - response.load)
    return prices, float(np.abs(prices) @ misplaced)


def _levelled(prices: NDArray[np.float64], problem: Problem) -> NDArray[np.float64]:
    """`prices` [E], all raised or lowered alike to where D is least: no client changes its choice.

    That holds where a client weighs the same for all experts; with pair weights they stay.
    """
    if problem.weight is not None:
        return prices
    order = np.argsort(-prices, kind="stable")
    # With the `i` dearest prices above 0 and the others below: D's slope along the shift.
    total = float(problem.samples @ problem.capacity)
    lower, upper = problem.lower[order], problem.upper[order]
    slopes = np.r_[0.0, np.cumsum(upper)] + np.r_[np.cumsum(lower[::-1])[::-1], 0.0] - total
    first = int(np.searchsorted(slopes, 0.0))  # slopes rise with i
    return prices if first in (0, len(slopes)) else prices - prices[order[first - 1]]


def _wanted(
    prices: NDArray[np.float64],
    load: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The load [E] at which D is level: a bound where there is a price, else any between them."""
    return np.where(prices > 0, upper, np.where(prices < 0, lower, np.clip(load, lower, upper)))


def _safe(
    curvature: NDArray[np.float64], problem: Problem, market: Market, scale: Scale
) -> NDArray[np.float64]:
    """`curvature` with a diagonal above 0: moving all prices alike changes nobody's mind."""
    usual = max(market.total_load() / problem.experts, STILL) / scale.unit
    ridge = _RIDGE * (float(np.trace(curvature)) / problem.experts + usual)
    return curvature + ridge * np.eye(problem.experts)


def _adam(
    problem: Problem, market: Market, scale: Scale, steps: int, start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The best prices [E] on the way from `start`.

    `market` may hold a part of the clients: then the bounds are scaled down to it.
    """
    share = market.share
    lower, upper = problem.lower * share, problem.upper * share
    fair = max(market.total_load() / problem.experts, STILL)
    prices, best, best_value = start, start, np.inf
    equal = _EQUAL * share * scale.stake
    mean, square = np.zeros_like(prices), np.zeros_like(prices)
    dearest = np.where(np.isinf(upper), 0.0, np.inf)  # above, D is infinite
    for step in range(steps):
        response = market.respond(prices, jitter=scale.jitter)
        value = response.value + bounds_share(prices, problem, share)
        if value < best_value - equal:
            best, best_value = prices, value
        slope = (_wanted(prices, response.load, lower, upper) - response.load) / fair
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        unbiased = mean / (1 - 0.9 ** (step + 1))
        size = np.sqrt(square / (1 - 0.99 ** (step + 1)))
        rate = _RATE * scale.unit * (1 - step / steps)
        prices = np.minimum(prices - rate * unbiased / (size + 1e-12), dearest)
    return best
