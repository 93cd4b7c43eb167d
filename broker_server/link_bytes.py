"""What the devices' links carried, from the rows of both sides.

Down is each device's own account: only a device knows which frames it took. Up is what the server
received from it, as an account comes with the report, before the update travels: the account of a
round has the update of the one before. To that come the packets that only the device's account
has: its connection's (subscriptions, pings), and the acknowledgements of what it received. Over a
whole run this is what the devices' accounts say, if nothing was lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker_server.record import BytesRow, RoundRecord
from edge_runtime.ledger import CONNECTION, EVERYONE, NOBODY, Direction
from edge_runtime.mailbox import UNKNOWN
from edge_runtime.packet import PUBACK_BYTES

NO_DEVICE = frozenset({NOBODY, EVERYONE, UNKNOWN})
"""Clients in the server's rows that are no device."""


@dataclass(frozen=True)
class LinkRound:
    """What a device's link carried, bytes: in a round, or on average."""

    up_bytes: float
    down_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.up_bytes + self.down_bytes


def link_rows(rows: Iterable[BytesRow]) -> list[BytesRow]:
    """One round's rows as the devices' links carried them, by client, direction and kind."""
    found: dict[tuple[str, Direction, str], list[int]] = defaultdict(lambda: [0, 0, 0])

    def add(client: str, direction: Direction, kind: str, *more: int) -> None:
        had = found[client, direction, kind]
        found[client, direction, kind] = [a + b for a, b in zip(had, more, strict=True)]

    for row in rows:
        if row.client in NO_DEVICE:
            continue
        own, acks = row.side == "device", PUBACK_BYTES * row.messages
        if (row.direction == "down") == own or (own and row.kind == CONNECTION):
            figures = (row.payload_bytes, row.wire_bytes, row.messages)
            add(row.client, row.direction, row.kind, *figures)
        # At the server, `up` has the broker's acknowledgements of what it sent down, which no
        # device sent. A device acknowledges what it received.
        if row.direction == "down":
            add(row.client, "up", row.kind, 0, acks if own else -acks, 0)
    return sorted(
        BytesRow("device", *key, *figures) for key, figures in found.items() if any(figures)
    )


def total_bytes(rows: Iterable[BytesRow], direction: Direction) -> int:
    """The wire bytes of these rows in one direction."""
    return sum(row.wire_bytes for row in rows if row.direction == direction)


def carried(rows: Iterable[BytesRow]) -> dict[str, LinkRound]:
    """What each device's link carried in a round, from the round's rows."""
    groups = grouped(link_rows(rows), "client")
    return {
        client: LinkRound(total_bytes(mine, "up"), total_bytes(mine, "down"))
        for client, mine in groups.items()
    }


def mean_rounds(records: Sequence[RoundRecord]) -> dict[str, LinkRound]:
    """What each device's link carried in a round on average, over those that it had work in."""
    rounds: dict[str, int] = defaultdict(int)
    for record in records:
        for client in record.clients:
            rounds[client.client] += 1
    groups = grouped(all_link_rows(records), "client")
    return {
        client: LinkRound(
            total_bytes(groups.get(client, ()), "up") / count,
            total_bytes(groups.get(client, ()), "down") / count,
        )
        for client, count in sorted(rounds.items())
    }


def grouped(rows: Iterable[BytesRow], attribute: str) -> dict[str, list[BytesRow]]:
    """The rows by their `client` or `kind`, in its order."""
    groups: dict[str, list[BytesRow]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, attribute)].append(row)
    return dict(sorted(groups.items()))


def sums(rows: Sequence[BytesRow]) -> dict[str, int]:
    """Wire bytes up and down, payload bytes and messages of both ways."""
    return {
        "uplink_bytes": total_bytes(rows, "up"),
        "downlink_bytes": total_bytes(rows, "down"),
        "payload_bytes": sum(row.payload_bytes for row in rows),
        "messages": sum(row.messages for row in rows),
    }


def all_link_rows(records: Iterable[RoundRecord]) -> list[BytesRow]:
    """The links' rows of all rounds, one after the other."""
    return [row for record in records for row in link_rows(record.bytes)]


def server_rows(records: Iterable[RoundRecord]) -> list[BytesRow]:
    """What the server's own socket moved, in all rounds."""
    return [row for record in records for row in record.bytes if row.side == "server"]
