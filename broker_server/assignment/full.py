"""Every expert to every client: federated averaging of the whole mixture.

The upper baseline: McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", arXiv 1602.05629, with an MoE as the model. It ignores the capacities on
purpose, so a device must be able to hold all `E` experts; whoever plans the round sets
`k_c = E` for it.
"""

from __future__ import annotations

import time

import numpy as np

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment


def assign(problem: Problem) -> Assignment:
    """All experts for all clients, whatever their capacity."""
    started = time.perf_counter()
    X = np.ones(problem.quality.shape, dtype=np.bool_)
    return Assignment.of(problem, X, solver="full", solve_s=time.perf_counter() - started)
