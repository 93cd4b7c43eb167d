"""`Link`: publish and receive packets, with every byte counted; and its in-memory twin.

A link moves opaque payloads over MQTT topics at QoS 1. `MqttLink` (mqtt.py) is the real one;
`MemoryLink` is the same contract without a network, for tests. Both state the exact size that a
packet has on the wire: `Packet.wire_bytes` for the PUBLISH, `Packet.ack_bytes` for the PUBACK that
travels the other way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from edge_runtime.errors import BrokerError, WireError
from edge_runtime.inbox import INBOX_BYTES as INBOX_BYTES
from edge_runtime.inbox import INBOX_PACKETS as INBOX_PACKETS
from edge_runtime.inbox import Inbox
from edge_runtime.messages import MAX_MESSAGE_BYTES

PUBACK_BYTES = 4
# Of what waits to be acknowledged. MQTT has 65,535 packet ids for it.
OUTBOX_PACKETS = 4096
OUTBOX_BYTES = 64 << 20
_LARGEST_REMAINING_LENGTH = 268_435_455


def publish_packet_bytes(topic: str, payload_bytes: int, qos: int = 1) -> int:
    """Size of an MQTT 3.1.1 PUBLISH packet (section 3.3 of the standard).

    One type byte, the remaining length in base 128 (1 to 4 bytes), the topic behind its 2-byte
    length, a 2-byte packet id at QoS 1 and 2, and the payload.
    """
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + payload_bytes
    if remaining > _LARGEST_REMAINING_LENGTH:
        raise ValueError(f"an MQTT packet holds {_LARGEST_REMAINING_LENGTH} bytes, not {remaining}")
    length_bytes = 1 + (remaining >= 1 << 7) + (remaining >= 1 << 14) + (remaining >= 1 << 21)
    return 1 + length_bytes + remaining


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether `topic` is one of those that the filter `pattern` (with + and #) names."""
    if topic.startswith("$") and pattern[:1] in ("+", "#"):
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


@dataclass(frozen=True)
class Packet:
    """One payload on one topic, and what it costs on the wire, its PUBACK apart."""

    topic: str
    payload: bytes
    wire_bytes: int
    ack_bytes: int

    @classmethod
    def of(cls, topic: str, payload: bytes, qos: int = 1) -> Packet:
        """The packet that carries `payload` on `topic`."""
        wire_bytes = publish_packet_bytes(topic, len(payload), qos)
        return cls(topic, payload, wire_bytes, PUBACK_BYTES if qos else 0)


class Link(Protocol):
    """A connection to a broker. One thread publishes and receives; any may read the counters."""

    def subscribe(self, pattern: str) -> None:
        """Receive what is published on `pattern` from now on, also after a reconnect.

        Returns when the broker has acknowledged it; `BrokerError` if it does not.
        """

    def publish(self, topic: str, payload: bytes) -> Packet:
        """Send, now or once connected again; never waits for the network.

        `WireError` if the payload is larger than a message may be, `BrokerError` after `close`.
        """

    def has_room(self) -> bool:
        """Whether more bulk data may be published, or too much waits to be acknowledged.

        `publish` queues without limit; whoever answers what others ask for has to look here.
        """

    def receive(self, timeout_s: float) -> Packet | None:
        """The next packet, or None after `timeout_s` or when the link is closed."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until every published packet is acknowledged; False if that takes too long."""

    def close(self) -> None:
        """Leave in good order (no last will). A second call does nothing."""

    @property
    def sent_bytes(self) -> int:
        """All bytes that went into the socket, over all connections."""

    @property
    def received_bytes(self) -> int:
        """All bytes that came out of the socket, over all connections."""

    def settled_bytes(self) -> tuple[int, int]:
        """`sent_bytes` and `received_bytes` without what nobody can have booked yet.

        That are the packets that are half read or wait to be taken, and their PUBACKs. Never more
        than the truth, so nothing is booked twice. To be asked by the one that receives.
        """

    @property
    def connections(self) -> int:
        """How often the link connected and renewed its subscriptions; 1 before any reconnect."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now, with all subscriptions in place."""

    @property
    def contested(self) -> bool:
        """True once the broker has repeatedly ended connections right after their start."""

    @property
    def overflowed(self) -> int:
        """Packets dropped because the inbox was full."""

    @property
    def oversized(self) -> int:
        """Packets dropped because they were larger than a message may be."""


class MemoryBroker:
    """Routes packets between the `MemoryLink`s of one process. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._links: dict[str, MemoryLink] = {}

    def attach(self, link: MemoryLink) -> None:
        """Connect a link; one of the same name loses its connection, as with a real broker."""
        with self.lock:
            if (before := self._links.get(link.client_id)) is not None:
                before.kill()
            self._links[link.client_id] = link

    def detach(self, link: MemoryLink, will: Packet | None) -> None:
        """End a link's connection, and publish its last will if there is one to publish."""
        with self.lock:
            if self._links.get(link.client_id) is link:
                del self._links[link.client_id]
                if will is not None:
                    self.route(will)

    def route(self, packet: Packet) -> None:
        """Hand a packet to every connected link that subscribed to its topic."""
        with self.lock:
            for link in list(self._links.values()):
                link.offer(packet)


class MemoryLink:
    """The `Link` contract on a `MemoryBroker`.

    Its byte counters hold PUBLISH and PUBACK packets only. `kill` loses the connection, `restore`
    brings it back: what was published in between is sent then, what was missed stays missed.
    """

    contested = False

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        inbox_packets: int = INBOX_PACKETS,
    ) -> None:
        self.client_id = client_id
        self.connections = 0
        self.connected = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self._broker = broker
        self._will = Packet.of(*will) if will else None
        self._inbox = Inbox(inbox_packets)
        self._patterns: list[str] = []
        self._unsent: deque[Packet] = deque()
        self._closed = False
        self.restore()

    @property
    def overflowed(self) -> int:
        return self._inbox.overflowed

    @property
    def oversized(self) -> int:
        return self._inbox.oversized

    def subscribe(self, pattern: str) -> None:
        with self._broker.lock:
            if not self.connected:
                raise BrokerError(f"no connection to subscribe to {pattern}; connect first")
            self._patterns.append(pattern)

    def publish(self, topic: str, payload: bytes) -> Packet:
        packet = outgoing(topic, payload)
        with self._broker.lock:
            if self._closed:
                raise BrokerError("this link is closed; open a new one to publish")
            self._unsent.append(packet)
            self._send_all()
        return packet

    def has_room(self) -> bool:
        with self._broker.lock:
            return has_room([len(packet.payload) for packet in self._unsent])

    def receive(self, timeout_s: float) -> Packet | None:
        return self._inbox.get(timeout_s)

    def settled_bytes(self) -> tuple[int, int]:
        with self._broker.lock:
            waiting, acks = self._inbox.waiting_bytes
            return self.sent_bytes - acks, self.received_bytes - waiting

    def flush(self, timeout_s: float) -> bool:
        with self._broker.lock:
            return not self._unsent

    def close(self) -> None:
        with self._broker.lock:
            self._closed = True
            self.connected = False
            self._broker.detach(self, will=None)
        self._inbox.close()

    def kill(self) -> None:
        """Lose the connection without a goodbye: the broker publishes the last will."""
        with self._broker.lock:
            self.connected = False
            self._broker.detach(self, self._will)

    def restore(self) -> None:
        """Connect (again)."""
        with self._broker.lock:
            self._broker.attach(self)
            self.connected = True
            self.connections += 1
            self._send_all()

    def offer(self, packet: Packet) -> None:
        """Called by the broker: take the packet if it is on a topic subscribed to."""
        if any(topic_matches(pattern, packet.topic) for pattern in self._patterns):
            self.received_bytes += packet.wire_bytes
            self.sent_bytes += packet.ack_bytes
            self._inbox.put(packet)

    def _send_all(self) -> None:
        while self.connected and self._unsent:
            packet = self._unsent.popleft()
            self.sent_bytes += packet.wire_bytes
            self.received_bytes += packet.ack_bytes
            self._broker.route(packet)


def has_room(unacknowledged: Collection[int]) -> bool:
    """Whether a link with unacknowledged payloads of these sizes takes more bulk data."""
    return len(unacknowledged) < OUTBOX_PACKETS and sum(unacknowledged) < OUTBOX_BYTES


def outgoing(topic: str, payload: bytes) -> Packet:
    """The packet to publish; `WireError` if the payload is larger than a message may be.

    A broker answers too large a packet by ending the connection, and at QoS 1 a client sends it
    again after each reconnect: one such packet would end a device. So it must not get that far.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise WireError(
            "oversized", f"{len(payload)} bytes; a message has at most {MAX_MESSAGE_BYTES}"
        )
    return Packet.of(topic, payload)
