"""Who trains which experts: the contract that every assignment policy keeps.

A policy is a function from a `Problem` to an `Assignment`; `policy(name)` finds one::

    problem = Problem(quality, samples, capacity, lower, upper, seed=7)
    assignment = policy("flex_moe")(problem)
    assignment.X  # bool [C, E]

`C` clients, `E` experts. Client `c` has `n_c` samples and holds `k_c` experts. An expert's load is
the sum of `n_c` over the clients that hold it; `lower` and `upper` are what it should stay between
this round (see `broker_server.load`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, FleetError

__all__ = ["POLICIES", "Assignment", "AssignmentPolicy", "Problem", "policy"]

POLICIES = {
    "flex_moe": "flex_moe",
    "greedy": "greedy",
    "random": "random_k",
    "full": "full",
}
"""Names of the policies, and the module of this package that holds each."""

_MAX_QUALITY = 1e100
_MAX_SAMPLES = 10**9


@dataclass(frozen=True, eq=False)
class Problem:
    """One round's assignment problem. Arrays are copied and read-only; raises `FleetError`.

    quality [C, E]: how well expert e fits client c; only differences within a row matter.
    samples [C]: n_c, at least 1. capacity [C]: k_c, 1 to E.
    lower, upper [E]: samples that each expert should get; `upper` may be infinite.
    seed: breaks ties, at least 0.
    """

    quality: NDArray[np.float64]
    samples: NDArray[np.int64]
    capacity: NDArray[np.int64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    seed: int

    def __post_init__(self) -> None:
        kinds = {"samples": np.int64, "capacity": np.int64}
        for field in fields(self)[:-1]:
            array = _array(field.name, getattr(self, field.name), kinds.get(field.name, np.float64))
            object.__setattr__(self, field.name, array)
        if self.quality.ndim != 2 or 0 in self.quality.shape:
            raise FleetError(
                "assignment: quality must be [clients, experts] with at least one of each, "
                f"not of shape {self.quality.shape}"
            )
        clients, experts = self.quality.shape
        for name, length in (
            ("samples", clients),
            ("capacity", clients),
            ("lower", experts),
            ("upper", experts),
        ):
            if getattr(self, name).shape != (length,):
                raise FleetError(
                    f"assignment: {name} must have shape ({length},) to go with quality "
                    f"{self.quality.shape}, not {getattr(self, name).shape}"
                )
        _require(np.abs(self.quality) < _MAX_QUALITY, "quality", self.quality, "a finite number")
        _require(
            (self.samples >= 1) & (self.samples <= _MAX_SAMPLES),
            "samples",
            self.samples,
            f"1 to {_MAX_SAMPLES}",
        )
        _require(
            (self.capacity >= 1) & (self.capacity <= experts),
            "capacity",
            self.capacity,
            f"1 to {experts}, the number of experts",
        )
        _require((self.lower >= 0) & np.isfinite(self.lower), "lower", self.lower, "0 or more")
        _require(self.upper >= self.lower, "upper", self.upper, "at least its lower bound")
        if self.seed < 0:
            raise FleetError(f"assignment: seed must be 0 or more, not {self.seed}")

    @property
    def clients(self) -> int:
        """C, the number of clients."""
        return len(self.samples)

    @property
    def experts(self) -> int:
        """E, the number of experts."""
        return len(self.lower)


@dataclass(frozen=True, eq=False)
class Assignment:
    """A policy's answer, and how far from the best it can be. Build one with `Assignment.of`.

    X [C, E]: True where client c holds expert e.
    objective: sum of quality over X.
    bound: no assignment of at most this total violation has a larger objective; nan if the policy
        gives no such certificate.
    gap: (bound - objective) / |bound|, at least 0; nan without a bound.
    load [E]: this round's samples per expert.
    violated [E]: samples by which a load is below `lower` (negative) or above `upper` (positive).
    solve_s: seconds that it took. solver: what found X.
    violation_bound: no assignment has a smaller total violation; nan without a certificate.
    """

    X: NDArray[np.bool_]
    objective: float
    bound: float
    gap: float
    load: NDArray[np.int64]
    violated: NDArray[np.float64]
    solve_s: float
    solver: str
    violation_bound: float = math.nan

    @classmethod
    def of(
        cls,
        problem: Problem,
        X: NDArray[np.bool_],
        *,
        solver: str,
        solve_s: float,
        bound: float = math.nan,
        violation_bound: float = math.nan,
    ) -> Assignment:
        """The assignment `X` [C, E] of `problem`: objective, loads and gap are computed here."""
        objective = float(problem.quality[X].sum())
        load = problem.samples @ X
        above = np.maximum(load - problem.upper, 0.0)
        below = np.maximum(problem.lower - load, 0.0)
        # A bound that was summed in another order may fall short by rounding alone.
        bound = bound if math.isnan(bound) else max(bound, objective)
        gap = bound - objective
        return cls(
            X=X,
            objective=objective,
            bound=bound,
            gap=gap / abs(bound) if gap > 0 and bound != 0 else gap,
            load=load,
            violated=above - below,
            solve_s=solve_s,
            solver=solver,
            violation_bound=violation_bound,
        )

    @property
    def violation(self) -> float:
        """Total violation: samples outside the bounds, summed over the experts."""
        return float(np.abs(self.violated).sum())


class AssignmentPolicy(Protocol):
    """Decides a round's assignment. The same problem always gives the same `X`."""

    def __call__(self, problem: Problem, /) -> Assignment: ...


def policy(name: str) -> AssignmentPolicy:
    """The policy of that name; `ConfigError` if there is none.

    Loads the policy's module only now, so that OR-Tools is needed by `flex_moe` alone.
    """
    module = POLICIES.get(name)
    if module is None:
        raise ConfigError(
            f"unknown assignment policy {name!r}; choose one of {', '.join(POLICIES)}"
        )
    return cast(AssignmentPolicy, import_module(f"{__name__}.{module}").assign)


def _array(name: str, value: Any, kind: type[np.generic]) -> NDArray[Any]:
    """A read-only copy of `value` as `kind`; whole numbers stay whole."""
    try:
        array = np.asarray(value)
        whole = array.dtype.kind in "iu" or array.size == 0
        if array.dtype.kind not in "iuf" or (kind is np.int64 and not whole):
            raise TypeError
    except (TypeError, ValueError):
        wanted = "whole numbers" if kind is np.int64 else "numbers"
        raise FleetError(f"assignment: {name} must be an array of {wanted}") from None
    array = array.astype(kind)
    array.setflags(write=False)
    return array


def _require(good: NDArray[np.bool_], name: str, array: NDArray[Any], wanted: str) -> None:
    """`FleetError` naming the first entry of `array` that is not `good`."""
    if not good.all():
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        place = ", ".join(map(str, where))
        raise FleetError(f"assignment: {name}[{place}] must be {wanted}, not {array[where]}")
