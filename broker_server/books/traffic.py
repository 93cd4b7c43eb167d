"""A round's bytes and drops: the server's ledger and socket, and the devices' own accounts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from broker_server.books.link_bytes import link_rows, total_bytes
from broker_server.record import BytesRow, Side
from edge_runtime.protocol.kinds import MESSAGE_KIND
from edge_runtime.protocol.ledger import LedgerRow, from_moved
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import Account, Moved, pack
from edge_runtime.protocol.topics import up_topic
from edge_runtime.transport.packet import publish_packet_bytes


@dataclass(frozen=True)
class RoundTraffic:
    """All figures are of one round; `rows` are of both sides, the connections' own bytes included.

    Packets that waited to be taken when the round was cut belong to the next one, in all figures.
    """

    rows: list[BytesRow]
    egress_bytes: int
    ingress_bytes: int
    drops: dict[str, int]

    @property
    def uplink_bytes(self) -> int:
        """What all devices sent."""
        return total_bytes(link_rows(self.rows), "up")

    @property
    def downlink_bytes(self) -> int:
        """What all devices received."""
        return total_bytes(link_rows(self.rows), "down")


class Traffic:
    """Cuts the server's running counts into rounds, and puts the devices' accounts with them."""

    def __init__(self, mailbox: ServerMailbox) -> None:
        self._mailbox = mailbox
        self._sent_bytes = 0
        self._received_bytes = 0
        self._drops: Counter[str] = Counter()

    def cut(self, accounts: Mapping[str, Sequence[Moved] | None] | None = None) -> RoundTraffic:
        """What was counted since the last call.

        `accounts` are, by client, all that came with its reports since then, checked; None if it
        sent none.
        """
        link = self._mailbox.link
        sent, received = map(max, link.settled_bytes(), (self._sent_bytes, self._received_bytes))
        self._mailbox.ledger.reconcile(sent, received, role="server")
        drops: Counter[str] = Counter()
        for (_, reason), count in self._mailbox.drops.items():
            drops[reason] += count
        drops["inbox-full"] = link.overflowed
        drops["oversized"] += link.oversized
        rows = _rows("server", self._mailbox.ledger.cut())
        for client, account in (accounts or {}).items():
            rows += _rows("device", from_moved(client, account or ()))
        traffic = RoundTraffic(
            rows=sorted(rows),
            egress_bytes=sent - self._sent_bytes,
            ingress_bytes=received - self._received_bytes,
            drops=dict(drops - self._drops),
        )
        self._sent_bytes, self._received_bytes, self._drops = sent, received, drops
        return traffic

    def close(
        self, accounts: Mapping[str, Account], others: Mapping[str, Sequence[Moved]]
    ) -> RoundTraffic:
        """What was counted since the last round, with the accounts that came after the stop.

        An account cannot count the message that carries it: it is added here. `others` are what
        devices that had no last word said before.
        """
        last = {client: message.account for client, message in accounts.items()}
        traffic = self.cut({**others, **last})
        federation = self._mailbox.federation
        rows = list(traffic.rows)
        for client, message in accounts.items():
            payload_bytes = len(pack(message))
            wire_bytes = publish_packet_bytes(up_topic(federation, client), payload_bytes)
            sizes = (payload_bytes, wire_bytes, 1)
            rows.append(BytesRow("device", client, "up", MESSAGE_KIND, *sizes))
        return replace(traffic, rows=merged(rows))


def merged(rows: Iterable[BytesRow]) -> list[BytesRow]:
    """The rows in their order, those of the same side, client, direction and kind as one."""
    sums: dict[tuple[Side, str, str, str], BytesRow] = {}
    for row in rows:
        key = (row.side, row.client, row.direction, row.kind)
        had = sums.get(key)
        sums[key] = row if had is None else _plus(had, row)
    return sorted(sums.values())


def _plus(left: BytesRow, right: BytesRow) -> BytesRow:
    return replace(
        left,
        payload_bytes=left.payload_bytes + right.payload_bytes,
        wire_bytes=left.wire_bytes + right.wire_bytes,
        messages=left.messages + right.messages,
    )


def _rows(side: Side, rows: Iterable[LedgerRow]) -> list[BytesRow]:
    return [
        BytesRow(
            side,
            row.client,
            row.direction,
            row.kind,
            row.payload_bytes,
            row.wire_bytes,
            row.messages,
        )
        for row in rows
    ]
