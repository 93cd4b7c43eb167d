from typing import Any

from numpy.typing import NDArray

def respond(
    quality: NDArray[Any],
    samples: NDArray[Any],
    weight: NDArray[Any] | None,
    capacity: NDArray[Any],
    client_keys: NDArray[Any],
    expert_keys: NDArray[Any],
    jitter: float,
    prices: NDArray[Any],
    window: float,
    load: NDArray[Any],
    curvature: NDArray[Any] | None,
    picks: NDArray[Any] | None,
    margins: NDArray[Any] | None,
) -> float:
    """Each client takes its best capacity[c] of quality - weight * prices; the sum of what it gets.

    quality [C, E] float32 or float64, samples and capacity [C] int64, weight [C, E] float64 (None:
    samples). jitter: at most this is taken off a pair, by its client_keys [C] and expert_keys [E]
    (uint32). Adds to load [E] float64 what was taken, and to curvature [E, E] float64 how the loads
    answer to prices, by the clients who would choose otherwise if two prices moved apart by window.
    picks [C, most] int32, most at least every capacity: each client's experts, best first; the rest
    of a row is not written. margins [C] float64: by how much its last expert is better than the
    next; infinite where it has them all.
    """

def step(
    prices: NDArray[Any],
    load: NDArray[Any],
    curvature: NDArray[Any],
    lower: NDArray[Any],
    upper: NDArray[Any],
    radius: float,
    limit: float,
) -> NDArray[Any]:
    """The prices [E] that minimize a model of the dual, within radius of prices and limit of 0.

    The model has the slope -load and this curvature at prices, and the bounds' share exactly.
    """
