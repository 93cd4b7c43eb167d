"""Messages over a link: packed, checked, booked byte by byte, the bad ones counted and dropped.

Messages travel on topics of their sender or receiver, chunks of blobs that go down on topics of
their own, where the payload is the chunk, nothing else (`topics`). Anyone may invent names: the
server books what comes from names that it does not know under one account.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

from edge_runtime.errors import ConfigError, WireError
from edge_runtime.protocol.kinds import MESSAGE_KIND, UpdateKinds
from edge_runtime.protocol.ledger import EVERYONE, NOBODY, Direction, Ledger, LedgerRow, to_moved
from edge_runtime.protocol.messages import (
    CHUNK_BYTES,
    Account,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Holding,
    Message,
    Moved,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Welcome,
    pack,
    unpack,
)
from edge_runtime.protocol.topics import (
    all_topic,
    bad_name,
    blob_topic,
    down_topic,
    up_topic,
    valid_name,
)
from edge_runtime.transport.link import Link
from edge_runtime.transport.packet import Packet

TO_SERVER = (Hello, Holding, Fetch, Chunk, Report, Failed, Gone, Account)
TO_DEVICE = (Rollcall, Welcome, Reject, Assign, Fetch, Received, Stop)
TO_ALL = (Rollcall, Stop)

UNKNOWN = "(unknown)"  # no client can be called so
MAX_CLIENTS = 16_384
MAX_DROPS_A_CALL = 256  # so that a flood keeps nobody from what else there is to do


class _Mailbox(ABC):
    """What both sides share: booking, dropping, waiting."""

    _incoming: Direction  # of what this side receives
    _outgoing: Direction

    def __init__(self, link: Link, federation: str, ledger: Ledger) -> None:
        if not valid_name(federation):
            raise ConfigError(bad_name("federation", federation))
        self.link = link
        self.federation = federation
        self.ledger = ledger
        self.chunk_bytes = CHUNK_BYTES  # of blobs on this broker
        self.drops: Counter[tuple[str, str]] = Counter()
        self._updates = UpdateKinds()
        self._taken: Packet | None = None  # the last one

    def _post(self, topic: str, client: str, message: Message, allowed: tuple[type, ...]) -> None:
        if not isinstance(message, allowed):
            raise ValueError(f"{type(message).__name__} is never sent on {topic}")
        packet = self.link.publish(topic, pack(message))
        shares = self._updates.shares(client, message, self.chunk_bytes)
        self._book(client, shares, packet, self._outgoing, self._incoming)

    def _take(self, timeout_s: float) -> tuple[str, Message] | None:
        """The next good message and its client, within `timeout_s`; bad ones are dropped."""
        deadline = time.monotonic() + timeout_s
        for _ in range(MAX_DROPS_A_CALL):
            if (packet := self.link.receive(deadline - time.monotonic())) is None:
                break
            client, shares = "", list[tuple[str, int]]()
            self._taken = packet
            try:
                client, allowed = self._sender(packet.topic)
                message, found = self._read(packet, client)
                if not isinstance(message, allowed):
                    raise WireError("direction", type(message).__name__)
                shares = found
                return client, message
            except WireError as error:
                self._count_drop(client, error.reason)
            finally:
                self._book(client, shares, packet, self._incoming, self._outgoing)
        return None

    def _read(self, packet: Packet, client: str) -> tuple[Message, list[tuple[str, int]]]:
        """What a packet carries, and what its bytes are booked under."""
        message = unpack(packet.payload)
        return message, self._updates.shares(client, message, self.chunk_bytes)

    @abstractmethod
    def _sender(self, topic: str) -> tuple[str, tuple[type, ...]]:
        """The client that a topic belongs to, and what may come on it; else `WireError`."""

    def _book(
        self,
        client: str,
        shares: Sequence[tuple[str, int]],
        packet: Packet,
        way: Direction,
        back: Direction,
    ) -> None:
        """Book a packet: a blob's bytes by `shares`; what is around them goes with the largest."""
        account, sizes = self._account(client), Counter[str]()
        for kind, size_bytes in shares:
            sizes[kind] += size_bytes
        main = max(sizes, key=sizes.__getitem__, default=MESSAGE_KIND)
        sizes[main] += len(packet.payload) - sizes.total()
        for kind, size_bytes in sizes.items():
            mqtt_bytes = packet.wire_bytes - len(packet.payload) if kind == main else 0
            messages = int(kind == main)
            self.ledger.book(account, way, kind, size_bytes, size_bytes + mqtt_bytes, messages)
        if packet.ack_bytes:
            self.ledger.book(account, back, main, 0, packet.ack_bytes, messages=0)

    def _account(self, client: str) -> str:
        """The name to book a client's bytes under."""
        return client

    def _count_drop(self, client: str, reason: str) -> None:
        # Anyone may invent client names; the table must not grow with them.
        if len(self.drops) >= MAX_CLIENTS and (client, reason) not in self.drops:
            client = ""
        self.drops[client, reason] += 1


class DeviceMailbox(_Mailbox):
    """A device's messages to and from the server. Subscribes on construction."""

    _incoming = "down"
    _outgoing = "up"

    def __init__(self, link: Link, federation: str, client: str, ledger: Ledger) -> None:
        super().__init__(link, federation, ledger)
        if not valid_name(client):
            raise ConfigError(bad_name("device", client))
        self.client = client
        self._allowed: dict[str, tuple[type, ...]] = {
            down_topic(federation, client): TO_DEVICE,
            all_topic(federation): TO_ALL,
        }
        self._blobs: dict[str, tuple[bytes, int, str]] = {}  # digest, index, kind by topic
        self._former_blobs: dict[str, tuple[bytes, int, str]] = {}  # of the work before
        for topic in self._allowed:
            link.subscribe(topic)

    def send(self, message: Message) -> None:
        """Send to the server."""
        self._post(up_topic(self.federation, self.client), self.client, message, TO_SERVER)

    def receive(self, timeout_s: float) -> Message | None:
        """The next good message from the server, or a chunk of a blob that was listened to.

        None after `timeout_s`.
        """
        taken = self._take(timeout_s)
        return None if taken is None else taken[1]

    def drop(self, reason: str) -> None:
        """Count a message that was received in good order and turned out to be of no use."""
        self._count_drop(self.client, reason)

    def listen(self, digest: bytes, kind: str, indexes: Iterable[int]) -> None:
        """Receive these chunks of a blob; what the broker retains of them comes at once."""
        topics = {blob_topic(self.federation, digest, index): index for index in indexes}
        self._blobs |= {topic: (digest, index, kind) for topic, index in topics.items()}
        self.link.listen(list(topics))

    def unlisten(self, digest: bytes, indexes: Iterable[int]) -> None:
        """Receive these chunks no more; what is on its way is still booked by its kind."""
        self.link.unlisten([blob_topic(self.federation, digest, index) for index in indexes])

    def forget_blobs(self) -> None:
        """There is new work: chunks that still come of the last one are booked by their kinds."""
        self._former_blobs, self._blobs = self._blobs, {}

    def learn(self, update: BlobRef, sections: Sequence[tuple[str, int]]) -> None:
        """Book the chunks of this update by its sections: kinds and sizes; else `WireError`."""
        self._updates.learn(self.client, update, sections)

    def account(self) -> list[Moved]:
        """What the socket moved since the last call, by kind."""
        sent_bytes, received_bytes = self.link.settled_bytes()
        self.ledger.reconcile(sent_bytes, received_bytes, role="device")
        return to_moved(self.ledger.cut())

    def _read(self, packet: Packet, client: str) -> tuple[Message, list[tuple[str, int]]]:
        blob = self._blobs.get(packet.topic) or self._former_blobs.get(packet.topic)
        if blob is None:
            return super()._read(packet, client)
        if not packet.payload:  # booked as the server books it
            raise WireError("withdrawn", packet.topic)
        digest, index, kind = blob
        return Chunk(digest, index, packet.payload), [(kind, len(packet.payload))]

    def _sender(self, topic: str) -> tuple[str, tuple[type, ...]]:
        if topic in self._blobs or topic in self._former_blobs:
            return self.client, (Chunk,)
        if topic not in self._allowed:
            raise WireError("topic", topic)
        return self.client, self._allowed[topic]


class ServerMailbox(_Mailbox):
    """The server's messages to and from all devices. Subscribes on construction."""

    _incoming = "up"
    _outgoing = "down"

    def __init__(self, link: Link, federation: str, ledger: Ledger) -> None:
        super().__init__(link, federation, ledger)
        self._known: set[str] = set()
        link.subscribe(up_topic(federation, "+"))

    def know(self, client: str) -> None:
        """Book this client's traffic under its own name from now on, and no more under `UNKNOWN`.

        Called while its hello is the last message received, that one too.
        """
        if client in self._known or len(self._known) >= MAX_CLIENTS:
            return
        self._known.add(client)
        hello = self._taken
        if hello is not None and hello.topic == up_topic(self.federation, client):
            size = len(hello.payload)
            row = LedgerRow(UNKNOWN, "up", MESSAGE_KIND, size, hello.wire_bytes, 1)
            self.ledger.move(row, client)
            row = LedgerRow(UNKNOWN, "down", MESSAGE_KIND, 0, hello.ack_bytes, 0)
            self.ledger.move(row, client)

    def learn(self, client: str, update: BlobRef, sections: Sequence[tuple[str, int]]) -> None:
        """Book a client's update by its sections (kinds and sizes); call it once accepted.

        `WireError` if the sections are not what the update consists of.
        """
        self._updates.learn(client, update, sections)

    def forget_updates(self) -> None:
        """The round is over: nobody's chunks are booked by kind until there is new work."""
        self._updates.forget()

    def send(self, client: str, message: Message) -> None:
        """Send to one device."""
        if not valid_name(client):
            raise ValueError(bad_name("device", client))
        self._post(down_topic(self.federation, client), client, message, TO_DEVICE)

    def broadcast(self, message: Message) -> None:
        """Send to every device. It leaves the server once, and is booked under `EVERYONE`."""
        self._post(all_topic(self.federation), EVERYONE, message, TO_ALL)

    def offer(self, digest: bytes, kind: str, index: int, data: bytes, retain: bool) -> Packet:
        """Publish a chunk of a blob for whoever listens; `retain`: also for who comes later."""
        topic = blob_topic(self.federation, digest, index)
        packet = self.link.publish(topic, data, retain=retain)
        self._book(EVERYONE, [(kind, len(data))], packet, "down", "up")
        return packet

    def withdraw(self, digest: bytes, index: int) -> None:
        """Let the broker forget a chunk that it retained."""
        topic = blob_topic(self.federation, digest, index)
        self._book(EVERYONE, [], self.link.publish(topic, b"", retain=True), "down", "up")

    def receive(self, timeout_s: float) -> tuple[str, Message] | None:
        """The next good message and the device that sent it, or None after `timeout_s`."""
        return self._take(timeout_s)

    def drop(self, client: str, reason: str) -> None:
        """Count a message that was received in good order and turned out to be of no use."""
        self._count_drop(client, reason)

    def _sender(self, topic: str) -> tuple[str, tuple[type, ...]]:
        prefix, _, client = topic.rpartition("/")
        if f"{prefix}/" != up_topic(self.federation, ""):
            raise WireError("topic", topic)
        if not valid_name(client):
            raise WireError("name", client)
        return client, TO_SERVER

    def _account(self, client: str) -> str:
        return client if client in self._known or client in (NOBODY, EVERYONE) else UNKNOWN
