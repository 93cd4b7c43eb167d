"""How much each expert has been trained, and how much it should get next.

The load `H[e]` of an expert is the sum of `n_c` over the clients that it was assigned to and that
trained it, over all rounds so far: who did not answer leaves a deficit to make good. FLEX-MoE
(arXiv 2512.23070) bounds a round's load from both sides and mentions the experts' historical
deficit, but its formulas for the two bounds are not public. `bounds` is this project's
reconstruction, not the paper's text.

Assignments are not samples: a gate may send everything to one of its k experts. So load is also
counted as it was *routed*: of a client's `n_c k_c`, each of its experts gets `k_c * usage`, and
`R[e]` is their sum. Both kinds add up to the same total, and share one set of bounds. Which is to
be even is the `Balance`:

- ``assigned``: H, the paper's rule.
- ``routed``: R, where a round's part is foretold (`broker_server.forecast`).
- ``both``: their mean, as one load. It evens out that mean, so each kind is left with about half
  of the imbalance that the other rule would leave it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_runtime.errors import ConfigError

GRAIN = 0.5
"""The least tolerance of a round's load bounds, in samples of a mean client."""

Balance = Literal["assigned", "routed", "both"]

_MOST_TOLERANCE = 1e6  # times a share, or a client: no bound at all
_MOST_ASSIGNED = 3  # by how much an expert's assignments may exceed its routed load in `history`


def bounds(
    history: NDArray[Any],
    samples: NDArray[np.int64],
    capacity: NDArray[np.int64],
    delta: float,
    grain: float = GRAIN,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples (lower [E], upper [E]) that each expert should get in this round.

    A reconstruction. With `W = sum_c n_c k_c`, the load that this round hands out, the fair
    cumulative share is `T = (sum_e H[e] + W) / E`, and the round should bring every expert to
    within `slack` of it::

        lower[e] = max(0, T - slack - H[e])      upper[e] = max(0, T + slack - H[e])

    where slack is `delta T`, or `grain` times a mean client's samples if that is more: loads come
    in blocks of n_c, and to hit a share more finely than its blocks would cost quality for nothing,
    as what is missing now is made good in the next round.

    history [E]: H before the round, or the load of another `Balance`. samples, capacity [C]: n_c
    and k_c of the clients that take part. delta, grain: tolerances, 0 to 1e6; `ConfigError`
    otherwise. The bounds may be impossible to keep: a client may have more samples than an expert's
    share, and a round cannot make good any deficit.
    """
    if not 0 <= delta <= _MOST_TOLERANCE:
        raise ConfigError(f"delta: must be 0 to {_MOST_TOLERANCE:g} fair shares, not {delta}")
    if not 0 <= grain <= _MOST_TOLERANCE:
        raise ConfigError(f"grain: must be 0 to {_MOST_TOLERANCE:g} mean clients, not {grain}")
    share = (history.sum() + samples @ capacity) / len(history)
    slack = max(delta * share, grain * samples.mean())
    lower = np.maximum(0.0, share - slack - history)
    upper = np.maximum(0.0, share + slack - history)
    return lower, upper


def update(
    history: NDArray[np.int64], X: NDArray[np.bool_], samples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The loads [E] after a round with assignment `X` [C, E] of clients with `samples` [C]."""
    new: NDArray[np.int64] = history + samples @ X
    return new


def update_routed(
    routed: NDArray[np.int64], experts: Sequence[int], usage: ArrayLike
) -> NDArray[np.int64]:
    """The routed loads [E] after a client trained `experts` [k], no two alike.

    usage [k]: the samples routed to each. Adds `k * usage`, in all the client's n k.
    """
    new = routed.copy()
    new[np.asarray(experts, dtype=np.int64)] += len(experts) * np.asarray(usage, dtype=np.int64)
    return new


def history(
    balance: Balance, assigned: NDArray[np.int64], routed: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The load [E] to be balanced so far, out of H `assigned` [E] and R `routed` [E].

    Under ``routed`` an expert counts for a third of its H at least. Else one that every gate
    avoids, whose deficit no assignment can make good, would be given to every client for ever; so
    its H ends at three times what the others are routed. (Under ``both``, at twice the mean H.)
    """
    _require_known(balance)
    if balance == "assigned":
        return assigned.astype(np.float64)
    if balance == "routed":
        return np.maximum(routed, assigned / _MOST_ASSIGNED)
    return (assigned + routed) / 2


def weights(
    balance: Balance, samples: NDArray[np.int64], shares: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The load [C, E] that each pair would bring in this round, as `Problem.weight` takes it.

    None under ``assigned``, where it is n_c for each expert. samples [C]: n_c. shares [C, E]: from
    `broker_server.forecast.predict`; `n_c * share` is what an expert would be routed.
    """
    _require_known(balance)
    if balance == "assigned":
        return None
    return samples[:, None] * (shares if balance == "routed" else (1 + shares) / 2)


def _require_known(balance: str) -> None:
    if balance not in get_args(Balance):
        raise ConfigError(
            f"unknown balance {balance!r}; choose one of {', '.join(get_args(Balance))}"
        )


def coefficient_of_variation(values: ArrayLike) -> float:
    """Standard deviation (of the population) over mean of `values` [E], none negative.

    0 when all are 0. `load_cv` is this of the cumulative loads H, `usage_cv` of a round's routed
    samples.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = array.mean()
    return float(array.std() / mean) if mean > 0 else 0.0
