"""R local epochs on a device's own data, and what they say about the assigned experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ProgramError
from edge_runtime.samples import Samples
from edge_runtime.trainer import Batch, Rates, Trainer


@dataclass(frozen=True)
class LocalResult:
    """What the last local epoch saw, per slot [k]; `train_loss` is its mean loss over samples."""

    usage: list[int]
    loss: list[float]
    hits: list[int]
    train_loss: float
    steps: int


@dataclass(frozen=True)
class Evaluation:
    """`hits` of `samples` were classified right; `loss` is the mean over samples."""

    hits: int
    samples: int
    loss: float


def fit(
    trainer: Trainer,
    x: Samples | NDArray[np.float32],
    y: NDArray[np.int64],
    epochs: int,
    batch: int,
    rates: Rates,
    seed: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> LocalResult | None:
    """Train `epochs` passes over `x` [n, *shape], `y` [n] in an order that depends on `seed` only.

    A step takes `batch` samples, whatever the program's batch is; the last one of an epoch may take
    fewer.
    Returns None when `interrupted()` turned true between two steps. A loss or a weight that is no
    longer finite raises `ProgramError`: such weights must never leave the device.
    """
    rng = np.random.default_rng(seed)
    k, piece = trainer.layout.k, trainer.layout.batch
    steps = 0
    stats = np.zeros((k, 3))
    for _ in range(epochs):
        stats = np.zeros((k, 3))
        for step in batches(x, y, rng.permutation(len(y)), batch, piece):
            if interrupted():
                return None
            result = trainer.train_step(step, rates)
            if not np.isfinite(result.loss):
                raise _diverged(steps, f"loss {result.loss}", rates)
            stats += result.stats
            steps += 1
    # A step's loss is that of the weights before it: the last step's weights need a look.
    if not all(np.isfinite(weight).all() for weight in trainer.weights().values()):
        raise _diverged(steps, "weights that are not finite", rates)
    routed, loss_sum, hits = stats.T
    return LocalResult(
        usage=[int(n) for n in routed],
        loss=[float(total / max(n, 1.0)) for total, n in zip(loss_sum, routed, strict=True)],
        hits=[int(n) for n in hits],
        train_loss=float(loss_sum.sum() / len(y)),
        steps=steps,
    )


def _diverged(steps: int, what: str, rates: Rates) -> ProgramError:
    return ProgramError(
        f"training diverged after {steps} steps ({what}); lower train.learning_rate, "
        f"now {rates.learning_rate}"
    )


def evaluate(
    trainer: Trainer,
    x: Samples | NDArray[np.float32],
    y: NDArray[np.int64],
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """The current model on `x` [n, *shape], `y` [n], in batches of the program's size.

    No hits for an empty set.
    Returns None when `interrupted()` turned true between two batches.
    """
    stats = np.zeros((trainer.layout.k, 3))
    size = trainer.layout.batch
    for batch in batches(x, y, np.arange(len(y)), size, size):
        if interrupted():
            return None
        stats += trainer.evaluate(batch).stats
    _, loss_sum, hits = stats.sum(axis=0)
    return Evaluation(hits=int(hits), samples=len(y), loss=float(loss_sum / max(len(y), 1)))


def batches(
    x: Samples | NDArray[np.float32],
    y: NDArray[np.int64],
    order: NDArray[np.int64],
    size: int,
    multiple: int,
) -> Iterator[Batch]:
    """`order` in batches of `size`, each padded to a multiple of `multiple` samples.

    Padding has weight 0, the real samples of a batch have equal weights that add up to 1.
    """
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        spare = -len(chosen) % multiple
        weight = np.zeros(len(chosen) + spare, np.float32)
        weight[: len(chosen)] = 1.0 / len(chosen)
        # Padding repeats the first sample: any real sample keeps every kernel on finite numbers.
        padded = np.concatenate([chosen, np.repeat(chosen[:1], spare)])
        yield Batch(x[padded], y[padded], weight)
