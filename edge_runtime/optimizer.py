"""SGD, AdamW and clipping, in place over numpy arrays: the optimizer of the stock trainer.

The rules are those of `torch.optim.SGD` (dampening 0, no Nesterov), `torch.optim.AdamW` (without
amsgrad) and `torch.nn.utils.clip_grad_norm_`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.trainer import Rates

Array = NDArray[np.float32]

_CLIP_EPSILON = 1e-6  # clip_grad_norm_ adds it to the norm


class Optimizer:
    """Updates a fixed list of weights. Its state begins at zero, and exists once it is needed."""

    def __init__(self, weights: Sequence[Array]) -> None:
        self._weights = weights
        self._scratch = [np.empty_like(weight) for weight in weights]
        self._velocity: list[Array] = []  # SGD's, with momentum
        self._mean: list[Array] = []  # AdamW's moments
        self._square: list[Array] = []
        self._steps = 0

    def step(self, gradients: Sequence[Array], rates: Rates) -> None:
        """Apply one step. `gradients` are in the order and shapes of the weights, and stay."""
        factor = clip_factor(gradients, rates.clip_norm)
        for scratch, gradient in zip(self._scratch, gradients, strict=True):
            np.multiply(gradient, np.float32(factor), out=scratch)
        if rates.optimizer == "adamw":
            self._adamw(rates)
        else:
            self._sgd(rates)

    def _sgd(self, rates: Rates) -> None:
        """``g += wd * w; v = mu * v + g; w -= lr * v``; the scratch holds the gradients."""
        if rates.momentum and not self._velocity:
            self._velocity = [np.zeros_like(weight) for weight in self._weights]
        for i, (weight, update) in enumerate(zip(self._weights, self._scratch, strict=True)):
            if rates.weight_decay:
                update += np.float32(rates.weight_decay) * weight
            if rates.momentum:
                velocity = self._velocity[i]
                velocity *= np.float32(rates.momentum)
                velocity += update
                update[...] = velocity
            update *= np.float32(rates.learning_rate)
            weight -= update

    def _adamw(self, rates: Rates) -> None:
        """``w -= lr * wd * w; w -= lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)``.

        m and v are the moving averages of the gradient and of its square.
        """
        if not self._mean:
            self._mean = [np.zeros_like(weight) for weight in self._weights]
            self._square = [np.zeros_like(weight) for weight in self._weights]
        self._steps += 1
        step_size = rates.learning_rate / (1 - rates.beta1**self._steps)
        root = math.sqrt(1 - rates.beta2**self._steps)
        for weight, update, mean, square in zip(
            self._weights, self._scratch, self._mean, self._square, strict=True
        ):
            weight *= np.float32(1 - rates.learning_rate * rates.weight_decay)
            mean *= np.float32(rates.beta1)
            mean += np.float32(1 - rates.beta1) * update
            square *= np.float32(rates.beta2)
            square += np.float32(1 - rates.beta2) * update * update
            np.sqrt(square, out=update)
            update /= np.float32(root)
            update += np.float32(rates.epsilon)
            np.divide(mean, update, out=update)
            update *= np.float32(step_size)
            weight -= update


def clip_factor(gradients: Iterable[Array], clip_norm: float) -> float:
    """What to multiply the gradients with, so that their global norm is at most `clip_norm`.

    1 for a `clip_norm` of 0: no clipping. A norm that is not finite leaves no finite gradient.
    """
    if not clip_norm:
        return 1.0
    squares = sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients)
    if math.isnan(squares):
        return math.nan
    return min(1.0, clip_norm / (math.sqrt(squares) + _CLIP_EPSILON))
