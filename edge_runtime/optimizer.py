"""SGD with momentum and weight decay, in place over numpy arrays.

The rule is that of `torch.optim.SGD` with dampening 0:
``g += wd * w; v = mu * v + g; w -= lr * v``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.trainer import Rates


class Sgd:
    """Updates a fixed list of weights; holds one velocity per weight once momentum is used."""

    def __init__(self, weights: Sequence[NDArray[np.float32]]) -> None:
        self._weights = weights
        self._velocity: list[NDArray[np.float32]] | None = None
        self._scratch = [np.empty_like(weight) for weight in weights]

    def step(self, gradients: Sequence[NDArray[np.float32]], rates: Rates) -> None:
        """Apply one step. `gradients` are in the order and shapes of the weights."""
        if rates.momentum and self._velocity is None:
            self._velocity = [np.zeros_like(weight) for weight in self._weights]
        for i, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            update = self._scratch[i]
            if rates.weight_decay:
                np.multiply(weight, np.float32(rates.weight_decay), out=update)
                update += gradient
                gradient = update
            if rates.momentum:
                assert self._velocity is not None
                velocity = self._velocity[i]
                velocity *= np.float32(rates.momentum)
                velocity += gradient
                gradient = velocity
            np.multiply(gradient, np.float32(rates.learning_rate), out=update)
            weight -= update
