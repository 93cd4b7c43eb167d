"""The clients as a market: given a price for each expert, each takes what is best for itself.

The answers need no client to know of another: a device could give its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe.native import _prices
from broker_server.assignment.problem import Problem

_STRANDS = 8  # sums are made of this many, however many cores there are
_STRAND_CLIENTS = 1024  # at least, each
_MANY_PAIRS = 1 << 20  # fewer are not worth threads
_WIDE = 512  # experts from which on the sums themselves take much memory
_HASH_CLIENTS = 1024

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, eq=False)
class Response:
    """What the clients take at some prices.

    value: the sum of ``quality - weight * price`` over what they take. load [E]. curvature [E, E]:
    minus the loads' derivative by the prices.
    picks [C, most]: each client's experts, and -1; margins [C]: by how much its last is better than
    the next. Those that were not asked for are empty.
    """

    value: float
    load: NDArray[np.float64]
    curvature: NDArray[np.float64]
    picks: NDArray[np.int32]
    margins: NDArray[np.float64]


class Market:
    """The clients of a problem.

    Ties are broken by a `lot` for each pair, drawn from the seed and from what client and expert
    are, not from where they stand: a problem with its clients in another order has the same answer.
    `share` is 1, or of a sample the share of the load that it bears. Use it as a context manager:
    with many clients it has threads.
    """

    def __init__(self, problem: Problem) -> None:
        self._quality = np.ascontiguousarray(problem.quality)
        self._samples, self._capacity = problem.samples, problem.capacity
        self._weight = problem.weight
        self.client_keys, self.expert_keys = _keys(problem)
        self.share = 1.0
        cores = len(os.sched_getaffinity(0))
        many = problem.quality.size >= _MANY_PAIRS and cores > 1
        self._pool = ThreadPoolExecutor(min(_STRANDS, cores)) if many else None

    def __enter__(self) -> Market:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, count: int) -> Market:
        """`count` of the clients by lot; all if there are no more, or if these weigh nothing."""
        if count >= len(self):
            return self
        chosen = np.argpartition(self.client_keys, count)[:count]
        part = object.__new__(Market)
        part._quality = np.ascontiguousarray(self._quality[chosen])
        part._samples, part._capacity = self._samples[chosen], self._capacity[chosen]
        part._weight = None if self._weight is None else self._weight[chosen]
        part.client_keys, part.expert_keys = self.client_keys[chosen], self.expert_keys
        part._pool = None
        load = part.total_load()
        part.share = load / self.total_load() if load > 0 else 0.0
        return part if part.share > 0 else self

    def total_load(self) -> float:
        """The load of all clients together; with pair weights, if each took average experts."""
        if self._weight is not None:
            return float(self._weight.mean(axis=1) @ self._capacity)
        return float(self._samples @ self._capacity)

    def respond(
        self,
        prices: NDArray[np.float64],
        *,
        jitter: float = 0.0,
        window: float = 0.0,
        choices: bool = False,
    ) -> Response:
        """The answer to `prices` [E].

        jitter: up to this, a pair's quality is lowered by its lot. window: `curvature` is of the
        clients who would choose otherwise if two prices moved apart by this much; 0 leaves it out.
        choices: give `picks` and `margins`, too.
        """
        clients, experts = self._quality.shape
        strands = min(_STRANDS if experts <= _WIDE else 2, -(-clients // _STRAND_CLIENTS))
        ends = np.linspace(0, clients, strands + 1).astype(np.int64)
        loads = np.zeros((strands, experts))
        wide = experts if window > 0 else 0
        curvatures = np.zeros((strands, wide, wide))
        most = int(self._capacity.max())
        picks = np.full((clients, most) if choices else (0, 0), -1, np.int32)
        margins = np.empty(clients if choices else 0)

        def answer(strand: int) -> float:
            rows = slice(ends[strand], ends[strand + 1])
            return _prices.respond(
                self._quality[rows],
                self._samples[rows],
                None if self._weight is None else self._weight[rows],
                self._capacity[rows],
                self.client_keys[rows],
                self.expert_keys,
                jitter,
                prices,
                window,
                loads[strand],
                curvatures[strand] if window > 0 else None,
                picks[rows] if choices else None,
                margins[rows] if choices else None,
            )

        run = map if self._pool is None else self._pool.map
        values = list(run(answer, range(strands)))
        return Response(sum(values), loads.sum(axis=0), curvatures.sum(axis=0), picks, margins)


def _keys(problem: Problem) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """A number for each client [C] and expert [E] that follows from what they are and the seed.

    Sums over a row or a column, so that they do not depend on the order of what they add up.
    """
    sizes = _mixed(problem.samples.astype(np.uint64) * _ODD + problem.capacity.astype(np.uint64))
    limits = problem.lower.view(np.uint64) * _ODD + problem.upper.view(np.uint64)
    clients = np.empty(problem.clients, np.uint64)
    experts = _mixed(limits)
    bits: Any = np.uint32 if problem.quality.dtype == np.float32 else np.uint64
    for start in range(0, problem.clients, _HASH_CLIENTS):
        rows = slice(start, start + _HASH_CLIENTS)
        pairs = _mixed(np.ascontiguousarray(problem.quality[rows]).view(bits).astype(np.uint64))
        if problem.weight is not None:
            pairs += _mixed(np.ascontiguousarray(problem.weight[rows]).view(np.uint64))
        clients[rows] = pairs.sum(axis=1) + sizes[rows]
        experts += (pairs * (sizes[rows, None] | np.uint64(1))).sum(axis=0)
    return _distinct(clients, problem.seed), _distinct(experts, problem.seed + 1)


def _distinct(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint32]:
    """`keys` mixed with the seed; equal ones are told apart by their order."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    first = np.r_[True, ranked[1:] != ranked[:-1]]
    starts = np.flatnonzero(first)
    again = np.empty(len(keys), np.uint64)
    again[order] = np.arange(len(keys)) - starts[np.cumsum(first) - 1]
    salt = np.uint64(seed * int(_ODD) % 2**64)  # Python's numbers: numpy's warn of overflow
    mixed = _mixed(_mixed(keys + salt) + again)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number as another that looks random (the finalizer of SplitMix64, shortened)."""
    mixed = (bits ^ (bits >> np.uint64(30))) * _MIX
    mixed ^= mixed >> np.uint64(27)
    mixed *= _ODD
    return mixed ^ (mixed >> np.uint64(31))
