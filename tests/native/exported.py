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
    """`(model, kernels="native", batch=BATCH[model], balance=0)` to programs for 2 of 8 experts.

    `balance` is the coefficient of the balance term.
    """
    # The folder is that of the other packages' tests: one export serves all.
    cache = ProgramCache(factory.getbasetemp() / "programs")

    def export(
        name: str, kernels: str = "native", batch: int | None = None, balance: float = 0.0
    ) -> Pair:
        size = batch or BATCH[name]
        programs = (
            cache.get(SPECS[name], K, size, role, kernels, balance=balance) for role in ROLES
        )
        return Pair(*(program.data for program in programs))

    return export
