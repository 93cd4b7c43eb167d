"""How much each expert has been trained, and how much it should get next.

The load `H[e]` of an expert is the sum of `n_c` over the clients that it was assigned to and that
trained it, over all rounds so far: who did not answer leaves a deficit to make good. FLEX-MoE
(arXiv 2512.23070) bounds a round's load from both sides and mentions the experts' historical
deficit, but its formulas for the two bounds are not public. `bounds` is this project's
reconstruction, not the paper's text.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_runtime.errors import ConfigError


def bounds(
    history: NDArray[Any],
    samples: NDArray[np.int64],
    capacity: NDArray[np.int64],
    delta: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples (lower [E], upper [E]) that each expert should get in this round.

    A reconstruction. With `W = sum_c n_c k_c`, the load that this round hands out, the fair
    cumulative share is `T = (sum_e H[e] + W) / E`, and the round should bring every expert to
    within `delta` of it::

        lower[e] = max(0, (1 - delta) T - H[e])      upper[e] = max(0, (1 + delta) T - H[e])

    history [E]: H before the round. samples, capacity [C]: n_c and k_c of the clients that take
    part. delta: tolerance, 0 or more; `ConfigError` otherwise. The bounds may be impossible to
    keep: loads come in blocks of n_c, and a round cannot make good any deficit.
    """
    if not (math.isfinite(delta) and delta >= 0):
        raise ConfigError(f"delta: the load tolerance must be 0 or more, not {delta}")
    share = (history.sum() + samples @ capacity) / len(history)
    lower = np.maximum(0.0, (1 - delta) * share - history)
    upper = np.maximum(0.0, (1 + delta) * share - history)
    return lower, upper


def update(
    history: NDArray[np.int64], X: NDArray[np.bool_], samples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The loads [E] after a round with assignment `X` [C, E] of clients with `samples` [C]."""
    new: NDArray[np.int64] = history + samples @ X
    return new


def coefficient_of_variation(values: ArrayLike) -> float:
    """Standard deviation (of the population) over mean of `values` [E], none negative.

    0 when all are 0. `load_cv` is this of the cumulative loads, `usage_cv` of a round's routed
    samples.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = array.mean()
    return float(array.std() / mean) if mean > 0 else 0.0
