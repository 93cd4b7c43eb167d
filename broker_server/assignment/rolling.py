"""Every expert is trained by someone each round, and every client meets every expert.

The experts are a ring. Each client takes a window of `k_c` neighbours that starts where the window
of the client before it ended, so that together they go round the ring without a gap: if the `k_c`
add up to `E` or more, no expert is left out. Each round the whole ring turns.

Rolling windows are from Alam et al., "FedRolex: Model-Heterogeneous Federated Learning with Rolling
Sub-Model Extraction", NeurIPS 2022, arXiv 2212.01548, where they roll over the channels of a layer
and all clients start at the same place. Here they roll over experts, laid end to end.
"""

from __future__ import annotations

import time

import numpy as np

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment

_GOLDEN = (5**0.5 - 1) / 2


def assign(problem: Problem) -> Assignment:
    """`k_c` neighbours on the ring for each client, in the order of their `places`.

    Looks at neither quality nor load, and draws nothing from the seed: there are no ties.
    """
    started = time.perf_counter()
    places = np.arange(problem.clients) if problem.places is None else problem.places
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(problem.capacity[order])
    starts = np.empty_like(ends)
    starts[order] = ends - problem.capacity[order] + turn(problem.round, problem.experts)
    X = np.zeros(problem.quality.shape, dtype=np.bool_)
    for rows in problem.blocks():
        steps = (np.arange(problem.experts) - starts[rows, None]) % problem.experts
        X[rows] = steps < problem.capacity[rows, None]
    return Assignment.of(problem, X, solver="rolling", solve_s=time.perf_counter() - started)


def turn(number: int, experts: int) -> int:
    """How far the ring is turned in round `number`, from 1: 0 to `experts` - 1.

    By one expert a round, as in FedRolex: in every cycle of E rounds a client with the same
    neighbours holds each expert in exactly `k_c` of them, whatever `k_c` and E have in common. Each
    cycle starts elsewhere, by the golden ratio: else a client that is there in every second round
    only would never meet half of the experts.
    """
    cycle, step = divmod(number - 1, experts)
    return (step + int(cycle * _GOLDEN % 1 * experts)) % experts
