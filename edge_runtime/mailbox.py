"""Messages over a link: packed, checked, booked byte by byte, the bad ones counted and dropped.

Topics, with the protocol's version and the federation's name in front::

    flexmoe/<version>/<federation>/up/<client>     a device to the server
    flexmoe/<version>/<federation>/down/<client>   the server to one device
    flexmoe/<version>/<federation>/all             the server to every device

Who sent a message is what its topic says, so a broker's access rules can keep devices apart. Anyone
may invent names: the server books what comes from names that it does not know under one account.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import Counter

from edge_runtime.errors import ConfigError, WireError
from edge_runtime.ledger import NOBODY, Direction, Ledger, LedgerRow
from edge_runtime.link import Link
from edge_runtime.messages import (
    VERSION,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Message,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Welcome,
    pack,
    unpack,
)
from edge_runtime.packet import Packet

TO_SERVER = (Hello, Fetch, Chunk, Report, Failed, Gone)
TO_DEVICE = (Rollcall, Welcome, Reject, Assign, Fetch, Chunk, Received, Stop)
TO_ALL = (Rollcall, Stop)

MESSAGE_KIND = "message"
UNKNOWN = "(unknown)"  # no client can be called so
MAX_CLIENTS = 16_384
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BLOB_KIND = re.compile(r"program|backbone|gate|expert:[0-9]{1,6}")


def valid_name(text: str) -> bool:
    """Whether a client or federation may be called so: 1 to 64 of ``A-Z a-z 0-9 _ . -``."""
    return _NAME.fullmatch(text) is not None


def up_topic(federation: str, client: str) -> str:
    """Where a device speaks to the server; with ``+`` as the client, all of them."""
    return f"flexmoe/{VERSION}/{federation}/up/{client}"


def down_topic(federation: str, client: str) -> str:
    """Where the server speaks to one device."""
    return f"flexmoe/{VERSION}/{federation}/down/{client}"


def all_topic(federation: str) -> str:
    """Where the server speaks to every device."""
    return f"flexmoe/{VERSION}/{federation}/all"


class BlobKinds:
    """What kind each client's blobs are: those that its last `Assign` and last `Report` name."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[type, dict[bytes, str]]] = {}

    def learn(self, client: str, message: Message) -> None:
        """Remember the blobs that an `Assign` or a `Report` names, in place of the last one's."""
        if refs := blobs_named_in(message):
            kinds = {ref.digest: ref.kind for ref in refs if _BLOB_KIND.fullmatch(ref.kind)}
            self._kinds.setdefault(client, {})[type(message)] = kinds

    def kind(self, client: str, message: Message) -> str:
        """The kind to book a message under."""
        if isinstance(message, Chunk):
            for kinds in self._kinds.get(client, {}).values():
                if message.digest in kinds:
                    return kinds[message.digest]
        return MESSAGE_KIND

    def forget(self) -> None:
        """Drop all blobs of all clients."""
        self._kinds.clear()


class _Mailbox(ABC):
    """What both sides share: booking, dropping, waiting."""

    _incoming: Direction  # of what this side receives
    _outgoing: Direction

    def __init__(self, link: Link, federation: str, ledger: Ledger) -> None:
        if not valid_name(federation):
            raise ConfigError(_bad_name("federation", federation))
        self.link = link
        self.federation = federation
        self.ledger = ledger
        self.drops: Counter[tuple[str, str]] = Counter()
        self._kinds = BlobKinds()
        self._taken: Packet | None = None  # the last one

    def _post(self, topic: str, client: str, message: Message, allowed: tuple[type, ...]) -> None:
        if not isinstance(message, allowed):
            raise ValueError(f"{type(message).__name__} is never sent on {topic}")
        self._kinds.learn(client, message)
        packet = self.link.publish(topic, pack(message))
        kind = self._kinds.kind(client, message)
        self._book(client, kind, packet, self._outgoing, self._incoming)

    def _take(self, timeout_s: float) -> tuple[str, Message] | None:
        """The next good message and its client, within `timeout_s`; bad ones are dropped."""
        deadline = time.monotonic() + timeout_s
        while (packet := self.link.receive(deadline - time.monotonic())) is not None:
            client, kind = "", MESSAGE_KIND
            self._taken = packet
            try:
                client, allowed = self._sender(packet.topic)
                message = unpack(packet.payload)
                if not isinstance(message, allowed):
                    raise WireError("direction", type(message).__name__)
                kind = self._kinds.kind(client, message)
                return client, message
            except WireError as error:
                self._count_drop(client, error.reason)
            finally:
                self._book(client, kind, packet, self._incoming, self._outgoing)
        return None

    @abstractmethod
    def _sender(self, topic: str) -> tuple[str, tuple[type, ...]]:
        """The client that a topic belongs to, and what may come on it; else `WireError`."""

    def _book(
        self, client: str, kind: str, packet: Packet, way: Direction, back: Direction
    ) -> None:
        account = self._account(client)
        self.ledger.book(account, way, kind, len(packet.payload), packet.wire_bytes)
        if packet.ack_bytes:
            self.ledger.book(account, back, kind, 0, packet.ack_bytes, messages=0)

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
            raise ConfigError(_bad_name("device", client))
        self.client = client
        self._allowed: dict[str, tuple[type, ...]] = {
            down_topic(federation, client): TO_DEVICE,
            all_topic(federation): TO_ALL,
        }
        for topic in self._allowed:
            link.subscribe(topic)

    def send(self, message: Message) -> None:
        """Send to the server."""
        self._post(up_topic(self.federation, self.client), self.client, message, TO_SERVER)

    def receive(self, timeout_s: float) -> Message | None:
        """The next good message from the server, or None after `timeout_s`."""
        taken = self._take(timeout_s)
        if taken is None:
            return None
        self._kinds.learn(*taken)
        return taken[1]

    def drop(self, reason: str) -> None:
        """Count a message that was received in good order and turned out to be of no use."""
        self._count_drop(self.client, reason)

    def _sender(self, topic: str) -> tuple[str, tuple[type, ...]]:
        if topic not in self._allowed:
            raise WireError("topic", topic)
        return self.client, self._allowed[topic]


class ServerMailbox(_Mailbox):
    """The server's messages to and from all devices. Subscribes on construction."""

    _incoming = "up"
    _outgoing = "down"

    def __init__(self, link: Link, federation: str, ledger: Ledger) -> None:
        super().__init__(link, federation, ledger)
        self._known = {NOBODY}
        link.subscribe(up_topic(federation, "+"))

    def know(self, client: str) -> None:
        """Book this client's traffic under its own name from now on, and no more under `UNKNOWN`.

        Called while its hello is the last message received, that one too.
        """
        if client in self._known or len(self._known) > MAX_CLIENTS:
            return
        self._known.add(client)
        hello = self._taken
        if hello is not None and hello.topic == up_topic(self.federation, client):
            size = len(hello.payload)
            row = LedgerRow(UNKNOWN, "up", MESSAGE_KIND, size, hello.wire_bytes, 1)
            self.ledger.move(row, client)
            row = LedgerRow(UNKNOWN, "down", MESSAGE_KIND, 0, hello.ack_bytes, 0)
            self.ledger.move(row, client)

    def learn(self, client: str, report: Report) -> None:
        """Book the blobs of a report by their kinds; call it when the report is accepted."""
        self._kinds.learn(client, report)

    def forget_blobs(self) -> None:
        """The round is over: nobody's chunks are booked by kind until there is new work."""
        self._kinds.forget()

    def send(self, client: str, message: Message) -> None:
        """Send to one device."""
        if not valid_name(client):
            raise ValueError(_bad_name("device", client))
        self._post(down_topic(self.federation, client), client, message, TO_DEVICE)

    def broadcast(self, message: Message) -> None:
        """Send to every device. It leaves the server once, and is booked under client ``""``."""
        self._post(all_topic(self.federation), "", message, TO_ALL)

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
        return client if client in self._known else UNKNOWN


def blobs_named_in(message: Message) -> list[BlobRef]:
    """The blobs that an `Assign` asks a device to hold, or a `Report` to collect."""
    if isinstance(message, Assign):
        programs = [message.training_program, message.evaluation_program]
        return [*programs, message.backbone, message.gate, *message.expert_blobs]
    return message.update if isinstance(message, Report) else []


def _bad_name(what: str, text: str) -> str:
    return f"{what} name {text!r}: expected 1 to 64 letters, digits, '_', '.' or '-'"
