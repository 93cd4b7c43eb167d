"""Trainers by name."""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.errors import FlexmoeError
from edge_runtime.trainer import Trainer

MAX_THREADS = 256
"""Of the native trainer: what the extension takes, far more than a step can use."""


def _native(threads: int | None) -> Trainer:
    from edge_runtime.native_trainer import NativeTrainer  # needs the extension module

    return NativeTrainer(threads)


def _executorch(threads: int | None) -> Trainer:
    from edge_runtime.executorch_trainer import ExecuTorchTrainer  # needs torch

    return ExecuTorchTrainer()


TRAINERS: dict[str, Callable[[int | None], Trainer]] = {
    "native": _native,
    "executorch": _executorch,
}
"""The first one is the default."""


def make_trainer(name: str, threads: int | None = None) -> Trainer:
    """A new trainer; `FlexmoeError` if there is none of that name, or what it needs is missing.

    `threads` are the native trainer's; None: as many as the cgroup allows whole cores. The stock
    one takes one.
    """
    if name not in TRAINERS:
        raise FlexmoeError(f"unknown trainer {name!r}; expected one of {', '.join(TRAINERS)}")
    return TRAINERS[name](threads)
