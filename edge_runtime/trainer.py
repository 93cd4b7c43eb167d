"""The `Trainer` contract: load programs, hold weights, take steps.

A trainer knows nothing of rounds, networks or data files. There are two: our own runtime
(`native_trainer.py`) and the stock ExecuTorch runtime (`executorch_trainer.py`, the oracle); tests
add a plain reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ProgramError
from edge_runtime.layout import ProgramLayout

Weights = Mapping[str, NDArray[np.float32]]
OptimizerName = Literal["sgd", "adamw"]

MIB = 1024 * 1024


def in_mib(size_bytes: int) -> str:
    """Such as ``12.3 MiB``."""
    return f"{size_bytes / MIB:.1f} MiB"


@dataclass(frozen=True)
class Rates:
    """How a training step changes the weights, as in `torch.optim.SGD` and `torch.optim.AdamW`.

    `momentum` is for SGD only, `beta1`, `beta2` and `epsilon` for AdamW only. Before either, the
    gradients are scaled down to a global norm of at most `clip_norm`, as
    `torch.nn.utils.clip_grad_norm_` does; 0 turns that off. Ranges are checked (`misfits`) where
    values come in: the experiment, and a round's work.
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: OptimizerName = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 0.0

    @property
    def moments(self) -> int:
        """How many arrays of the weights' size the optimizer keeps from step to step."""
        return 2 if self.optimizer == "adamw" else int(self.momentum > 0)


def misfits(rates: Rates) -> dict[str, str]:
    """By name, the numbers of `rates` that are out of range, and what each must be.

    They count as training takes them, rounded to float32: there 0.9999999999 is 1, 1e-60 is 0 and
    1e300 infinity.
    """
    found = {}
    for name in ("learning_rate", "epsilon"):
        if not 0 < _rounded(getattr(rates, name)) < np.inf:
            found[name] = "a number > 0 in float32"
    for name in ("momentum", "beta1", "beta2"):
        if not 0 <= _rounded(getattr(rates, name)) < 1:
            found[name] = "a number >= 0 and < 1 in float32"
    for name in ("weight_decay", "clip_norm"):
        # A clip_norm that becomes 0 would turn clipping off.
        if getattr(rates, name) != 0 and not 0 < _rounded(getattr(rates, name)) < np.inf:
            found[name] = "0, or a number > 0 in float32"
    return found


def _rounded(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


@dataclass(frozen=True)
class Batch:
    """One batch of n samples. n is the program's batch, or, for a training step, a multiple of it.

    `x` [n, *shape] float32, `y` [n] int64, `sample_weight` [n] float32: each sample's share of the
    loss, 0 for padding. A multiple is run as micro-batches of the program's size, whose gradients
    are summed: the step is the same as that of a program with a batch of n (within 1e-5), but for
    a balance term, which sees one micro-batch at a time.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    sample_weight: NDArray[np.float32]


@dataclass(frozen=True)
class MemoryNeed:
    """What a trainer allocates to train with a pair of programs, in bytes.

    `programs` as they are in memory, `arena` for activations (and gradients, where the program
    plans them), `weights`, `gradients` outside of the arena, `optimizer` for its state (and the
    stock trainer's own scratch), `scratch` for what kernels take while they run, where the trainer
    knows.
    """

    programs_bytes: int
    arena_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    scratch_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return (
            self.programs_bytes
            + self.arena_bytes
            + self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.scratch_bytes
        )

    def __str__(self) -> str:
        """Such as ``12.3 MiB (programs 0.1, arena 8.0, weights 1.2, ...)``."""
        parts = (
            ("programs", self.programs_bytes),
            ("arena", self.arena_bytes),
            ("weights", self.weights_bytes),
            ("gradients", self.gradients_bytes),
            ("optimizer", self.optimizer_bytes),
            ("scratch", self.scratch_bytes),
        )
        shares = ", ".join(f"{name} {size / MIB:.1f}" for name, size in parts)
        return f"{in_mib(self.total_bytes)} ({shares})"


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

    def memory_need(
        self, training: bytes, evaluation: bytes, rates: Rates, batch: int
    ) -> MemoryNeed:
        """What `load` of this pair, `assign` and steps of `batch` samples will allocate.

        Reads the programs only: nothing of the need is allocated, and what is loaded stays.
        `ProgramError` for programs that `load` would refuse, as far as reading them tells.
        """

    def load(self, training: bytes, evaluation: bytes) -> None:
        """Load a pair of programs with the same weights; `ProgramError` if they do not fit."""

    def assign(self, experts: list[int], weights: Weights) -> None:
        """Take these experts (global ids, one per slot) and copy these weights; the optimizer's
        state is zeroed.

        `ProgramError` names the first weight that is missing, unknown or of a wrong shape.
        """

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The current weights, without a copy: valid until the next `assign` or `load`.

        `ProgramError` before `load`.
        """

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        """One step of the optimizer on `batch`, whole or in micro-batches (see `Batch`).

        `ProgramError` for a batch that does not fit the program; then no weight has changed.
        """

    def evaluate(self, batch: Batch) -> StepResult:
        """Loss and statistics of a `batch` of the program's own size; the weights stay."""


def check_pair(training: ProgramLayout, evaluation: ProgramLayout) -> None:
    """Raise `ProgramError` unless the two programs are of the right roles and of one model."""
    if (training.role, evaluation.role) != ("train", "evaluate"):
        raise ProgramError(
            "expected a training and an evaluation program, got "
            f"{training.role!r} and {evaluation.role!r}"
        )
    if replace(training, role="evaluate") != evaluation:
        raise ProgramError("the training and the evaluation program are of different models")


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


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    """`batch` in pieces of `size` samples, as views; `ProgramError` if it does not divide."""
    count = len(batch.y)
    if count == 0 or count % size:
        raise ProgramError(f"a step takes a multiple of the program's batch {size}, got {count}")
    return [
        Batch(batch.x[i : i + size], batch.y[i : i + size], batch.sample_weight[i : i + size])
        for i in range(0, count, size)
    ]
