"""Exported programs that the device's tests share: an export takes seconds."""

from __future__ import annotations

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
def digits(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The digits model's programs of stock kernels, for 2 of 8 experts and a batch of 16."""
    # The folder is that of tests/model_export/conftest.py: one export serves both.
    cache = ProgramCache(tmp_path_factory.getbasetemp() / "programs")
    pair = (cache.get(SPECS["digits"], K, BATCH["digits"], role, "stock") for role in ROLES)
    return Programs(*(program.data for program in pair))
