"""Counts that agree, differ, or cannot be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.books.agreement import Agreement, Comparison, compare
from broker_server.record import BytesRow, RoundRecord
from tests.broker_server.sample_records import round_record

NAMES = ("device-00", "device-01")
PLANNED = dict.fromkeys(NAMES, 2 * 10_000)
"""Two rounds, each with frames of 1000 to 4000 payload bytes."""


@dataclass(frozen=True)
class Broker:
    received_bytes: int
    sent_bytes: int


def rounds() -> list[RoundRecord]:
    return [round_record(1, NAMES), round_record(2, NAMES)]


def broker(records: list[RoundRecord]) -> Broker:
    """A broker that counts right: what others send is what it receives."""
    return Broker(
        sum(record.egress_bytes + record.uplink_bytes for record in records),
        sum(record.ingress_bytes + record.downlink_bytes for record in records),
    )


def by_name(agreement: Agreement) -> dict[str, Comparison]:
    return {comparison.name: comparison for comparison in agreement}


def test_counts_that_are_right_agree_to_the_byte() -> None:
    found = compare(rounds(), NAMES, broker(rounds()), PLANNED)
    assert [comparison.name for comparison in found] == [
        "broker in", "broker out", "up, payload", "up, packets", "down, frames",
    ]  # fmt: skip
    assert all(c.agrees and c.difference_bytes == 0 and c.counted_bytes > 0 for c in found)
    # Each device sends 15000 payload bytes a round, in 10 packets with 25 bytes around, and
    # acknowledges as many.
    figures = {name: c.counted_bytes for name, c in by_name(found).items()}
    assert figures["up, payload"] == 2 * 2 * 15_000
    assert figures["up, packets"] == 2 * 2 * (15_000 + 10 * 25 + 10 * 4)
    assert figures["down, frames"] == 2 * 2 * 10_000


@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.sampled_from([(0, 0), (1000, 999), (1000, 1001), (1000, 998), (10**9, 10**9 - 10**6)]),
)
def test_within_a_thousandth_of_the_larger_counts_agree(
    counted: int, expected: int, edge: tuple[int, int]
) -> None:
    for one, other in ((counted, expected), edge):
        comparison = Comparison("x", "a", "b", one, other)
        assert comparison.agrees == (1000 * abs(one - other) <= max(one, other))
        assert comparison.difference_bytes == one - other


@pytest.mark.parametrize(
    ("side", "direction", "kind", "differ"),
    [
        ("server", "up", "gate", {"up, payload", "up, packets"}),
        ("device", "up", "gate", {"up, payload", "up, packets", "broker in"}),
        ("device", "up", "connection", {"broker in"}),
        ("device", "down", "expert:1", {"down, frames", "broker out"}),
        ("device", "down", "control", {"broker out"}),
        ("server", "down", "expert:1", {"down, frames"}),
    ],
)
def test_a_count_that_is_off_shows_where_it_is_compared(
    side: str, direction: str, kind: str, differ: set[str]
) -> None:
    """9000 bytes that one side counts and no other."""
    records = rounds()
    right = broker(records)
    rows = [
        replace(row, payload_bytes=row.payload_bytes + 9000, wire_bytes=row.wire_bytes + 9000)
        if (row.side, row.client, row.direction, row.kind) == (side, NAMES[0], direction, kind)
        else row
        for row in records[0].bytes
    ]
    assert rows != records[0].bytes
    found = compare([replace(records[0], bytes=rows), records[1]], NAMES, right, PLANNED)
    assert {comparison.name for comparison in found if not comparison.agrees} == differ


def test_a_broker_without_counters_and_a_run_without_devices() -> None:
    found = by_name(compare(rounds(), NAMES, None, PLANNED))
    assert {name for name, c in found.items() if c.agrees is None} == {"broker in", "broker out"}
    assert found["broker in"].why == "the broker tells no counters"
    assert math.isnan(found["broker in"].difference)
    assert all(comparison.agrees for comparison in compare([], [], Broker(0, 0), {}))


def test_a_device_that_vanished_is_left_out_where_that_can_be() -> None:
    found = by_name(compare(rounds(), NAMES[:1], broker(rounds()), PLANNED))
    assert found["broker out"].why == "no last account of device-01"
    assert found["broker out"].agrees is None
    assert found["up, payload"].agrees and found["up, payload"].counted_bytes == 2 * 15_000
    assert found["down, frames"].agrees
    nobody = compare(rounds(), [], broker(rounds()), PLANNED)
    assert {c.why for c in nobody} == {"no last account of device-00, device-01"}
    names = tuple(f"d{number}" for number in range(9))
    crowd = compare([round_record(1, names)], [], broker(rounds()), {})
    assert crowd[0].why == "no last account of d0, d1, d2 and 6 more"


def test_a_device_whose_frames_are_not_known_is_left_out_of_them() -> None:
    """It was late: it took frames that nobody knows of."""
    records = rounds()
    late = [
        replace(row, payload_bytes=row.payload_bytes + 9000, wire_bytes=row.wire_bytes + 9000)
        if (row.side, row.client, row.direction, row.kind)
        == ("device", NAMES[1], "down", "expert:1")
        else row
        for row in records[1].bytes
    ]
    records[1] = replace(records[1], bytes=late)
    counts = broker(rounds())
    counts = replace(counts, sent_bytes=counts.sent_bytes + 9000)
    found = by_name(compare(records, NAMES, counts, {NAMES[0]: PLANNED[NAMES[0]]}))
    assert all(comparison.agrees for comparison in found.values())
    frames = found["down, frames"]
    assert frames.expected == "server planned, for 1 of 2 devices"
    assert frames.counted_bytes == 2 * 10_000
    nobody = by_name(compare(records, NAMES, counts, {}))
    assert nobody.pop("down, frames").why == "no device reported all work it was given"
    assert all(comparison.agrees for comparison in nobody.values())


@pytest.mark.parametrize(("more", "why"), [(9000, "others use this broker"), (-9000, "")])
def test_others_may_use_a_broker_that_is_not_ours(more: int, why: str) -> None:
    """It may count more than we do, never less."""
    right = broker(rounds())
    noisy = Broker(right.received_bytes + more, right.sent_bytes)
    shared = by_name(compare(rounds(), NAMES, noisy, PLANNED, shared=True))
    assert (shared["broker in"].why, shared["broker out"].why) == (why, "")
    assert shared["broker in"].agrees is (None if why else False)
    assert shared["broker out"].agrees
    assert by_name(compare(rounds(), NAMES, noisy, PLANNED))["broker in"].agrees is False


def test_a_resumed_run_is_not_compared() -> None:
    found = compare(rounds(), NAMES, broker(rounds()), PLANNED, resumed=True)
    assert {comparison.agrees for comparison in found} == {None}
    assert "resumed" in found[-1].why


def test_strangers_are_no_devices() -> None:
    stranger = BytesRow("server", "(unknown)", "up", "control", 7, 30, 1)
    records = [replace(record, bytes=[*record.bytes, stranger]) for record in rounds()]
    found = by_name(compare(records, NAMES, broker(rounds()), PLANNED))
    assert all(comparison.agrees for comparison in found.values())
