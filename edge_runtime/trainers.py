"""Trainers by name."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from edge_runtime.errors import FlexmoeError
from edge_runtime.trainer import Trainer

TRAINERS = {"executorch": ("edge_runtime.executorch_trainer", "ExecuTorchTrainer")}
"""Names, and the module and class behind each; modules are imported on demand: some need torch."""


def make_trainer(name: str) -> Trainer:
    """A new trainer; `FlexmoeError` if there is none of that name, or what it needs is missing."""
    if name not in TRAINERS:
        raise FlexmoeError(f"unknown trainer {name!r}; expected one of {', '.join(TRAINERS)}")
    module, kind = TRAINERS[name]
    return cast(Trainer, getattr(import_module(module), kind)())
