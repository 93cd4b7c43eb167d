"""Who trains which experts: the contract that every assignment policy keeps.

A policy is a function from a `Problem` to an `Assignment`. On matrices of one's own::

    from broker_server.assignment import assign

    answer = assign(quality, samples, capacity, delta=0.05)  # answer.X: bool [C, E]

and in the round, where bounds and seed are known, `policy(name)(problem)`.

`C` clients, `E` experts. Client `c` has `n_c` samples and holds `k_c` experts. An expert's load is
the sum of `n_c` over the clients that hold it; a problem's `lower` and `upper` are what it should
stay between this round (see `broker_server.load`).
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, Protocol, cast

from numpy.typing import ArrayLike

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment
from broker_server.load import GRAIN
from edge_runtime.errors import ConfigError

__all__ = ["POLICIES", "Assignment", "AssignmentPolicy", "Problem", "assign", "policy"]

POLICIES = {
    "flex_moe": "flex_moe",
    "desirability": "desirability",
    "greedy": "greedy",
    "random": "random_k",
    "rolling": "rolling",
    "full": "full",
    "fixed": "fixed",
}
"""Names of the policies, and the module of this package that holds each."""


class AssignmentPolicy(Protocol):
    """Decides a round's assignment. The same problem always gives the same `X`."""

    def __call__(self, problem: Problem, /) -> Assignment: ...


def policy(name: str, **options: Any) -> AssignmentPolicy:
    """The policy of that name, with the options of its module's `assign`.

    `ConfigError` if there is none. Loads the policy's module only now, so that OR-Tools is needed
    by `flex_moe` alone.
    """
    module = POLICIES.get(name)
    if module is None:
        raise ConfigError(
            f"unknown assignment policy {name!r}; choose one of {', '.join(POLICIES)}"
        )
    decide = import_module(f"{__name__}.{module}").assign
    return cast(AssignmentPolicy, partial(decide, **options) if options else decide)


def assign(
    quality: ArrayLike,
    samples: ArrayLike,
    capacity: ArrayLike,
    *,
    delta: float = 0.02,
    grain: float = GRAIN,
    history: ArrayLike | None = None,
    seed: int = 0,
    name: str = "flex_moe",
    **options: Any,
) -> Assignment:
    """The assignment of the policy `name` under balanced load; `options` are the policy's own.

    quality [C, E], samples [C] (n_c, whole, from 1), capacity [C] (k_c, whole, 1 to E). delta:
    tolerance of the load bounds around the fair share, as a fraction of it; at least `grain` times
    a mean client's samples. history [E]: the
    experts' loads before, 0 by default. seed: breaks ties. Raises `FleetError` or `ConfigError`.
    """
    decide = policy(name, **options)
    problem = Problem.balanced(
        quality, samples, capacity, delta=delta, grain=grain, history=history, seed=seed
    )
    return decide(problem)
