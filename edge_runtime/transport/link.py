"""`Link`: publish and receive packets, with every byte counted.

A link moves opaque payloads over MQTT topics at QoS 1. `MqttLink` (mqtt.py) is the real one;
`MemoryLink` (memory_link.py) is the same contract without a network, for tests. Both state the
exact size that a packet has on the wire.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from edge_runtime.transport.packet import Packet

# Of what waits to be acknowledged. MQTT has 65,535 packet ids for it.
OUTBOX_PACKETS = 4096
OUTBOX_BYTES = 64 << 20


class Link(Protocol):
    """A connection to a broker. One thread publishes and receives; any may read the counters."""

    def subscribe(self, pattern: str) -> None:
        """Receive what is published on `pattern` from now on, also after a reconnect.

        Returns when the broker has acknowledged it; `BrokerError` if it does not.
        """

    def listen(self, topics: Sequence[str]) -> None:
        """Subscribe to exactly these topics, in one packet; never waits for the network.

        What is published on them is received from when the broker has it on, and what it retains
        on them comes at once, also for a topic listened to already. While there is no connection
        they are only remembered: they are asked for, with all others, on every new one. A topic
        that the broker refuses stays silent, and is named by `refused`.
        """

    def unlisten(self, topics: Sequence[str]) -> None:
        """End `listen` for these topics, in one packet; what is on its way may still arrive."""

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> Packet:
        """Send, now or once connected again; never waits for the network.

        With `retain` the broker, if it can, keeps the packet for whoever subscribes later, in place
        of the one before on this topic; an empty payload clears it (and is passed on as well).
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
    def refused(self) -> str:
        """A topic given to `listen` that the broker refused on this connection, or nothing."""

    @property
    def overflowed(self) -> int:
        """Packets dropped because the inbox was full."""

    @property
    def oversized(self) -> int:
        """Packets dropped because they were larger than a message may be."""


def has_room(unacknowledged: Collection[int]) -> bool:
    """Whether a link with unacknowledged payloads of these sizes takes more bulk data."""
    return len(unacknowledged) < OUTBOX_PACKETS and sum(unacknowledged) < OUTBOX_BYTES
