"""How far from the optimum are the prices' assignments? Small instances, against proven optima.

    python benchmarks/assign_gaps.py [--instances 200] [--work-limit 5] [--seed S] [--json]

Instances of 5 to 60 clients and 3 to 12 experts, with 50 to 500 samples and 1 to 4 experts a
client, load bounds at several tolerances, and three kinds of quality: uniform; planted
(specialities, some popular, as in assign_instance.py); ties (only 0, 0.5 and 1). CP-SAT gives the
optimum: the least violation of the bounds, then the most quality at that violation. Where it does
not prove both within the work limit (its deterministic seconds), as mostly at delta 0, the instance
is only counted, with how often the prices' answer is the better one.

`true gap` is (optimum - quality) / |optimum| where the prices' violation is the least; an instance
with more is counted, with its excess in samples, since more violation may buy more quality.
`reported gap` is what the solver says of itself, against its bound. The exact program has a million
steps of quality, so gaps below 0.0002 % count as none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from assign import count, size
from assign_instance import bounds, planted

from broker_server.assignment import Assignment, Problem
from broker_server.assignment.flex_moe import exact, prices

DELTAS = (0.0, 0.02, 0.05, 0.1, 0.2)
KINDS = ("uniform", "planted", "ties")
RESOLUTION = 2e-6
"""Gaps that the exact solver's integer steps cannot tell from none."""

_SAME_SAMPLES = 0.5  # violations nearer than this are equal: loads are whole, bounds are fractions
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, eq=False)
class Case:
    """One instance, and the answers of both solvers."""

    kind: str
    delta: float
    exact: Assignment
    prices: Assignment

    @property
    def proven(self) -> bool:
        """Whether the exact solver proved its answer: the optimum."""
        # Its bound on the violation is too low by a thousandth of a sample an expert, for rounding.
        least = self.exact.violation - self.exact.violation_bound < _SAME_SAMPLES
        return least and self.exact.gap <= RESOLUTION

    @property
    def excess(self) -> float:
        """Samples by which the prices' violation is above the exact solver's."""
        return self.prices.violation - self.exact.violation

    @property
    def gap(self) -> float:
        """How much more quality the exact solver's answer has, as a fraction of it."""
        best = self.exact.objective
        return (best - self.prices.objective) / max(abs(best), 1e-12)

    @property
    def prices_better(self) -> bool:
        """Whether the prices' answer has less violation, or as much and more quality."""
        same = abs(self.excess) < _SAME_SAMPLES
        return self.gap < -RESOLUTION if same else self.excess < 0

    @property
    def bound_holds(self) -> bool:
        """Whether the prices' bound is no lower than the optimum."""
        best = self.exact.objective
        return self.prices.bound >= best - RESOLUTION * abs(best)


def draw(seed: int, number: int) -> tuple[str, float, Problem]:
    """The instance of that number: its kind of quality, its delta, and the problem."""
    rng = np.random.default_rng([seed, number])
    kind, delta = KINDS[number % len(KINDS)], DELTAS[number // len(KINDS) % len(DELTAS)]
    clients, experts = int(rng.integers(5, 61)), int(rng.integers(3, 13))
    shape = clients, experts
    if kind == "planted":
        quality = planted(rng, shape, 1 / (1 + rng.permutation(experts)))
    elif kind == "ties":
        quality = rng.integers(0, 3, shape) / 2
    else:
        quality = rng.random(shape)
    samples = rng.integers(50, 501, clients)
    capacity = rng.integers(1, min(4, experts) + 1, clients)
    limits = bounds(samples, capacity, experts, delta)
    return kind, delta, Problem(quality, samples, capacity, *limits, seed=number)


def solve(seed: int, number: int, work_limit: float) -> Case:
    """One instance by both solvers."""
    kind, delta, problem = draw(seed, number)
    return Case(kind, delta, exact.solve(problem, work_limit), prices.solve(problem))


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    """Counts, and quantiles of the gaps of the cases whose optimum is proven.

    prices_better: of the unproven ones. optimal: of those of the least violation.
    """
    unproven = [case for case in cases if not case.proven]
    compared = [case for case in cases if case.proven]
    least = [case for case in compared if case.excess < _SAME_SAMPLES]
    more = [case for case in compared if case.excess >= _SAME_SAMPLES]
    return {
        "instances": len(cases),
        "unproven": len(unproven),
        "prices_better": sum(case.prices_better for case in unproven),
        "proven": len(compared),
        "more_violation": len(more),
        "optimal": sum(case.gap <= RESOLUTION for case in least),
        "bound_too_low": sum(not case.bound_holds for case in compared),
        "true_gap": _quantiles([max(0.0, case.gap) for case in least]),
        "reported_gap": _quantiles([case.prices.gap for case in compared]),
        "excess_samples": _quantiles([case.excess for case in more]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "mean": float(np.mean(values)),
        **{name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=count, default=200, metavar="N")
    parser.add_argument("--work-limit", type=size, default=5.0, metavar="S", help="[default: 5]")
    parser.add_argument("--seed", type=partial(count, least=0), default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = []
    for number in range(options.instances):
        cases.append(solve(options.seed, number, options.work_limit))
        if sys.stderr.isatty():
            print(f"\r{number + 1} of {options.instances}", end="", file=sys.stderr, flush=True)
    found = {
        **summary(cases),
        "by_kind": _groups(cases, KINDS, lambda case: case.kind),
        "by_delta": _groups(cases, DELTAS, lambda case: case.delta),
    }
    print(json.dumps(found) if options.json else _text(found))


def _groups(
    cases: Sequence[Case], values: Sequence[Any], of: Callable[[Case], Any]
) -> dict[str, dict[str, Any]]:
    return {str(value): summary([c for c in cases if of(c) == value]) for value in values}


def _text(found: dict[str, Any]) -> str:
    counts = [key for key, value in found.items() if isinstance(value, int)]
    lines = [
        f"{'':10}" + "".join(f"{name.replace('_', ' '):>15}" for name in counts),
        *(
            f"{name:10}" + "".join(f"{group[key]:15}" for key in counts)
            for name, group in (
                ("all", found),
                *found["by_kind"].items(),
                *((f"delta {delta}", group) for delta, group in found["by_delta"].items()),
            )
        ),
        "",
        f"{'':24}" + "".join(f"{name:>11}" for name in ("mean", *_QUANTILES)),
    ]
    for title, key, factor in (
        ("true gap, %", "true_gap", 100),
        ("reported gap, %", "reported_gap", 100),
        ("excess, samples", "excess_samples", 1),
    ):
        if found[key] is not None:
            cells = "".join(f"{factor * value:11.4f}" for value in found[key].values())
            lines.append(f"{title:24}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
