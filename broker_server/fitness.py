"""How well an expert fits a client: the fitness of one round, and quality, its moving average.

After FLEX-MoE (Zhang et al., arXiv 2512.23070): loss-driven `s = exp(-alpha * loss)` or
accuracy-driven `s = hits / usage`, then `Q[c,e] = (1 - beta) Q[c,e] + beta s[c,e]` for the pairs
that trained; any other pair keeps its score. The paper does not say where `Q` starts: `q0` is an
optimistic start when it is high, since a pair never tried keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_runtime.errors import ConfigError

FitnessMode = Literal["loss", "accuracy"]


def initial_quality(clients: int, experts: int, q0: float) -> NDArray[np.float64]:
    """The quality [C, E] before the first round: `q0` everywhere."""
    if not math.isfinite(q0):
        raise ConfigError(f"q0: the first quality must be a finite number, not {q0}")
    return np.full((clients, experts), q0)


def fitness(
    loss: ArrayLike, hits: ArrayLike, usage: ArrayLike, mode: FitnessMode, alpha: float
) -> NDArray[np.float64]:
    """The fitness [k] of a client's k assigned experts, in 0 to 1.

    loss [k]: mean loss of the samples routed to each. hits [k]: how many of them were classified
    right. usage [k]: how many there were. alpha: above 0, how steeply fitness falls with the loss;
    unused by mode ``accuracy``. An expert without samples has fitness 0; `update_quality` passes
    over it. What a device reports cannot lift a fitness above 1.
    """
    if mode not in get_args(FitnessMode):
        raise ConfigError(
            f"unknown fitness mode {mode!r}; choose one of {', '.join(get_args(FitnessMode))}"
        )
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha: must be above 0, not {alpha}")
    used = np.asarray(usage, dtype=np.int64)
    if mode == "loss":
        score = np.exp(-alpha * np.maximum(np.asarray(loss, dtype=np.float64), 0.0))
    else:
        score = np.asarray(hits, dtype=np.float64) / np.maximum(used, 1)
    return np.where(used > 0, np.clip(score, 0.0, 1.0), 0.0)


def exploration_bonus(trials: NDArray[np.int64], rounds: int, scale: float) -> NDArray[np.float64]:
    """What to add to the quality [C, E] of pairs that were tried seldom; 0 everywhere for scale 0.

    An upper confidence bound (UCB1; Auer et al. 2002): ``scale * sqrt(ln(1 + t) / (1 + N[c,e]))``.
    Not part of FLEX-MoE, where a pair that scored badly in the first rounds, when every loss is
    high, keeps that score and is never tried again: clients lock in on their first finds.

    trials [C, E]: N, in how many rounds the pair trained. rounds: t, how many there were.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(f"explore: must be 0 or more, not {scale}")
    bonus: NDArray[np.float64] = scale * np.sqrt(math.log1p(rounds) / (1 + trials))
    return bonus


def update_quality(
    row: NDArray[np.float64],
    experts: Sequence[int],
    scores: ArrayLike,
    usage: ArrayLike,
    beta: float,
) -> NDArray[np.float64]:
    """A client's new quality [E]: its `row` moved towards its scores where it trained.

    experts [k]: the client's experts, no two alike. scores [k]: their fitness. usage [k]: the
    samples routed to each; an expert with none keeps its quality. beta: weight of the new score, 0
    to 1; at 0 the quality never changes.
    """
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta: must be 0 to 1, not {beta}")
    columns = np.asarray(experts, dtype=np.int64)
    old = row[columns]
    moved = (1 - beta) * old + beta * np.asarray(scores, dtype=np.float64)
    new = row.copy()
    new[columns] = np.where(np.asarray(usage) > 0, moved, old)
    return new
