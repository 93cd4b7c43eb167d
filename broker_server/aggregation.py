"""Weighted means of the devices' updates, added one at a time.

Federated averaging (McMahan et al. 2017, arXiv 1602.05629) for the backbone, weighted by samples;
per expert and per gate row the same, weighted by usage, the samples that the gate routed there
(FLEX-MoE, arXiv 2512.23070; the normalisation is a reconstruction):

    psi     += sum_c n_c   * d_psi[c]     / sum_c n_c
    theta_e += sum_c u[c,e] * d_theta[c,e] / sum_c u[c,e]

An expert that nobody used stays as it is. Sums run in float64, in the order of the calls to `add`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.parts import ModelParts, Tensors


@dataclass(frozen=True)
class ClientUpdate:
    """One device's changes. `gate` [k, features] holds the rows of `experts`; None if it is local.

    `usage` [k] and `changes` (one per expert) follow `experts`; `samples` is n_c.
    """

    samples: int
    experts: Sequence[int]
    usage: Sequence[int]
    backbone: Tensors
    gate: NDArray[np.float32] | None
    changes: Sequence[Tensors]


class Aggregator:
    """Holds one sum per weight: its memory does not grow with the number of updates."""

    def __init__(self, model: ModelParts) -> None:
        self._model = model
        self._backbone = _Mean(model.backbone)
        self._experts = [_Mean(expert) for expert in model.experts]
        self._gate = [_Mean({"row": row}) for row in model.gate]

    def add(self, update: ClientUpdate) -> None:
        """Add one update whose names and shapes have been checked."""
        self._backbone.add(update.backbone, update.samples)
        for slot, expert in enumerate(update.experts):
            self._experts[expert].add(update.changes[slot], update.usage[slot])
            if update.gate is not None:
                self._gate[expert].add({"row": update.gate[slot]}, update.usage[slot])

    def result(self) -> ModelParts:
        """The model after this round."""
        return ModelParts(
            backbone=self._backbone.applied(),
            gate=np.stack([row.applied()["row"] for row in self._gate]),
            experts=tuple(expert.applied() for expert in self._experts),
        )


class _Mean:
    """A weighted mean of changes to `base`."""

    def __init__(self, base: Tensors) -> None:
        self._base = base
        self._weight = 0
        self._sum: dict[str, NDArray[np.float64]] = {}

    def add(self, change: Tensors, weight: int) -> None:
        if weight == 0:
            return
        if not self._sum:
            self._sum = {name: np.zeros(value.shape) for name, value in self._base.items()}
        self._weight += weight
        for name, total in self._sum.items():
            total += np.multiply(change[name], weight, dtype=np.float64)

    def applied(self) -> Tensors:
        if not self._weight:
            return self._base
        return {
            name: (value + self._sum[name] / self._weight).astype(np.float32)
            for name, value in self._base.items()
        }
