"""Exported programs that the device's tests share: an export takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from edge_runtime.layout import ROLES
from model_export.cache import ProgramCache
from tests.model_export.eager import BATCH, SPECS, K

# On a busy machine torch's threads wait for each other far longer than these small models take.
torch.set_num_threads(1)


class Programs(NamedTuple):
    """The bytes of a training and an evaluation program of one model."""

    training: bytes
    evaluation: bytes


@pytest.fixture(scope="session")
def export_digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Programs]:
    """Gives the digits model's programs for 2 of 8 experts and a batch size, exported once."""
    # The folder is that of tests/model_export/conftest.py: one export serves both.
    cache = ProgramCache(tmp_path_factory.getbasetemp() / "programs")

    def export(batch: int) -> Programs:
        pair = (cache.get(SPECS["digits"], K, batch, role, "stock") for role in ROLES)
        return Programs(*(program.data for program in pair))

    return export


@pytest.fixture(scope="session")
def digits(export_digits: Callable[[int], Programs]) -> Programs:
    """The digits model's programs, for 2 of 8 experts and a batch of 16."""
    return export_digits(BATCH["digits"])
