"""Trainers by name."""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.errors import FlexmoeError
from edge_runtime.trainer import Trainer


def _executorch() -> Trainer:
    from edge_runtime.executorch_trainer import ExecuTorchTrainer  # needs torch

    return ExecuTorchTrainer()


TRAINERS: dict[str, Callable[[], Trainer]] = {"executorch": _executorch}


def make_trainer(name: str) -> Trainer:
    """A new trainer; `FlexmoeError` if there is none of that name, or what it needs is missing."""
    if name not in TRAINERS:
        raise FlexmoeError(f"unknown trainer {name!r}; expected one of {', '.join(TRAINERS)}")
    return TRAINERS[name]()
