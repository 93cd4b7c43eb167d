"""For each pair of experts, the clients that lose least by changing the first for the second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe.plan import Plan


@dataclass(frozen=True, eq=False)
class Exits:
    """At most `m` ways out of each expert e to each other f.

    client [E, E, m]: who could go; where there are fewer, `regret` is infinite. regret [E, E, m]:
    what a client loses at the prices, the least first. gain [E, E, m]: the change of its quality.
    leaves, enters [E, E, m]: what its going takes off the load of e, and adds to that of f.
    """

    client: NDArray[np.int64]
    regret: NDArray[np.float64]
    gain: NDArray[np.float64]
    leaves: NDArray[np.float64]
    enters: NDArray[np.float64]

    @classmethod
    def of(
        cls, plan: Plan, prices: NDArray[np.float64], clients: NDArray[np.int64], m: int
    ) -> Exits:
        """The exits open to `clients` in `plan`."""
        experts = plan.problem.experts
        quality = np.asarray(plan.problem.quality[clients], np.float64)
        worth = quality - plan.weights(clients[:, None], np.arange(experts)) * prices
        held = plan.X[clients]
        shape = (experts, experts, m)
        client, regret = np.zeros(shape, np.int64), np.full(shape, np.inf)
        gain = np.zeros(shape)
        for e in range(experts):
            holders = np.flatnonzero(held[:, e])
            if not len(holders):
                continue
            loss = np.where(held[holders], np.inf, worth[holders, e, None] - worth[holders])
            few = min(m, len(holders))
            nearest = np.argpartition(loss, few - 1, axis=0)[:few]
            nearest = np.take_along_axis(
                nearest, np.take_along_axis(loss, nearest, axis=0).argsort(axis=0), axis=0
            )
            who = holders[nearest].T  # [E, few]
            client[e, :, :few] = clients[who]
            regret[e, :, :few] = np.take_along_axis(loss, nearest, axis=0).T
            gain[e, :, :few] = quality[who, np.arange(experts)[:, None]] - quality[who, e]
        every = np.arange(experts)
        leaves = plan.weights(client, np.broadcast_to(every[:, None, None], shape))
        enters = plan.weights(client, np.broadcast_to(every[None, :, None], shape))
        return cls(client, regret, gain, leaves, enters)
