"""Rates: which numbers training can take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.trainer import Rates, in_mib, misfits

RATES = Rates(learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("learning_rate", (1e-45, 1e-8, 1.0, 3e38), (-0.1, 0.0, 1e-60, 1e39, 1e300)),
        ("epsilon", (1e-45, 1e-8, 1.0), (-1e-8, 0.0, 1e-60, 1e300)),
        ("momentum", (0.0, 1e-60, 0.9, 1 - 1e-7), (-0.1, 1.0, 1 - 1e-12, 1e300)),
        ("beta1", (0.0, 0.9, 1 - 1e-7), (-0.1, 1.0, 1 - 1e-12)),
        ("beta2", (0.0, 0.999, 1 - 1e-7), (-0.1, 1.0, 0.9999999999)),
        ("weight_decay", (0.0, 1e-45, 0.1, 3e38), (-1e-60, -1.0, 1e-60, 1e39)),
        ("clip_norm", (0.0, 1e-45, 1.0, 3e38), (-1e-60, -1.0, 1e-60, 1e39)),
    ],
)
def test_what_float32_cannot_hold_is_named(
    name: str, good: tuple[float, ...], bad: tuple[float, ...]
) -> None:
    for value in good:
        assert misfits(dataclasses.replace(RATES, **{name: value})) == {}, value
    for value in (*bad, np.nan, np.inf, -np.inf):
        assert list(misfits(dataclasses.replace(RATES, **{name: value}))) == [name], value


def test_all_misfits_are_named() -> None:
    assert set(misfits(Rates(0.0, 1.0, -1.0, "adamw", 1.0, 1.0, 0.0, -1.0))) == {
        "learning_rate", "momentum", "weight_decay", "beta1", "beta2", "epsilon", "clip_norm"
    }  # fmt: skip


@given(st.floats(width=32, min_value=0, max_value=1, exclude_min=True, exclude_max=True))
def test_every_share_of_float32_fits(value: float) -> None:
    assert misfits(Rates(value, value, value, "adamw", value, value, value, value)) == {}


def test_figures_in_mib() -> None:
    assert [in_mib(size) for size in (0, 1 << 20, 1_300_000)] == ["0.0 MiB", "1.0 MiB", "1.2 MiB"]
