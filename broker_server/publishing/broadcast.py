"""Frames as retained messages: published once, for every device that listens, now or later.

What the broker was given on this connection is not published again, unless a device asks for it:
then a broker that restarted has forgotten it, or keeps nothing. Questions that come shortly one
after the other are answered once.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from broker_server.publishing.history import Frame
from edge_runtime.protocol.blob import chunk
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import BlobRef, Fetch
from edge_runtime.protocol.topics import all_blobs_topic
from edge_runtime.protocol.transfer import serve
from edge_runtime.transport.link import Link

log = logging.getLogger("flexmoe.server")

GATHER_S = 0.05  # how long questions for the same chunk are waited for
RETAINED_BYTES = 256 << 20
_RETRY_S = 0.005  # where the link has no room
_SWEEP_S = 10.0

_Key = tuple[bytes, int]  # digest, chunk index


class _Given:
    """What the broker was given of one frame."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.now: set[int] = set()  # on this connection
        self.ever: set[int] = set()


class Broadcast:
    """The frames on the broker. A broker that does not `retain` is given what is asked for."""

    def __init__(
        self,
        mailbox: ServerMailbox,
        find: Callable[[bytes], Frame | None],
        retain: bool = True,
        clock: Callable[[], float] = time.monotonic,
        retained_bytes: int = RETAINED_BYTES,
    ) -> None:
        """`find` gives a frame that devices may still be sent, by digest.

        At most `retained_bytes` stay on the broker, or one frame: those named longest ago leave.
        """
        self._mailbox = mailbox
        self._find = find
        self._retain = retain
        self._clock = clock
        self._retained_bytes = retained_bytes
        self._connections = mailbox.link.connections
        self._given: OrderedDict[bytes, _Given] = OrderedDict()  # named longest ago first
        self._kept_bytes = 0  # of the frames of which the broker has anything
        self._due: dict[_Key, float] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be published."""
        return not self._due

    def next_s(self) -> float:
        """How long until there is something to publish; infinite if nothing waits."""
        return max(_RETRY_S, min(self._due.values(), default=math.inf) - self._clock())

    def offer(self, refs: Iterable[BlobRef]) -> None:
        """Publish these frames, if the broker retains and was not given them; see `pump`."""
        self._mind_connection()
        for ref in refs if self._retain else ():
            given = self._given.setdefault(ref.digest, _Given(ref.size_bytes))
            self._given.move_to_end(ref.digest)
            for index in range(ref.chunks(self._mailbox.chunk_bytes)):
                if index not in given.now:
                    self._due[ref.digest, index] = self._clock()

    def ask(self, fetch: Fetch, names: Collection[bytes]) -> None:
        """A device asks for chunks of the frames `names`: publish them (again), once for all.

        What can be is; then `WireError` for the rest, as of `edge_runtime.protocol.transfer.serve`.
        """

        def find(name: bytes) -> bytes | None:
            frame = self._find(name) if name in names else None
            return None if frame is None else frame.data

        due_s = self._clock() + GATHER_S
        for part in serve(fetch, find, self._mailbox.chunk_bytes):
            self._due.setdefault((part.digest, part.index), due_s)

    def pump(self) -> None:
        """Publish what is due, as far as the link has room."""
        self._mind_connection()
        now_s = self._clock()
        for key in [key for key, due_s in self._due.items() if due_s <= now_s]:
            if not self._mailbox.link.has_room():
                return
            del self._due[key]
            self._publish(*key)

    def tidy(self) -> None:
        """Take from the broker what no device can be sent any more."""
        for name in [name for name in self._given if self._find(name) is None]:
            self._withdraw(name)

    def clear(self) -> None:
        """Take everything from the broker."""
        self._due.clear()
        for name in list(self._given):
            self._withdraw(name)

    def _publish(self, name: bytes, index: int) -> None:
        frame = self._find(name)
        if frame is None:
            return
        data = chunk(name, frame.data, index, self._mailbox.chunk_bytes).data
        self._mailbox.offer(name, frame.kind, index, data, self._retain)
        if self._retain:
            given = self._given.setdefault(name, _Given(frame.ref.size_bytes))
            if not given.ever:
                self._kept_bytes += given.size_bytes
            given.now.add(index)
            given.ever.add(index)
            if self._kept_bytes > self._retained_bytes:
                self._make_room(name)

    def _make_room(self, newest: bytes) -> None:
        for name in [name for name, given in self._given.items() if given.ever and name != newest]:
            self._withdraw(name)
            if self._kept_bytes <= self._retained_bytes:
                return

    def _withdraw(self, name: bytes) -> None:
        given = self._given.pop(name)
        if given.ever:
            self._kept_bytes -= given.size_bytes
        for index in sorted(given.ever):
            self._mailbox.withdraw(name, index)

    def _mind_connection(self) -> None:
        """On a new connection the broker may be another process, that knows nothing."""
        if self._connections != (connections := self._mailbox.link.connections):
            self._connections = connections
            for given in self._given.values():
                given.now.clear()


def sweep(link: Link, federation: str, quiet_s: float = 0.5) -> int:
    """Take from a broker what a server of this federation that was killed left there.

    Its number of chunks; `quiet_s` without another are their end. A broker drops what a subscriber
    does not take in time (mosquitto: beyond 1000 messages), so it is asked again until it has none
    left, for `_SWEEP_S` at most. `link` is for this alone: to be closed afterwards.
    """
    pattern = all_blobs_topic(federation)
    end_s, cleared = time.monotonic() + _SWEEP_S, set[str]()
    while True:
        before = len(cleared)
        link.subscribe(pattern)
        while (packet := link.receive(quiet_s)) is not None and time.monotonic() < end_s:
            if packet.payload:  # what we clear comes back empty
                link.publish(packet.topic, b"", retain=True)
                cleared.add(packet.topic)
        left_s = end_s - time.monotonic()
        flushed = link.flush(max(quiet_s, left_s))
        if left_s > 0 and flushed and len(cleared) == before:
            return len(cleared)
        if left_s <= 0 or not flushed:
            log.warning(
                "the broker still keeps chunks that an earlier server left on %s, after %d were "
                "cleared in %.0f s; they take its memory only",
                pattern,
                len(cleared),
                _SWEEP_S,
            )
            return len(cleared)
