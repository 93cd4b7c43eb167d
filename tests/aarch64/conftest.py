"""Fixtures of the aarch64 wheel's tests; `make test-aarch64` names the folder that they need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.aarch64.remote import Remote, arm_python

collect_ignore_glob = [] if "FLEXMOE_AARCH64" in os.environ else ["test_*.py"]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def arm() -> Iterator[Remote]:
    """A process of the arm64 Python."""
    remote = Remote(arm_python())
    yield remote
    remote.close()
