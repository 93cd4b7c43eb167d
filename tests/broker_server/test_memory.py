"""What a device's measured memory leaves for training."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.capacity import Capacity
from broker_server.memory import Peak, killed_by
from edge_runtime.trainer import MIB

ASKED = Capacity(8, "asked")
sizes = st.floats(0.1, 500.0)


def told(rss_mib: float, limit_mib: float = 64.0) -> dict[str, float]:
    return {"peak_rss_mib": rss_mib, "memory_limit_mib": limit_mib}


@given(sizes, sizes, st.integers(1, 8), sizes, st.floats(1.0, 2000.0))
def test_the_most_that_fit_beside_what_the_process_takes(
    fixed: float, each: float, measured_k: int, beside: float, limit: float
) -> None:
    def need(k: int) -> int:
        return round((fixed + k * each) * MIB)

    peak = Peak(measured_k, beside + need(measured_k) / MIB, limit)
    fit = [k for k in range(1, 9) if need(k) <= (limit - beside) * MIB + 1e-3]
    got = peak.allows(ASKED, need)
    assert got.k == max(fit, default=1)  # one is always tried
    assert got == (ASKED if got.k == 8 else Capacity(got.k, "memory"))


def test_it_says_what_was_too_much() -> None:
    peak = Peak(3, 66.0, 64.0)  # 20 MiB of it for training: 46 beside it
    got = peak.allows(Capacity(4, "memory", "as its hello told"), lambda k: (5 + 5 * k) * MIB)
    assert got == Capacity(2, "memory")
    assert got.figures == "3 need 20 MiB, its limit of 64 MiB leaves 18"
    assert Peak(3, 90.0, 64.0).allows(got, lambda k: 5 * k * MIB).figures == (
        "2 need 10 MiB, its limit of 64 MiB leaves 0"
    )


def test_only_programs_that_may_be_used_are_asked_for() -> None:
    """To tell what one needs may take an export."""
    asked: list[int] = []

    def need(k: int) -> int:
        asked.append(k)
        return k * MIB

    assert Peak(2, 10.0, 64.0).allows(ASKED, need) is ASKED
    assert set(asked) == {2, 8}
    one = Capacity(1, "asked")
    assert Peak(2, 500.0, 64.0).allows(one, need) is one


def test_the_peak_is_that_of_the_most_experts_that_the_process_trained() -> None:
    """It never falls while the process lives: with fewer experts it says nothing of these."""
    peak = Peak.after(None, told(40.0), 3)
    assert peak == Peak(3, 40.0, 64.0)
    assert Peak.after(peak, told(40.0), 2) == peak
    assert Peak.after(peak, told(41.0, 48.0), 2) == Peak(3, 41.0, 48.0)
    assert Peak.after(peak, told(45.0), 4) == Peak(4, 45.0, 64.0)
    assert Peak.after(peak, told(39.0), 2) == Peak(2, 39.0, 64.0)  # another process


def test_what_a_process_survived_with_is_not_too_much() -> None:
    """Its own peak may be above the limit, by pages that others pay for; its group's never is."""
    survived = Peak.after(None, {**told(70.0), "memory_peak_mib": 64.0}, 3)
    assert survived == Peak(3, 64.0, 64.0)
    assert survived.allows(Capacity(4, "asked"), lambda k: 5 * k * MIB).k == 3
    assert Peak.after(None, {**told(50.0), "memory_peak_mib": 64.0}, 3) == Peak(3, 50.0, 64.0)


@pytest.mark.parametrize(
    "odd",
    [{}, {"peak_rss_mib": 40.0}, {"memory_limit_mib": 64.0}]
    + [told(value) for value in (0.0, -1.0, math.inf, math.nan)]
    + [told(40.0, value) for value in (0.0, -1.0, math.inf, math.nan)],
)
def test_without_a_limit_nothing_is_known(odd: dict[str, float]) -> None:
    assert Peak.after(Peak(3, 40.0, 64.0), odd, 2) is None


@pytest.mark.parametrize(
    ("limit_mib", "k", "said"),
    [
        (48.0, 3, "killed by its memory limit of 48 MiB with 3 experts"),
        (48.26, 1, "killed by its memory limit of 48.3 MiB with 1 expert"),
        (1048576.0, 1, "killed by its memory limit of 1048576 MiB with 1 expert"),
        (None, 2, "killed by its memory limit with 2 experts"),
    ],
)
def test_what_is_said_of_a_kill(limit_mib: float | None, k: int, said: str) -> None:
    assert killed_by(limit_mib, k) == said
