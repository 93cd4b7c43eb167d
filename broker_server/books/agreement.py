"""The counts of a run's bytes, compared: the server's, the devices', the broker's.

Each was made on its own: the server's ledger and every device's account from their own sockets, the
broker's counters by the broker. The comparison is over the whole life of one server.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from broker_server.books.link_bytes import NO_DEVICE, link_rows
from broker_server.record import BytesRow, RoundRecord
from edge_runtime.protocol.kinds import MESSAGE_KIND
from edge_runtime.protocol.ledger import CONNECTION, Direction

TOLERANCE = 0.001
"""Counts that differ by no more than this share of the larger one agree."""


@dataclass(frozen=True)
class Comparison:
    """Two counts of the same bytes; `why` says what kept them from being compared.

    `name` is short, `counted` and `expected` say where the two figures are from.
    """

    name: str
    counted: str
    expected: str
    counted_bytes: int = 0
    expected_bytes: int = 0
    why: str = ""

    @property
    def difference_bytes(self) -> int:
        """What was counted beyond what was expected."""
        return self.counted_bytes - self.expected_bytes

    @property
    def difference(self) -> float:
        """The difference as a share of the larger figure; NaN where there is none."""
        if self.why:
            return math.nan
        larger = max(self.counted_bytes, self.expected_bytes)
        return abs(self.difference_bytes) / larger if larger else 0.0

    @property
    def agrees(self) -> bool | None:
        """None where the two cannot be compared."""
        return None if self.why else self.difference <= TOLERANCE


Agreement = Sequence[Comparison]


class Counted(Protocol):
    """What the broker says that all its connections moved during the run, bytes."""

    @property
    def received_bytes(self) -> int: ...

    @property
    def sent_bytes(self) -> int: ...


def compare(
    records: Sequence[RoundRecord],
    told: Collection[str],
    counted: Counted | None,
    planned: Mapping[str, int],
    resumed: bool = False,
    shared: bool = False,
    lost: Collection[str] = (),
) -> Agreement:
    """The counts of `records`, all rounds of one server, the last with what the run's end moved.

    `told` are the clients whose last account came. `planned` says how many payload bytes of frames
    each client took, where that is known. `resumed`: devices may have been counting before this
    server was. `shared`: others may use the broker, so that it may count more than we do. `lost`:
    clients of which a process ended without a last account.
    """
    rows = [row for record in records for row in record.bytes]
    links = [row for record in records for row in link_rows(record.bytes)]
    own = [row for row in rows if row.side == "device"]
    ours = [row for row in rows if row.side == "server"]
    clients = ({row.client for row in rows} | set(lost)) - NO_DEVICE
    # A device that says that it moved nothing says nothing.
    known = clients & set(told) & {row.client for row in own if row.wire_bytes} - set(lost)
    silent = sorted(clients - known)
    sent = sum(record.egress_bytes for record in records) + _sum(own, "up", known)
    received = sum(record.ingress_bytes for record in records) + _sum(own, "down", known)
    why = "the server was resumed: devices may have counted before it did" if resumed else ""
    broker_why = "" if counted else "the broker tells no counters"
    broker_why = broker_why or why or _missing(silent)
    why = why or ("" if known or not clients else _missing(silent))
    sure = known & planned.keys()
    some = "" if sure == known else f", for {len(sure)} of {len(known)} devices"
    frames_why = why or ("" if sure or not known else "no device reported all work it was given")
    # A device's connection ends at the broker: the server cannot know what it takes.
    up, frames = (CONNECTION,), (CONNECTION, MESSAGE_KIND)
    brokers = [
        Comparison(
            "broker in",
            "broker received",
            "server and devices sent",
            counted.received_bytes if counted else 0,
            sent,
            broker_why,
        ),
        Comparison(
            "broker out",
            "broker sent",
            "server and devices received",
            counted.sent_bytes if counted else 0,
            received,
            broker_why,
        ),
    ]
    return [
        *(_not_of_others(comparison) if shared else comparison for comparison in brokers),
        Comparison(
            "up, payload",
            "server received",
            "devices sent",
            _sum(links, "up", known, up, "payload"),
            _sum(own, "up", known, up, "payload"),
            why,
        ),
        Comparison(
            "up, packets",
            "server received",
            "devices sent",
            _sum(links, "up", known, up),
            _sum(own, "up", known, up),
            why,
        ),
        Comparison(
            "down, frames",
            "devices received",
            f"server planned{some}",
            _sum(own, "down", sure, frames, "payload"),
            _sum(ours, "down", sure, frames, "payload") + sum(planned[c] for c in sure),
            frames_why,
        ),
    ]


def _not_of_others(comparison: Comparison) -> Comparison:
    """A broker's count that is above ours may be right: only one below cannot be."""
    if comparison.agrees is False and comparison.difference_bytes > 0:
        return replace(comparison, why="others use this broker")
    return comparison


def _missing(silent: Sequence[str]) -> str:
    more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
    return f"no last account of {', '.join(silent[:3])}{more}" if silent else ""


def _sum(
    rows: Iterable[BytesRow],
    direction: Direction,
    clients: Collection[str],
    but: Collection[str] = (),
    layer: str = "wire",
) -> int:
    """The bytes of these clients' rows in one direction, without some kinds."""
    return sum(
        row.payload_bytes if layer == "payload" else row.wire_bytes
        for row in rows
        if row.direction == direction and row.client in clients and row.kind not in but
    )
