"""Exported programs that the tests share: an export takes seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from edge_runtime.executorch_trainer import ExecuTorchTrainer
from model_export.cache import ProgramCache
from model_export.program import Program
from tests.model_export.eager import BATCH, SPECS, K

# On a busy machine torch's threads wait for each other far longer than these small models take.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Program]:
    """Gives the program of (model, role, kernels), exported at its first use in the session."""
    # The folder is that of tests/edge_runtime/conftest.py: one export serves both.
    cache = ProgramCache(tmp_path_factory.getbasetemp() / "programs")

    def get(name: str, role: str, kernels: str = "stock") -> Program:
        return cache.get(SPECS[name], K, BATCH[name], role, kernels)

    return get


@pytest.fixture(scope="session")
def trainer_of(exported: Callable[[str, str], Program]) -> Callable[[str], ExecuTorchTrainer]:
    """Gives the session's trainer of a model; assign experts and weights before use."""
    trainers: dict[str, ExecuTorchTrainer] = {}

    def get(name: str) -> ExecuTorchTrainer:
        if name not in trainers:
            trainers[name] = ExecuTorchTrainer()
            trainers[name].load(exported(name, "train").data, exported(name, "evaluate").data)
        return trainers[name]

    return get
