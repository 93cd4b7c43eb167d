"""How many experts fit a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.capacity import Cap, Capacity, experts_that_fit
from edge_runtime.errors import ConfigError, FleetError


def need_bytes(k: int) -> int:
    return 1000 + 500 * k


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (10_000, Capacity(4, "asked")),
        (3000, Capacity(4, "asked")),
        (2999, Capacity(3, "memory")),
        (1500, Capacity(1, "memory")),
    ],
)
def test_memory_binds_below_what_is_asked(available: int, expected: Capacity) -> None:
    assert experts_that_fit(4, available, need_bytes) == expected


@pytest.mark.parametrize("available", [1499, 0, -1])
def test_a_device_too_small_for_one_expert_is_named_with_the_figures(available: int) -> None:
    with pytest.raises(FleetError, match=rf"needs 1500 bytes.* has {available};"):
        experts_that_fit(4, available, need_bytes)


def test_what_a_device_found_out_binds_until_it_has_more_memory() -> None:
    cap = Cap(2, needed_bytes=5000, memory_available_bytes=4000)
    assert experts_that_fit(4, 4000, need_bytes, cap) == Capacity(2, "memory")
    assert experts_that_fit(2, 4000, need_bytes, cap) == Capacity(2, "asked")
    assert experts_that_fit(4, 1500, need_bytes, cap) == Capacity(1, "memory")
    assert experts_that_fit(4, 4001, need_bytes, cap) == Capacity(4, "asked")


def test_a_device_that_found_no_room_for_one_expert_is_told_so() -> None:
    cap = Cap(0, needed_bytes=5000, memory_available_bytes=4000)
    with pytest.raises(FleetError, match="one expert needs 5000 bytes of memory, more than"):
        experts_that_fit(4, 4000, need_bytes, cap)
    assert experts_that_fit(4, 4001, need_bytes, cap) == Capacity(4, "asked")


def test_asking_for_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="not 0"):
        experts_that_fit(0, 10_000, need_bytes)


@given(
    st.integers(1, 16),
    st.integers(0, 100),
    st.lists(st.integers(0, 20), min_size=16, max_size=16).map(sorted),
)
def test_the_answer_is_the_largest_that_fits(asked: int, available: int, need: list[int]) -> None:
    fitting = [k for k in range(1, asked + 1) if need[k - 1] <= available]
    if not fitting:
        with pytest.raises(FleetError):
            experts_that_fit(asked, available, lambda k: need[k - 1])
        return
    capacity = experts_that_fit(asked, available, lambda k: need[k - 1])
    assert capacity.k == max(fitting)
    assert capacity.limit == ("asked" if capacity.k == asked else "memory")
