"""Each client takes `k_c` experts by lot: the baseline that any policy has to beat.

From no paper. Over many rounds chance alone balances the load to a coefficient of variation of a
few percent, so that "better balanced than greedy" says little without this policy beside it.
"""

from __future__ import annotations

import time

import numpy as np

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment


def assign(problem: Problem) -> Assignment:
    """`k_c` experts of each client, every subset equally likely, drawn from the seed."""
    started = time.perf_counter()
    lottery = np.random.default_rng(problem.seed).random(problem.quality.shape)
    X = lottery.argsort(axis=1).argsort(axis=1) < problem.capacity[:, None]
    return Assignment.of(problem, X, solver="random", solve_s=time.perf_counter() - started)
