"""`Inbox`: a bounded queue of packets between a network thread and its owner."""

from __future__ import annotations

import threading
from collections import deque

from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES
from edge_runtime.transport.packet import Packet

INBOX_PACKETS = 4096
INBOX_BYTES = 64 << 20


class Inbox:
    """Packets in the order of their arrival, at most `max_packets` with `max_bytes` of payload."""

    def __init__(self, max_packets: int, max_bytes: int = INBOX_BYTES) -> None:
        self.overflowed = 0
        self.oversized = 0
        self._max_packets = max_packets
        self._max_bytes = max_bytes
        self._packets: deque[Packet] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def waiting_bytes(self) -> tuple[int, int]:
        """On the wire: the packets that wait to be taken, and their PUBACKs."""
        with self._changed:
            return (
                sum(packet.wire_bytes for packet in self._packets),
                sum(packet.ack_bytes for packet in self._packets),
            )

    def put(self, packet: Packet) -> None:
        """Add a packet, or count why it was dropped. Never waits."""
        size = len(packet.payload)
        with self._changed:
            if size > MAX_MESSAGE_BYTES:
                self.oversized += 1
            elif len(self._packets) >= self._max_packets or self._bytes + size > self._max_bytes:
                self.overflowed += 1
            else:
                self._packets.append(packet)
                self._bytes += size
                self._changed.notify()

    def get(self, timeout_s: float) -> Packet | None:
        """The oldest packet; None after `timeout_s` or once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._packets or self._closed, max(0.0, timeout_s))
            if self._closed or not self._packets:
                return None
            packet = self._packets.popleft()
            self._bytes -= len(packet.payload)
            return packet

    def close(self) -> None:
        """Give out nothing any more, and wake whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
