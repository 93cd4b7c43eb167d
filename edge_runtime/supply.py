"""`Supply`: how a device comes to the contents that a round's work builds on.

What it lacks travels as frames, in chunks that the broker retains: it listens to a window of them
at a time. What does not come it asks the server for. Frames are applied as soon as they are there,
and gone then. If the work builds on a content that is not here any more, the device says what it
holds, and the server plans anew.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from edge_runtime.artifact import build_part, build_program
from edge_runtime.contents import PROGRAM, Contents
from edge_runtime.errors import FlexmoeError, WireError
from edge_runtime.mailbox import DeviceMailbox
from edge_runtime.messages import (
    MAX_BLOB_BYTES,
    Artifact,
    Assign,
    Chunk,
    Fetch,
    Holding,
    Welcome,
)
from edge_runtime.tensor_blob import unpack_tensors
from edge_runtime.trainer import in_mib
from edge_runtime.transfer import Download
from edge_runtime.work import contents_of

log = logging.getLogger("flexmoe.device")

MAX_HOLDINGS = 3
STALLED_S = 60.0
SLOWEST_BYTES_S = 1000.0  # a chunk on a link as slow as this is no stall
# How long a broker may take to begin with what it retains, on a new connection.
RENEWED_S = 2.0


class Supply:
    """Gets the contents of one work. Call `ask` again and again until it is `complete`.

    Contents and bases are held in memory until `close`. Times are seconds of `clock`.
    """

    def __init__(
        self,
        work: Assign,
        welcome: Welcome,
        contents: Contents,
        mailbox: DeviceMailbox,
        clock: Callable[[], float],
    ) -> None:
        self.fetched_bytes = 0
        self._welcome = welcome
        self._contents = contents
        self._mailbox = mailbox
        self._clock = clock
        self._most_bytes = min(contents.capacity_bytes, MAX_BLOB_BYTES)  # of one content
        self._held = ExitStack()
        self._work = work
        self._next: Assign | None = work  # a plan that was not looked at yet
        self._answered: Assign | None = None  # what `Holding` was the last answer to
        self._holdings = 0
        self._failure: FlexmoeError | None = None
        self._open: dict[bytes, tuple[str, Artifact]] = {}  # to be built, by digest
        self._lacking: list[str] = []
        self._frames: dict[bytes, bytes] = {}  # those that arrived and were not applied
        self._download = Download([], welcome.chunk_bytes)
        self._kinds: dict[bytes, str] = {}  # of the frames to come
        self._listened: dict[bytes, set[int]] = {}  # chunks that did not come yet, by frame
        self._connection = mailbox.link.connections
        self._renewed_s = math.inf  # when the broker should have begun to answer
        self._quiet_until_s = -math.inf
        self._asks = not welcome.retained  # whether the server has to be asked for all chunks
        self._moved_s = clock()  # when something last came
        mailbox.forget_blobs()

    @property
    def complete(self) -> bool:
        """Whether all contents are there."""
        return self._next is None and not self._open and not self._lacking

    def replan(self, work: Assign, welcome: Welcome) -> None:
        """The server says again how to come to the same contents."""
        if work != self._answered:  # one that crossed our answer says nothing new
            self._next = work
        if welcome != self._welcome:
            self._welcome, self._asks = welcome, not welcome.retained
            self._end_download()

    def ask(self) -> None:
        """Ask for what is wanted now; raises `FlexmoeError` when there is no hope."""
        if self._next is not None:
            work, self._next = self._next, None
            self._plan(work)
        if self._failure is not None:
            raise self._failure
        now_s = self._clock()
        if not self._mailbox.link.connected:
            self._moved_s = now_s
        self._check_progress(now_s)
        self._look_at_connection(now_s)
        if now_s < self._quiet_until_s:
            return
        fresh, again = self._download.wants(now_s)
        for want in fresh:
            indexes = range(want.first, want.first + want.count)
            self._mailbox.listen(want.digest, self._kinds[want.digest], indexes)
            self._listened.setdefault(want.digest, set()).update(indexes)
        if wants := [*again, *(fresh if self._asks else [])]:
            self._mailbox.send(Fetch(wants))

    def next_ask_s(self) -> float:
        """How long until `ask` has to be called again if nothing comes."""
        now_s = self._clock()
        if now_s < self._quiet_until_s:
            return self._quiet_until_s - now_s
        return max(0.0, min(self._download.next_retry_s(now_s), self._renewed_s - now_s))

    def accept(self, part: Chunk) -> None:
        """Take in a chunk; `WireError`, to be counted and dropped, if it is of no use."""
        try:
            ref = self._download.accept(part, self._clock())
        except WireError as error:
            if error.reason == "bad-digest":
                # What the broker retains may be what is damaged: give the server time to replace
                # what it is asked for.
                self._asks, self._quiet_until_s = True, self._clock() + RENEWED_S
            raise
        self._moved_s, self._renewed_s = self._clock(), math.inf
        self._listened.get(part.digest, set()).discard(part.index)
        # At once: on a new connection the broker sends again what is listened to.
        self._mailbox.unlisten(part.digest, [part.index])
        if ref is not None:
            self.fetched_bytes += ref.size_bytes
            del self._kinds[ref.digest]
            self._frames[ref.digest] = self._download.take(ref.digest)
            self._build_all()

    def close(self) -> None:
        """Listen no more, and let contents be evicted again."""
        self._end_download()
        self._held.close()

    # --- the plan ------------------------------------------------------------------------------

    def _plan(self, work: Assign) -> None:
        """Begin to get what `work` needs and is not here, or say what is."""
        self._work, parts = work, contents_of(work)
        before = self._held.pop_all()
        names = [name for _, part in parts for name in (part.digest, part.base) if name]
        self._held.enter_context(self._contents.hold(names))
        before.close()
        self._open, self._lacking = {}, []
        for kind, part in parts:
            if self._has(kind, part.digest):
                continue
            self._open[part.digest] = (kind, part)
            if not part.frames or (part.base and not self._has(kind, part.base)):
                self._lacking.append(kind)
        if self._lacking:
            self._say_holding()
        else:
            self._begin_download()
            self._build_all()

    def _has(self, kind: str, name: bytes) -> bool:
        """Whether this content is here; it is the version of `kind` then."""
        if self._contents.get(name) is None:
            return False
        self._contents.use(kind, name)
        return True

    def _say_holding(self) -> None:
        self._end_download()
        work = self._answered = self._work
        self._moved_s = self._clock()
        if self._holdings == MAX_HOLDINGS:
            self._failure = WireError(
                "missing-content",
                f"the work builds on {_listed(self._lacking)}, which is not here; the server was "
                f"told {MAX_HOLDINGS} times what is",
            )
            return
        self._holdings += 1
        held = self._contents.tell_held()
        self._mailbox.send(Holding(work.session, work.round, work.attempt, held))

    # --- the download --------------------------------------------------------------------------

    def _begin_download(self) -> None:
        """Fetch the frames that are not here; the download that is under way goes on if it can."""
        refs = {
            ref.digest: (kind, ref)
            for kind, part in self._open.values()
            for ref in part.frames
            if ref.digest not in self._frames
        }
        if refs.keys() == self._kinds.keys():
            return
        size_bytes = sum(ref.size_bytes for _, ref in refs.values())
        if size_bytes > self._contents.capacity_bytes:
            raise FlexmoeError(
                f"the round's frames have {in_mib(size_bytes)}, the shelf holds "
                f"{in_mib(self._contents.capacity_bytes)}; enlarge it (--shelf-mib) or assign "
                "fewer experts"
            )
        self._end_download()
        self._kinds = {name: kind for name, (kind, _) in refs.items()}
        self._download = Download([ref for _, ref in refs.values()], self._welcome.chunk_bytes)

    def _end_download(self) -> None:
        for name, indexes in self._listened.items():
            if indexes:
                self._mailbox.unlisten(name, indexes)
        self._listened = {}
        self._download, self._kinds = Download([], self._welcome.chunk_bytes), {}

    def _check_progress(self, now_s: float) -> None:
        if (damaged := self._download.failed) is not None:
            kind = self._kinds[damaged.digest]
            raise WireError("bad-digest", f"a frame of {kind} arrives damaged")
        limit_s = STALLED_S + self._welcome.chunk_bytes / SLOWEST_BYTES_S
        if now_s - self._moved_s < limit_s:
            return
        kinds = list(dict.fromkeys([*self._lacking, *self._kinds.values()]))
        size_bytes = self._download.missing_bytes
        what = f"{in_mib(size_bytes)} of {_listed(kinds)}" if size_bytes else _listed(kinds)
        raise WireError("stalled", f"nothing came for {limit_s:.0f} s; missing {what}")

    def _look_at_connection(self, now_s: float) -> None:
        """After a reconnect the broker answers from what it retains, or it has forgotten that."""
        connection = self._mailbox.link.connections
        if connection != self._connection:
            self._connection = connection
            self._renewed_s = now_s if self._asks else now_s + RENEWED_S
        if now_s >= self._renewed_s:
            self._renewed_s, self._asks = math.inf, True
            self._download.forget_asked()

    # --- building ------------------------------------------------------------------------------

    def _build_all(self) -> None:
        """Build what has all its frames; frames that nothing needs any more go."""
        for name, (kind, part) in list(self._open.items()):
            if all(ref.digest in self._frames for ref in part.frames):
                try:
                    self._contents.put(kind, name, self._build(kind, part))
                except WireError as error:
                    self._reject(kind, part, error)
                    return
                del self._open[name]
        needed = {ref.digest for _, part in self._open.values() for ref in part.frames}
        for name in self._frames.keys() - needed:
            del self._frames[name]

    def _build(self, kind: str, part: Artifact) -> bytes:
        if kind == PROGRAM:
            return build_program(part, list(self._draw(part)), self._most_bytes)
        base = self._contents.get(part.base) if part.base else None
        tensors = None if base is None else unpack_tensors(base)
        return build_part(part, tensors, self._draw(part), self._most_bytes)

    def _draw(self, part: Artifact) -> Iterator[bytes]:
        """The frames of `part`, each given away with its last use."""
        uses = Counter(ref.digest for _, other in self._open.values() for ref in other.frames)
        for ref in part.frames:
            uses[ref.digest] -= 1
            last = not uses[ref.digest]
            yield self._frames.pop(ref.digest) if last else self._frames[ref.digest]

    def _reject(self, kind: str, part: Artifact, error: WireError) -> None:
        """Frames that lead nowhere: without a base there is nothing else to try."""
        log.warning("%s: %s", kind, error)
        self._mailbox.drop(error.reason)
        if not part.base:
            self._failure = WireError(error.reason, f"{kind} cannot be built: {error}")
            return
        self._contents.drop(part.base)
        self._lacking = [kind]
        self._say_holding()


def _listed(kinds: list[str]) -> str:
    """Such as ``backbone, gate, expert:3 and 4 more``."""
    more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
    return ", ".join(kinds[:3]) + more
