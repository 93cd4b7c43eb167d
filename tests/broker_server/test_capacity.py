"""How many experts fit a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.capacity import Cap, Capacity, experts_that_fit
from edge_runtime.errors import ConfigError, FleetError
from edge_runtime.trainer import MIB


def need_bytes(k: int) -> int:
    return 1000 + 500 * k


def cap(k: int, needed: int, available: int) -> Cap:
    return Cap(k, needed, available, "native")


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
    with pytest.raises(FleetError, match=r"training 1 expert needs 7\.5 MiB.* has 0\.0 MiB;"):
        experts_that_fit(4, available, lambda k: 5000 * need_bytes(k) + MIB // 3)


def test_what_memory_lacks_is_said_with_its_figures() -> None:
    wide = [k * MIB for k in (0, 1, 2, 3, 4)]
    assert (
        experts_that_fit(4, 2 * MIB, lambda k: wide[k]).figures == "3 need 3.0 MiB, it has 2.0 MiB"
    )
    found = cap(3, needed=6 * MIB, available=3 * MIB)
    told = experts_that_fit(4, 3 * MIB, lambda k: wide[k], found).figures
    assert told == "2 need 4.0 MiB, it has 3.0 MiB"
    died = cap(3, needed=2 * MIB, available=5 * MIB)
    told = experts_that_fit(4, 5 * MIB, lambda k: wide[k], died).figures
    assert told == "it ran out of memory with 3 experts"


def test_the_estimate_is_scaled_to_what_a_device_needs() -> None:
    """It asks for 8 and holds 2: one lost round says so."""
    found = cap(8, needed=2 * need_bytes(8), available=4100)
    assert experts_that_fit(8, 4100, need_bytes, found) == Capacity(2, "memory")
    assert experts_that_fit(8, 3999, need_bytes, found) == Capacity(1, "memory")
    assert experts_that_fit(2, 4100, need_bytes, found) == Capacity(2, "asked")
    assert experts_that_fit(8, 5000, need_bytes, found) == Capacity(3, "memory")
    assert experts_that_fit(8, 9999, need_bytes, found) == Capacity(7, "memory")
    assert experts_that_fit(8, 10_000, need_bytes, found) == Capacity(8, "asked")


@given(st.integers(1, 16), st.integers(1, 10**9), st.integers(1, 10**9))
def test_what_a_device_says_to_need_is_exact(k: int, needed: int, less: int) -> None:
    found = cap(k, needed, available=max(0, needed - less))
    assert experts_that_fit(k, max(needed, need_bytes(k)), need_bytes, found).k == k
    if needed > need_bytes(k):
        with pytest.raises(FleetError):
            experts_that_fit(k, needed - 1, need_bytes, found, least_k=k)


def test_a_device_that_needs_less_than_the_estimate_is_not_given_more() -> None:
    found = cap(4, needed=2000, available=1900)
    assert experts_that_fit(4, 2500, need_bytes, found) == Capacity(3, "memory")


def test_an_estimate_alone_does_not_shut_a_device_out() -> None:
    found = cap(4, needed=10 * need_bytes(4), available=2000)
    assert experts_that_fit(4, 2000, need_bytes, found) == Capacity(1, "memory")
    with pytest.raises(FleetError, match="training 1 expert needs"):
        experts_that_fit(4, 2000, need_bytes, cap(1, 2001, available=2000))
    with pytest.raises(FleetError, match="training 1 expert needs"):
        experts_that_fit(4, 1499, need_bytes, found)


@pytest.mark.parametrize("needed", [3000, 4000])
def test_memory_that_was_there_and_did_not_suffice(needed: int) -> None:
    """What is free differs a little each time that a device starts: a byte more is no reason."""
    found = cap(4, needed, available=4000)
    for available in (4000, 4001, 4900):
        assert experts_that_fit(4, available, need_bytes, found) == Capacity(3, "memory")
        assert experts_that_fit(3, available, need_bytes, found) == Capacity(3, "asked")
    assert experts_that_fit(4, 5000, need_bytes, found) == Capacity(4, "asked")


def test_a_device_that_found_no_room_for_one_expert_is_told_so() -> None:
    wide = 4 * MIB
    with pytest.raises(FleetError, match=r"training 1 expert needs 5\.0 MiB.* has 4\.0 MiB;"):
        experts_that_fit(4, wide, need_bytes, cap(1, 5 * MIB, wide))
    with pytest.raises(FleetError, match=r"ran out of memory with 1 expert, which needs 3\.0 MiB"):
        experts_that_fit(4, wide, need_bytes, cap(1, 3 * MIB, wide))


def test_where_fewer_are_of_no_use() -> None:
    assert experts_that_fit(8, 5000, need_bytes, least_k=8) == Capacity(8, "asked")
    with pytest.raises(FleetError, match="training all 8 experts needs"):
        experts_that_fit(8, 4999, need_bytes, least_k=8)
    with pytest.raises(FleetError, match="ran out of memory with all 8 experts"):
        experts_that_fit(8, 9000, need_bytes, cap(8, 5000, 8000), least_k=8)


def test_few_needs_are_asked_for() -> None:
    """Each may take an export."""
    asked: set[int] = set()

    def need(k: int) -> int:
        asked.add(k)
        return need_bytes(k)

    assert experts_that_fit(64, 3000, need) == Capacity(4, "memory")
    assert len(asked) <= 8


@given(st.integers(1, 16), st.integers(0, 100), st.integers(0, 100), st.integers(1, 16), st.data())
def test_a_device_that_fails_is_always_given_fewer(
    asked: int, available: int, extra: int, holds: int, data: st.DataObject
) -> None:
    """Rounds that begin again end: whatever it says to need, k falls each time that it fails."""
    found, before = None, asked + 1
    try:
        while True:
            k = experts_that_fit(asked, available, lambda k: 3 * k, found).k
            assert k < before
            if k <= holds:
                break
            found, before = cap(k, data.draw(st.integers(1, 120)), available), k
    except FleetError:
        assert found is not None or available < 3


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
