"""Each client in turn takes the experts that fit it well and were used little.

Paper: "Efficient Training of Large-Scale AI Models Through Federated Mixture-of-Experts: A
System-Level Approach", IEEE Communications Magazine 64(4), 2026, arXiv 2507.05685, its "Dynamic
Client-Expert Alignment": a client's desirability of an expert rises with their fitness and falls
with the expert's usage score; the client takes its top experts up to its capacity. The paper gives
no formula. This is this project's reconstruction, not the paper's text::

    d(c, e) = F~(c, e) - penalty * U~(e)

`F~` is the client's quality, min-max normalised over the experts. `U~` is the usage, normalised
alike: the experts' history and what this round has assigned so far, so that the clients of a round
do not all pile on the same experts.

Clients come in an order drawn from the seed, which is another one each round: with a fixed order
the same client would always choose first. There is no view of the whole: FLEX-MoE's program
replaces this policy.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment
from edge_runtime.errors import ConfigError


def assign(problem: Problem, penalty: float = 1.0) -> Assignment:
    """The top `k_c` experts of each client by desirability, ties broken by the seed.

    penalty: what usage counts against fitness, 0 or more; `ConfigError` otherwise. 0 is `greedy`.
    """
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ConfigError(f"desirability: the penalty must be a number of 0 or more, not {penalty}")
    started = time.perf_counter()
    rng = np.random.default_rng(problem.seed)
    usage = np.zeros(problem.experts) if problem.history is None else problem.history.copy()
    X = np.zeros(problem.quality.shape, dtype=np.bool_)
    for client in rng.permutation(problem.clients):
        fit = _normalised(problem.quality[client].astype(np.float64))
        desirability = fit - penalty * _normalised(usage)
        lottery = rng.random(problem.experts)
        chosen = np.lexsort((lottery, -desirability))[: problem.capacity[client]]
        X[client, chosen] = True
        usage[chosen] += (
            problem.samples[client] if problem.weight is None else problem.weight[client, chosen]
        )
    return Assignment.of(problem, X, solver="desirability", solve_s=time.perf_counter() - started)


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` [E] moved and scaled to 0 to 1; all 0 where all are equal."""
    low = values.min()
    span = values.max() - low
    return (values - low) / span if span > 0 else np.zeros_like(values)
