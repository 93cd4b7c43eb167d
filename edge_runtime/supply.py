"""`Supply`: how a device comes to the contents that a round's work builds on.

What it lacks travels as frames (`downlink.py`). Frames are applied as soon as they are there, and
gone then; what has come of frames when the work ends early is there for the next. If the work
builds on a content that is not here any more, the device says what it holds, and the server plans
anew.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from edge_runtime.artifact import build_part, build_program
from edge_runtime.contents import PROGRAM, Contents
from edge_runtime.downlink import Downlink, listed
from edge_runtime.errors import FlexmoeError, WireError
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import (
    MAX_BLOB_BYTES,
    Artifact,
    Assign,
    Chunk,
    Holding,
    Welcome,
)
from edge_runtime.tensor_blob import unpack_tensors
from edge_runtime.trainer import in_mib
from edge_runtime.work import contents_of

log = logging.getLogger("flexmoe.device")

MAX_HOLDINGS = 3


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
        self._downlink = Downlink(welcome, mailbox, contents.unfinished, clock)
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
            self._welcome = welcome
            self._downlink.greet(welcome)
            self._downlink.begin({})

    def ask(self) -> None:
        """Ask for what is wanted now; raises `FlexmoeError` when there is no hope."""
        if self._next is not None:
            work, self._next = self._next, None
            self._plan(work)
        if self._failure is not None:
            raise self._failure
        self._downlink.ask(self._lacking)

    def next_ask_s(self) -> float:
        """How long until `ask` has to be called again if nothing comes."""
        return self._downlink.next_ask_s()

    def accept(self, part: Chunk) -> None:
        """Take in a chunk; `WireError`, to be counted and dropped, if it is of no use."""
        if (frame := self._downlink.accept(part)) is not None:
            ref, data = frame
            self.fetched_bytes += ref.size_bytes
            self._frames[ref.digest] = data
            self._build_all()

    def close(self) -> None:
        """Listen no more, and let contents be evicted again."""
        self._downlink.end()
        if self.complete:
            self._contents.unfinished.keep([])
        else:
            self._contents.unfinished.put([], self._frames)
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
            self._take_whole()
            if not self._lacking and self._failure is None:
                self._begin_download()

    def _take_whole(self) -> None:
        """Use the frames that came whole before, part by part: they need not all be in memory."""
        unfinished, chunk_bytes = self._contents.unfinished, self._welcome.chunk_bytes
        parts = [part for _, part in self._open.values()]
        unfinished.keep({ref.digest for part in parts for ref in part.frames})
        for part in parts:
            for ref in part.frames:
                if ref.digest not in self._frames:
                    data = unfinished.take_whole(ref, chunk_bytes)
                    if data is not None:
                        self._frames[ref.digest] = data
            self._build_all()
            if self._lacking or self._failure is not None:
                return

    def _has(self, kind: str, name: bytes) -> bool:
        """Whether this content is here; it is the version of `kind` then."""
        if self._contents.get(name) is None:
            return False
        self._contents.use(kind, name)
        return True

    def _say_holding(self) -> None:
        self._downlink.begin({})
        work = self._answered = self._work
        if self._holdings == MAX_HOLDINGS:
            self._failure = WireError(
                "missing-content",
                f"the work builds on {listed(self._lacking)}, which is not here; the server was "
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
            ref: kind
            for kind, part in self._open.values()
            for ref in part.frames
            if ref.digest not in self._frames
        }
        if {ref.digest for ref in refs} == self._downlink.kinds.keys():
            return
        size_bytes = sum(ref.size_bytes for ref in refs)
        if size_bytes > self._contents.capacity_bytes:
            raise FlexmoeError(
                f"the round's frames have {in_mib(size_bytes)}, the shelf holds "
                f"{in_mib(self._contents.capacity_bytes)}; enlarge it (--shelf-mib) or assign "
                "fewer experts"
            )
        self._downlink.begin(refs)

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
