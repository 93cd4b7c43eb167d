"""`Downlink`: frames that come in chunks which the broker retains.

The device listens to a window of chunks at a time. What does not come it asks the server for: one
chunk first, then another, and all that is outstanding only when both came and nothing else did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edge_runtime.errors import BrokerError, WireError
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import BlobRef, Chunk, Fetch, Want, Welcome
from edge_runtime.protocol.transfer import Download
from edge_runtime.trainer import MIB, in_mib
from edge_runtime.unfinished import Unfinished

STALLED_S = 60.0
SLOWEST_BYTES_S = 1000.0  # a chunk on a link as slow as this is no stall
# How long a broker may take to begin with what it retains, on a new connection.
RENEWED_S = 2.0
_ENOUGH_DOUBTS = 2  # chunks that came only when the server was asked

_Key = tuple[bytes, int]  # digest, chunk index


class Downlink:
    """Brings frames. Call `ask` again and again. Times are seconds of `clock`."""

    def __init__(
        self,
        welcome: Welcome,
        mailbox: DeviceMailbox,
        unfinished: Unfinished,
        clock: Callable[[], float],
    ) -> None:
        self._mailbox = mailbox
        self._unfinished = unfinished
        self._clock = clock
        self._listened: dict[bytes, set[int]] = {}  # chunks that did not come yet, by frame
        self._connection = mailbox.link.connections
        self._renewed_s = math.inf  # when the broker should have begun to answer
        self._quiet_until_s = -math.inf
        self._distrusted: set[bytes] = set()  # frames whose retained chunks may be damaged
        self._download = Download([], welcome.chunk_bytes)
        self.greet(welcome)
        self.begin({})

    @property
    def kinds(self) -> Mapping[bytes, str]:
        """The frames to come, by digest."""
        return self._kinds

    def greet(self, welcome: Welcome) -> None:
        """What the server says of its blobs holds from `begin` on."""
        self._welcome = welcome
        self._asks = not welcome.retained  # whether the server has to be asked for all chunks
        self._gives, self._doubts = False, 0  # whether a chunk came that nobody was asked for

    def begin(self, refs: Mapping[BlobRef, str]) -> None:
        """Bring these frames, whose kinds are given, and nothing else; what has come stays."""
        self.end()
        self._kinds = {ref.digest: kind for ref, kind in refs.items()}
        self._fetched: set[_Key] = set()
        self._came = False
        self._moved_s = self._clock()  # when something last came
        self._download = Download(
            list(refs), self._welcome.chunk_bytes, ordered=False, begin=self._unfinished.take
        )

    def end(self) -> None:
        """Listen no more; what has come is kept for the next time."""
        for name, indexes in self._listened.items():
            if indexes:
                self._mailbox.unlisten(name, indexes)
        self._listened = {}
        self._unfinished.put(self._download.open, {})

    def ask(self, awaited: list[str]) -> None:
        """Ask for what is wanted now; raises `FlexmoeError` when there is no hope.

        `awaited`: what else the server has to send, for the message.
        """
        now_s = self._clock()
        if not self._mailbox.link.connected:
            self._moved_s = now_s
            return
        self._check_progress(now_s, awaited)
        self._look_at_connection(now_s)
        if now_s < self._quiet_until_s:
            return
        fresh, again = self._download.wants(now_s)
        for want in fresh:
            indexes = range(want.first, want.first + want.count)
            self._mailbox.listen(want.digest, self._kinds[want.digest], indexes)
            self._listened.setdefault(want.digest, set()).update(indexes)
        asked = [want for want in fresh if self._asks or want.digest in self._distrusted]
        self._fetch([*again, *asked])

    def next_ask_s(self) -> float:
        """How long until `ask` has to be called again if nothing comes."""
        now_s = self._clock()
        if not self._mailbox.link.connected:
            return math.inf
        if now_s < self._quiet_until_s:
            return self._quiet_until_s - now_s
        return max(0.0, min(self._download.next_retry_s(now_s), self._renewed_s - now_s))

    def accept(self, part: Chunk) -> tuple[BlobRef, bytes] | None:
        """Take in a chunk; a frame if it is whole with it. `WireError`, to be counted and dropped,
        if it is of no use."""
        try:
            ref = self._download.accept(part, self._clock())
        except WireError as error:
            if error.reason == "bad-digest":
                # What the broker retains may be what is damaged: give the server time to replace
                # what it is asked for.
                self._distrusted.add(part.digest)
                self._quiet_until_s = self._clock() + RENEWED_S
            raise
        self._moved_s, self._came = self._clock(), True
        self._listened.get(part.digest, set()).discard(part.index)
        # At once: on a new connection the broker sends again what is listened to.
        self._mailbox.unlisten(part.digest, [part.index])
        self._judge_broker((part.digest, part.index))
        if ref is None:
            return None
        del self._kinds[ref.digest]
        return ref, self._download.take(ref.digest)

    def _fetch(self, wants: list[Want]) -> None:
        if wants:
            keys = [(w.digest, i) for w in wants for i in range(w.first, w.first + w.count)]
            self._fetched.update(keys)
            self._mailbox.send(Fetch(wants))

    def _judge_broker(self, key: _Key) -> None:
        """Does the broker give what it retains, or does only come what the server is asked for?"""
        self._renewed_s = math.inf
        if key not in self._fetched:
            self._gives = True
            self._asks = not self._welcome.retained
            return
        self._fetched.discard(key)
        if self._asks or self._gives or key[0] in self._distrusted:
            return
        self._doubts += 1
        if self._doubts < _ENOUGH_DOUBTS:
            self._download.doubt()
        else:
            self._asks = True
            self._download.forget_asked()

    def _check_progress(self, now_s: float, awaited: list[str]) -> None:
        if (damaged := self._download.failed) is not None:
            kind = self._kinds[damaged.digest]
            raise WireError("bad-digest", f"a frame of {kind} arrives damaged")
        if topic := self._mailbox.link.refused:
            raise BrokerError(
                f"the broker refuses the subscription to {topic}; check its access rules"
            )
        limit_s = STALLED_S + self._welcome.chunk_bytes / SLOWEST_BYTES_S
        if now_s - self._moved_s < limit_s:
            return
        kinds = list(dict.fromkeys([*awaited, *self._kinds.values()]))
        size_bytes = self._download.missing_bytes
        what = f"{_size(size_bytes)} of {listed(kinds)}" if size_bytes else listed(kinds)
        if self._came or not size_bytes:
            raise WireError("stalled", f"nothing came for {limit_s:.0f} s; missing {what}")
        raise WireError(
            "stalled",
            f"no chunk at all came in {limit_s:.0f} s; missing {what}; check that the broker's "
            "access rules let this device read the federation's topics b/#",
        )

    def _look_at_connection(self, now_s: float) -> None:
        """After a reconnect the broker answers from what it retains, or it has forgotten that."""
        connection = self._mailbox.link.connections
        if connection != self._connection:
            self._connection = connection
            self._download.wait_anew(now_s)
            self._gives, self._doubts = False, 0
            gap_s = self._download.gap_s
            self._renewed_s = now_s if self._asks else now_s + max(RENEWED_S, 2 * gap_s) + gap_s
        if now_s >= self._renewed_s:
            self._renewed_s = math.inf
            if self._asks:
                self._download.forget_asked()
            else:
                self._download.doubt()


def listed(kinds: list[str]) -> str:
    """Such as ``backbone, gate, expert:3 and 4 more``."""
    more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
    return ", ".join(kinds[:3]) + more


def _size(size_bytes: int) -> str:
    return in_mib(size_bytes) if size_bytes >= MIB else f"{size_bytes / 1024:.1f} KiB"
