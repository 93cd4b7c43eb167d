"""What part of a client's samples an expert would be routed, foretold from what devices reported.

A gate is free to send all samples to one of its k experts, so an expert with many assignments may
still see few samples. The *share* of a pair is ``k * usage / n``: 1 is an even part of the client's
n samples, 0 none of them, k all. The shares of the experts that a client holds add up to k.

A pair that has trained is foretold by the moving average of its shares. A pair that has not, by
its expert's popularity: the mean over the clients that know it, drawn towards 1 while they are few.

This is an approximation: the true share depends on which other experts the client holds, and on a
gate that learns. A share is what came in the company that was kept so far, so for other company the
shares need not add up to k. `broker_server.load` makes good what a forecast missed: it counts the
samples that were routed, not those that were foretold.

A table of shares is float64 [C, E], a row one client's [E]; NaN where a pair is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_runtime.errors import ConfigError

BETA = 0.3
"""Default weight of the newest share in the moving average."""

_PRIOR = 3.0  # clients with an even share, counted beside those that know an expert
_LEAST = 0.05  # an expert that got nothing may get something from a gate that has learnt


def table(
    shares: Mapping[str, NDArray[np.float64]], clients: Iterable[str], experts: int
) -> NDArray[np.float64]:
    """The shares [C, E] of `clients`, in their order; NaN for those that `shares` does not hold."""
    unknown = np.full(experts, np.nan)
    rows = [shares.get(client, unknown) for client in clients]
    return np.array(rows, dtype=np.float64).reshape(len(rows), experts)


def update(
    row: NDArray[np.float64], experts: Sequence[int], usage: ArrayLike, beta: float = BETA
) -> NDArray[np.float64]:
    """A client's shares [E] after it trained `experts` [k], no two alike.

    usage [k]: the samples routed to each. beta: weight of the newest share, 0 to 1; the first one
    of a pair is taken as it is. A single expert gets everything whatever the gate thinks of it, so
    that teaches nothing, and neither does a usage of 0 in all.
    """
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta: must be 0 to 1, not {beta}")
    used = np.asarray(usage, dtype=np.float64)
    new = row.copy()
    if len(used) > 1 and used.sum() > 0:
        columns = np.asarray(experts, dtype=np.int64)
        now, old = len(used) * used / used.sum(), row[columns]
        new[columns] = np.where(np.isnan(old), now, (1 - beta) * old + beta * now)
    return new


def popularity(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share [E] that an expert gets of a client of which nothing is known; `shares` [C, E]."""
    known = ~np.isnan(shares)
    total = np.where(known, shares, 0.0).sum(axis=0)
    popular: NDArray[np.float64] = (total + _PRIOR) / (known.sum(axis=0) + _PRIOR)
    return popular


def predict(
    shares: NDArray[np.float64], capacity: NDArray[np.int64], popular: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share [C, E] that each pair would have, 0.05 to k_c, and 1 where k_c is 1.

    shares [C, E]: of the clients that take part. capacity [C]: their k_c. popular [E]: `popularity`
    with all the clients that there ever were, not only these.
    """
    foretold = np.where(np.isnan(shares), popular, shares)
    k = capacity[:, None]
    within: NDArray[np.float64] = np.where(k > 1, np.clip(foretold, _LEAST, k), 1.0)
    return within
