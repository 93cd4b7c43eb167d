"""The `Trainer` contract: load programs, hold weights, take steps.

A trainer knows nothing of rounds, networks or data files. Its twins are the stock ExecuTorch
runtime (`executorch_trainer.py`, the oracle) and, in tests, a plain reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ProgramError
from edge_runtime.layout import ProgramLayout

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Rates:
    """How a training step changes the weights (SGD as in PyTorch)."""

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Batch:
    """One batch, padded to the program's size.

    `x` [batch, *shape] float32, `y` [batch] int64, `sample_weight` [batch] float32: each sample's
    share of the loss, 0 for padding.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    sample_weight: NDArray[np.float32]


@dataclass(frozen=True)
class StepResult:
    """`loss`: weighted over the batch. `stats` [k, 3] per slot: routed, summed loss, hits."""

    loss: float
    stats: NDArray[np.float32]


class Trainer(Protocol):
    """Trains one subset model. Not thread-safe."""

    name: str

    @property
    def layout(self) -> ProgramLayout:
        """The layout of the loaded training program; `ProgramError` before `load`."""

    def load(self, training: bytes, evaluation: bytes) -> None:
        """Load a pair of programs with the same weights; `ProgramError` if they do not fit."""

    def assign(self, experts: list[int], weights: Weights) -> None:
        """Take these experts (global ids, one per slot) and copy these weights; momentum is zeroed.

        `ProgramError` names the first weight that is missing, unknown or of a wrong shape.
        """

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The current weights, without a copy: valid until the next `assign` or `load`."""

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        """One step of gradient descent on `batch`."""

    def evaluate(self, batch: Batch) -> StepResult:
        """Loss and statistics of `batch`; the weights stay."""


def check_assignment(layout: ProgramLayout, experts: list[int], weights: Weights) -> None:
    """Raise `ProgramError` unless `experts` and `weights` are what `layout` asks for."""
    if len(experts) != layout.k or len(set(experts)) != layout.k:
        raise ProgramError(f"the program takes {layout.k} different experts, got {experts}")
    if not all(0 <= expert < layout.experts for expert in experts):
        raise ProgramError(f"experts are 0 to {layout.experts - 1}, got {experts}")
    expected = {weight.name: weight.shape for weight in layout.weights}
    odd = sorted(expected.keys() ^ weights.keys())
    if odd:
        what = "missing" if odd[0] in expected else "unknown"
        raise ProgramError(f"weight {odd[0]!r} is {what} (model {layout.model!r}, k={layout.k})")
    for name, shape in expected.items():
        got = weights[name]
        if got.shape != shape or got.dtype != np.float32:
            raise ProgramError(
                f"weight {name!r}: expected float32 {list(shape)}, "
                f"got {got.dtype} {list(got.shape)}"
            )
        if not np.isfinite(got).all():
            raise ProgramError(f"weight {name!r} holds NaN or infinity")
