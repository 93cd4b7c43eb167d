"""A round's bytes and drops, from the ledger, the socket and the mailbox."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edge_runtime.ledger import LedgerRow, total_wire_bytes
from edge_runtime.mailbox import ServerMailbox


@dataclass(frozen=True)
class RoundTraffic:
    """All figures are of one round; `rows` include the connection's own bytes.

    Packets that waited to be taken when the round was cut belong to the next one, in all figures.
    """

    rows: list[LedgerRow]
    socket_sent_bytes: int
    socket_received_bytes: int
    drops: dict[str, int]

    @property
    def uplink_bytes(self) -> int:
        return total_wire_bytes(self.rows, "up")

    @property
    def downlink_bytes(self) -> int:
        return total_wire_bytes(self.rows, "down")


class Traffic:
    """Cuts the server's running counts into rounds."""

    def __init__(self, mailbox: ServerMailbox) -> None:
        self._mailbox = mailbox
        self._sent_bytes = 0
        self._received_bytes = 0
        self._drops: Counter[str] = Counter()

    def cut(self) -> RoundTraffic:
        """What was counted since the last call."""
        link = self._mailbox.link
        sent, received = map(max, link.settled_bytes(), (self._sent_bytes, self._received_bytes))
        self._mailbox.ledger.reconcile(sent, received, role="server")
        drops: Counter[str] = Counter()
        for (_, reason), count in self._mailbox.drops.items():
            drops[reason] += count
        drops["inbox-full"] = link.overflowed
        drops["oversized"] += link.oversized
        traffic = RoundTraffic(
            rows=self._mailbox.ledger.cut(),
            socket_sent_bytes=sent - self._sent_bytes,
            socket_received_bytes=received - self._received_bytes,
            drops=dict(drops - self._drops),
        )
        self._sent_bytes, self._received_bytes, self._drops = sent, received, drops
        return traffic
