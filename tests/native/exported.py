"""Exported programs for the native trainer's tests; an export takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from edge_runtime.layout import ROLES
from model_export.cache import ProgramCache
from tests.model_export.eager import BATCH, SPECS, K


class Pair(NamedTuple):
    """The program files of one model."""

    training: bytes
    evaluation: bytes


Export = Callable[..., Pair]


def make_export(factory: pytest.TempPathFactory) -> Export:
    """`(model, kernels="native", batch=BATCH[model])` to its programs for 2 of 8 experts."""
    # The folder is that of the other packages' tests: one export serves all.
    cache = ProgramCache(factory.getbasetemp() / "programs")

    def export(name: str, kernels: str = "native", batch: int | None = None) -> Pair:
        size = batch or BATCH[name]
        return Pair(*(cache.get(SPECS[name], K, size, role, kernels).data for role in ROLES))

    return export
