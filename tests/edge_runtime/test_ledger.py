"""The ledger adds up: against a plain list of bookings, by cuts, and with the socket."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.protocol.ledger import (
    CONNECTION,
    EVERYONE,
    NOBODY,
    Ledger,
    LedgerRow,
    Role,
    from_moved,
    to_moved,
    total_wire_bytes,
)
from edge_runtime.protocol.messages import Account, pack, unpack
from edge_runtime.protocol.topics import valid_name

_bookings = st.builds(
    lambda client, direction, kind, payload, header, messages: (
        client,
        direction,
        kind,
        payload,
        payload + header,
        messages,
    ),
    st.sampled_from(["device-1", "device-2", NOBODY, EVERYONE]),
    st.sampled_from(["up", "down"]),
    st.sampled_from(["control", "gate", "expert:1"]),
    st.integers(0, 300_000),
    st.integers(1, 60),
    st.integers(0, 1),
)
bookings_strategy = st.lists(_bookings, max_size=30)


def booked(bookings: list[Any]) -> Ledger:
    ledger = Ledger()
    for booking in bookings:
        ledger.book(*booking)
    return ledger


def plain_rows(bookings: list[Any]) -> list[LedgerRow]:
    """The oracle: one counter a column."""
    columns = _, wire, _ = Counter[Any](), Counter[Any](), Counter[Any]()
    for client, direction, kind, *values in bookings:
        for column, value in zip(columns, values, strict=True):
            column[client, direction, kind] += value
    return [
        LedgerRow(client, direction, kind, *(c[client, direction, kind] for c in columns))
        for client, direction, kind in sorted(wire)
    ]


@given(bookings_strategy)
def test_rows_and_totals(bookings: list[Any]) -> None:
    ledger = booked(bookings)
    assert ledger.rows() == plain_rows(bookings)
    assert ledger.uplink_bytes == sum(b[4] for b in bookings if b[1] == "up")
    assert ledger.downlink_bytes == sum(b[4] for b in bookings if b[1] == "down")


@given(st.lists(bookings_strategy, max_size=4))
def test_cuts_hold_what_was_booked_between_them(rounds: list[list[Any]]) -> None:
    ledger, total = Ledger(), Ledger()
    for bookings in rounds:
        for booking in bookings:
            ledger.book(*booking)
        cut = ledger.cut()
        assert cut == plain_rows(bookings)
        total.merge(cut)
    assert ledger.cut() == []
    assert total.rows() == ledger.rows()


@given(bookings_strategy, bookings_strategy)
def test_merge(one: list[Any], other: list[Any]) -> None:
    ledger = booked(one)
    ledger.merge(booked(other).rows())
    assert ledger.rows() == plain_rows(one + other)


def test_what_moves_leaves_nothing_behind() -> None:
    ledger = booked([("x", "up", "control", 50, 60, 1), ("d", "up", "control", 1, 2, 1)])
    ledger.move(LedgerRow("x", "up", "control", 50, 60, 1), "d")
    assert ledger.cut() == ledger.rows() == [LedgerRow("d", "up", "control", 51, 62, 2)]


def test_rows_cannot_be_changed() -> None:
    row = booked([("d", "up", "gate", 1, 2, 1)]).rows()[0]
    with pytest.raises(AttributeError):
        row.wire_bytes = 3  # type: ignore[misc]


@given(bookings_strategy, st.integers(0, 999), st.integers(0, 999))
def test_both_sides_agree(bookings: list[Any], up_bytes: int, down_bytes: int) -> None:
    """What one side sends the other receives: one table, whoever keeps it."""
    device, server = booked(bookings), booked(bookings)
    sent = device.uplink_bytes + up_bytes
    received = device.downlink_bytes + down_bytes
    assert device.reconcile(sent, received, "device") == 0
    assert server.reconcile(received, sent, "server") == 0
    assert device.rows() == server.rows()
    assert (device.uplink_bytes, device.downlink_bytes) == (sent, received)
    extra = [row for row in device.rows() if row.kind == CONNECTION]
    assert total_wire_bytes(extra, "up") == up_bytes
    assert total_wire_bytes(extra, "down") == down_bytes
    assert all((row.client, row.payload_bytes, row.messages) == (NOBODY, 0, 0) for row in extra)


@pytest.mark.parametrize("role", ["server", "device"])
def test_the_remainder_is_set_and_not_added(role: Role) -> None:
    ledger = Ledger()
    assert ledger.reconcile(100, 100, role) == 0
    # 60 of those bytes were a message that nobody had booked yet.
    ledger.book("d", "up", "control", 50, 60)
    assert ledger.reconcile(100, 100, role) == 0
    assert ledger.rows() == [
        LedgerRow("", "down", CONNECTION, 0, 100, 0),
        LedgerRow("", "up", CONNECTION, 0, 40, 0),
        LedgerRow("d", "up", "control", 50, 60, 1),
    ]


def test_booked_but_not_sent_yet() -> None:
    ledger = Ledger()
    ledger.book("d", "up", "control", 50, 60)
    assert ledger.reconcile(45, 0, "device") == 15
    assert ledger.rows() == [LedgerRow("d", "up", "control", 50, 60, 1)]
    assert ledger.reconcile(64, 0, "device") == 0
    assert ledger.uplink_bytes == 64


steps = st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans())


@given(st.lists(steps, max_size=20))
def test_reconciling_too_early_heals(steps: list[tuple[int, int, bool]]) -> None:
    """Cuts in between are never negative, and with the last booking all agrees again."""
    ledger, cuts, moved, booked_bytes = Ledger(), Ledger(), 0, 0
    for socket_bytes, book_bytes, cut in steps:
        moved += socket_bytes
        book_bytes = min(book_bytes, moved - booked_bytes)
        booked_bytes += book_bytes
        ledger.book("d", "up", "control", 0, book_bytes)
        excess = ledger.reconcile(moved, 0, "device")
        assert ledger.uplink_bytes == moved + excess
        if cut:
            rows = ledger.cut()
            assert all(row.wire_bytes >= 0 for row in rows)
            cuts.merge(rows)
    connection = sum(row.wire_bytes for row in ledger.rows() if row.kind == CONNECTION)
    assert ledger.reconcile(booked_bytes + connection, 0, "device") == 0
    cuts.merge(ledger.cut())
    assert cuts.rows() == ledger.rows()


@pytest.mark.parametrize("counts", [(-1, 5, 1), (6, 5, 1), (0, -1, 1), (0, 5, -1)])
def test_impossible_bookings(counts: tuple[int, int, int]) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="cannot book"):
        ledger.book("d", "up", "gate", *counts)
    assert ledger.rows() == []


def test_two_threads_lose_nothing() -> None:
    ledger = Ledger()

    def work() -> None:
        for _ in range(5_000):
            ledger.book("d", "up", "gate", 1, 2)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    cut_bytes = 0
    while any(thread.is_alive() for thread in threads):
        cut_bytes += total_wire_bytes(ledger.cut(), "up")
    assert cut_bytes + total_wire_bytes(ledger.cut(), "up") == ledger.uplink_bytes == 30_000


@given(bookings_strategy)
def test_what_a_device_tells_is_what_it_booked(bookings: list[Any]) -> None:
    """Whatever names its rows have: on its own link all of it was the device's."""
    told = unpack(pack(Account("s", to_moved(booked(bookings).rows()))))
    assert isinstance(told, Account)
    own = [("ann", *rest) for _, *rest in bookings]
    assert from_moved("ann", told.account) == booked(own).rows()
    kinds = [moved.kind for moved in told.account]
    assert kinds == sorted({row.kind for row in booked(own).rows()})


@given(st.lists(bookings_strategy, max_size=4))
def test_accounts_add_up_to_the_ledger(rounds: list[list[Any]]) -> None:
    device, server = Ledger(), Ledger()
    for bookings in rounds:
        for _, *rest in bookings:
            device.book("ann", *rest)
        server.merge(from_moved("ann", to_moved(device.cut())))
    assert server.rows() == device.rows()


def test_a_kind_that_is_told_twice_counts_twice() -> None:
    [moved] = to_moved([LedgerRow("ann", "up", "gate", 10, 12, 1)])
    assert from_moved("ann", [moved, moved]) == [LedgerRow("ann", "up", "gate", 20, 24, 2)]


def test_no_client_can_be_called_nobody_or_everyone() -> None:
    assert not valid_name(NOBODY) and not valid_name(EVERYONE)
