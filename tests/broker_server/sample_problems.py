"""Assignment problems and their brute force, for the tests of those who solve them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import Problem

EIGHTHS = st.integers(0, 320).map(lambda n: n / 8)
SEVENTHS = st.integers(0, 280).map(lambda n: n / 7)


@st.composite
def problems(
    draw: st.DrawFn, clients: int = 4, experts: int = 4, weighted: bool = False
) -> Problem:
    """Small problems, whose bounds are often impossible and whose qualities are often equal."""
    rows, columns = draw(st.integers(1, clients)), draw(st.integers(1, experts))
    numbers = draw(st.sampled_from([st.floats(-2, 2), st.sampled_from([0.0, 0.5, 1.0])]))
    bounds = draw(st.sampled_from([EIGHTHS, SEVENTHS]))
    limits = draw(st.lists(st.tuples(bounds, bounds), min_size=columns, max_size=columns))
    equal = draw(st.booleans())  # one bound from both sides
    weights = draw(st.sampled_from([st.floats(0, 40), EIGHTHS, SEVENTHS]))
    return Problem(
        quality=np.array([[draw(numbers) for _ in range(columns)] for _ in range(rows)]),
        samples=np.array([draw(st.integers(1, 30)) for _ in range(rows)]),
        capacity=np.array([draw(st.integers(1, columns)) for _ in range(rows)]),
        lower=np.array([min(pair) for pair in limits]),
        upper=np.array(
            [
                min(pair) if equal else draw(st.sampled_from([max(pair), math.inf]))
                for pair in limits
            ]
        ),
        seed=draw(st.integers(0, 2**40)),
        weight=np.array([[draw(weights) for _ in range(columns)] for _ in range(rows)])
        if weighted
        else None,
    )


def all_assignments(problem: Problem) -> NDArray[np.bool_]:
    """Every assignment [N, C, E] that gives each client its k_c experts."""
    choices = [
        [np.isin(np.arange(problem.experts), chosen) for chosen in subsets]
        for subsets in (
            itertools.combinations(range(problem.experts), int(k)) for k in problem.capacity
        )
    ]
    return np.array(list(itertools.product(*choices)))


def everything(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Violation and objective [N] of `all_assignments`."""
    X = all_assignments(problem)
    samples = np.broadcast_to(problem.samples[:, None], problem.quality.shape)
    load = np.einsum("nce,ce->ne", X, samples if problem.weight is None else problem.weight)
    outside = np.maximum(load - problem.upper, 0) + np.maximum(problem.lower - load, 0)
    return outside.sum(axis=1), (X * problem.quality).sum(axis=(1, 2))


def rounding(problem: Problem) -> float:
    """The quality that an integer program of a million steps cannot see."""
    return 1e-6 * float(np.ptp(problem.quality)) * int(problem.capacity.sum()) + 1e-9


def sample_problem(seed: int = 3, clients: int = 8, experts: int = 8, **changes: Any) -> Problem:
    """A problem whose bounds can be kept."""
    rng = np.random.default_rng(5)
    samples = rng.integers(40, 300, clients)
    share = samples.sum() * 2 / experts
    fields: dict[str, Any] = {
        "quality": rng.random((clients, experts)),
        "samples": samples,
        "capacity": np.full(clients, 2),
        "lower": np.full(experts, 0.8 * share),
        "upper": np.full(experts, 1.2 * share),
        "seed": seed,
    }
    return Problem(**{**fields, **changes})


def permuted(problem: Problem, rows: NDArray[Any], columns: NDArray[Any]) -> Problem:
    """The same problem with its clients and experts in another order."""
    return replace(
        problem,
        quality=problem.quality[np.ix_(rows, columns)],
        samples=problem.samples[rows],
        capacity=problem.capacity[rows],
        lower=problem.lower[columns],
        upper=problem.upper[columns],
        weight=None if problem.weight is None else problem.weight[np.ix_(rows, columns)],
    )
