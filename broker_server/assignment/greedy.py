"""Each client takes the `k_c` experts that fit it best; nobody looks at the load.

The foil of FLEX-MoE (Zhang et al., "FLEX-MoE: Federated Mixture-of-Experts with Load-balanced
Expert Assignment", arXiv 2512.23070): "greedy methods that focus on personalization". Experts that
fit many clients are crowded, the others starve.
"""

from __future__ import annotations

import time

import numpy as np

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment


def assign(problem: Problem) -> Assignment:
    """The top `k_c` experts of each client by quality, ties broken by the seed.

    No assignment has a larger quality, whatever its loads: the objective is its own bound.
    """
    started = time.perf_counter()
    lottery = np.random.default_rng(problem.seed).random(problem.quality.shape)
    ranking = np.lexsort((lottery, -problem.quality), axis=1)  # [C, E], best expert first
    X = np.zeros(problem.quality.shape, dtype=np.bool_)
    np.put_along_axis(X, ranking, np.arange(problem.experts) < problem.capacity[:, None], axis=1)
    return Assignment.of(
        problem,
        X,
        solver="greedy",
        solve_s=time.perf_counter() - started,
        bound=float(problem.quality[X].sum()),
    )
