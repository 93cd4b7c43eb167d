"""The in-memory twin of `MqttLink`: a broker and links within one process, for tests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from edge_runtime.errors import BrokerError
from edge_runtime.transport.inbox import INBOX_PACKETS, Inbox
from edge_runtime.transport.link import has_room
from edge_runtime.transport.packet import Packet, outgoing


class MemoryBroker:
    """Routes packets between the `MemoryLink`s of one process. Thread-safe."""

    def __init__(self, retains: bool = True, refuses: str = "") -> None:
        """Without `retains` it passes on what is to be retained, and keeps nothing. It refuses to
        let anyone listen to topics of the filter `refuses`."""
        self.lock = threading.RLock()
        self._links: dict[str, MemoryLink] = {}
        self._retains = retains
        self._refuses = refuses
        self._retained: dict[str, Packet] = {}

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

    def route(self, packet: Packet, retain: bool = False) -> None:
        """Hand a packet to every connected link that subscribed to its topic."""
        with self.lock:
            if retain and packet.payload and self._retains:
                self._retained[packet.topic] = packet
            elif retain:
                self._retained.pop(packet.topic, None)
            for link in list(self._links.values()):
                link.offer(packet)

    def retained(self, pattern: str) -> list[Packet]:
        """What is kept on the topics that `pattern` names."""
        with self.lock:
            return [
                packet for topic, packet in self._retained.items() if topic_matches(pattern, topic)
            ]

    def refuses(self, topic: str) -> bool:
        """Whether nobody may listen to `topic`."""
        return topic_matches(self._refuses, topic)

    def restart(self) -> None:
        """Lose all connections and forget what is retained; nobody's last will is published."""
        with self.lock:
            self._retained.clear()
            for link in list(self._links.values()):
                link.connected = False
            self._links.clear()


class MemoryLink:
    """The `Link` contract on a `MemoryBroker`.

    Its byte counters hold PUBLISH and PUBACK packets only. `kill` loses the connection, `restore`
    brings it back: what was published in between is sent then, what was missed stays missed unless
    it was retained.
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
        self._listened: dict[str, None] = {}  # a set in the order of asking
        self._unsent: deque[tuple[Packet, bool]] = deque()  # and whether to retain it
        self._closed = False
        self.restore()

    @property
    def overflowed(self) -> int:
        return self._inbox.overflowed

    @property
    def oversized(self) -> int:
        return self._inbox.oversized

    @property
    def refused(self) -> str:
        with self._broker.lock:
            if not self.connected:
                return ""
            return next((topic for topic in self._listened if self._broker.refuses(topic)), "")

    def subscribe(self, pattern: str) -> None:
        with self._broker.lock:
            if not self.connected:
                raise BrokerError(f"no connection to subscribe to {pattern}; connect first")
            self._patterns.append(pattern)
            self._take_retained([pattern])

    def listen(self, topics: Sequence[str]) -> None:
        with self._broker.lock:
            self._listened.update(dict.fromkeys(topics))
            if self.connected:
                self._take_retained(topics)

    def unlisten(self, topics: Sequence[str]) -> None:
        with self._broker.lock:
            for topic in topics:
                self._listened.pop(topic, None)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> Packet:
        packet = outgoing(topic, payload)
        with self._broker.lock:
            if self._closed:
                raise BrokerError("this link is closed; open a new one to publish")
            self._unsent.append((packet, retain))
            self._send_all()
        return packet

    def has_room(self) -> bool:
        with self._broker.lock:
            return has_room([len(packet.payload) for packet, _ in self._unsent])

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
            self._take_retained([*self._patterns, *self._listened])
            self._send_all()

    def offer(self, packet: Packet) -> None:
        """Called by the broker: take the packet if it is on a topic subscribed to."""
        listened = packet.topic in self._listened and not self._broker.refuses(packet.topic)
        if listened or any(topic_matches(pattern, packet.topic) for pattern in self._patterns):
            self._take(packet)

    def _take_retained(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            if self._broker.refuses(pattern):
                continue
            for packet in self._broker.retained(pattern):
                self._take(packet)

    def _take(self, packet: Packet) -> None:
        self.received_bytes += packet.wire_bytes
        self.sent_bytes += packet.ack_bytes
        self._inbox.put(packet)

    def _send_all(self) -> None:
        while self.connected and self._unsent:
            packet, retain = self._unsent.popleft()
            self.sent_bytes += packet.wire_bytes
            self.received_bytes += packet.ack_bytes
            self._broker.route(packet, retain)


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
