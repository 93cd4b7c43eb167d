"""What the devices' links carried, from the rows of both sides.

Down is each device's own account: only a device knows which frames it took. Up is what the server
received from it, as an account comes with the report, before the update travels: the account of a
round has the update of the one before. To that come the packets that only the device's account
has: its connection's (subscriptions, pings), and the acknowledgements of what it received. Over a
whole run this is what the devices' accounts say, if nothing was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker_server.record import BytesRow
from edge_runtime.protocol.ledger import CONNECTION, EVERYONE, NOBODY, Direction
from edge_runtime.protocol.mailbox import UNKNOWN
from edge_runtime.transport.packet import PUBACK_BYTES

NO_DEVICE = frozenset({NOBODY, EVERYONE, UNKNOWN})
"""Clients in the server's rows that are no device."""

LinkFigures = dict[tuple[str, Direction, str], tuple[int, int, int]]
"""Payload bytes, wire bytes and messages, by client, direction and kind."""

_NOTHING = (0, 0, 0)


@dataclass(frozen=True)
class LinkRound:
    """What a device's link carried, bytes: in a round, or on average."""

    up_bytes: float
    down_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.up_bytes + self.down_bytes


def link_figures(rows: Iterable[BytesRow]) -> LinkFigures:
    """One round's rows as the devices' links carried them, in no order."""
    found: LinkFigures = {}
    for row in rows:
        client, direction, kind = row.client, row.direction, row.kind
        if client in NO_DEVICE:
            continue
        own, down = row.side == "device", direction == "down"
        if down == own or (own and kind == CONNECTION):
            key = (client, direction, kind)
            payload_bytes, wire_bytes, messages = found.get(key, _NOTHING)
            found[key] = (
                payload_bytes + row.payload_bytes,
                wire_bytes + row.wire_bytes,
                messages + row.messages,
            )
        # At the server, `up` has the broker's acknowledgements of what it sent down, which no
        # device sent. A device acknowledges what it received.
        if down and row.messages:
            key = (client, "up", kind)
            payload_bytes, wire_bytes, messages = found.get(key, _NOTHING)
            acks = PUBACK_BYTES * row.messages
            found[key] = (payload_bytes, wire_bytes + (acks if own else -acks), messages)
    return {key: figures for key, figures in found.items() if any(figures)}


def link_rows(rows: Iterable[BytesRow]) -> list[BytesRow]:
    """`link_figures` as rows, by client, direction and kind."""
    return [
        BytesRow("device", *key, *figures) for key, figures in sorted(link_figures(rows).items())
    ]


def total_bytes(rows: Iterable[BytesRow], direction: Direction) -> int:
    """The wire bytes of these rows in one direction."""
    return sum(row.wire_bytes for row in rows if row.direction == direction)


def carried(rows: Iterable[BytesRow]) -> dict[str, LinkRound]:
    """What each device's link carried in a round, from the round's rows."""
    return by_client(link_figures(rows))


def by_client(figures: LinkFigures) -> dict[str, LinkRound]:
    """What each device's link carried, both ways."""
    ways: dict[str, list[int]] = {}
    for (client, direction, _), (_, wire_bytes, _) in figures.items():
        ways.setdefault(client, [0, 0])[direction == "down"] += wire_bytes
    return {client: LinkRound(*both) for client, both in ways.items()}
