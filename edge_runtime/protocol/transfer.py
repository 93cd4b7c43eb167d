"""Blobs by chunks: what to ask for next (`Download`), and how to answer (`serve`).

No I/O and no clock: the caller asks for what is wanted, hands over the chunks that arrive, and says
what time it is. Whoever needs a blob asks, at most a window of chunks at a time, so a slow link is
never flooded and the peer keeps no state.

Lost chunks are told from late ones as in TCP. A chunk is lost when one that was asked for after it
has arrived, where answers keep their order (retained messages of several topics do not); only
chunks asked for once tell that, because the answer to a repeated question may be the first one's
(Karn and Partridge, 1987). When nothing arrives for the retry time, one chunk is asked for again,
then more as answers come: on a slow link the window is just late, and to ask for all of it again
would double the load. The retry time follows the gaps between arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from edge_runtime.errors import WireError
from edge_runtime.protocol.blob import chunk, digest
from edge_runtime.protocol.messages import MAX_ITEMS, BlobRef, Chunk, Fetch, Want
from edge_runtime.protocol.partial_blob import PartialBlob

MAX_RETRY_S = 30.0  # where back-off ends; a link that is slower than that raises it
MAX_SLOW_LINK_RETRY_S = 120.0
MAX_ATTEMPTS = 3
MAX_CHUNKS_PER_FETCH = 64
WINDOW = 8

_Key = tuple[bytes, int]  # digest, chunk index


class _Asked(NamedTuple):
    number: int  # counts all chunks asked for
    once: bool


class Wants(NamedTuple):
    """What to ask for: chunks that nobody was asked for yet, and those that did not come."""

    fresh: list[Want]
    again: list[Want]

    @property
    def all(self) -> list[Want]:
        """Both, what did not come first."""
        return self.again + self.fresh


class Download:
    """Puts the blobs `refs` together from chunks of `chunk_bytes`, in the order of `refs`.

    At most `window` chunks are asked for and not answered; after `retry_s` seconds of silence some
    are asked for again. Several refs of one digest are one blob. It holds the blobs that have begun
    and those that were not taken: `take` each when `accept` names it. The caller has checked that
    it needs blobs of these kinds and sizes. `ordered`: whether chunks come in the order of asking.
    `begin` makes a blob to put chunks into, or gives one that has begun; it is not whole.
    Times are seconds of a monotonic clock.
    """

    def __init__(
        self,
        refs: Sequence[BlobRef],
        chunk_bytes: int,
        window: int = WINDOW,
        retry_s: float = 5.0,
        ordered: bool = True,
        begin: Callable[[BlobRef, int], PartialBlob] = PartialBlob,
    ) -> None:
        if not 0 < window <= MAX_ITEMS or retry_s <= 0:
            raise ValueError(f"expected 1 <= window <= {MAX_ITEMS} and retry_s > 0")
        self._window = window
        self._retry_s = retry_s
        self._ordered = ordered
        self._partials: dict[bytes, PartialBlob] = {}
        for ref in refs:
            if (partial := self._partials.get(ref.digest)) is None:
                partial = self._partials[ref.digest] = begin(ref, chunk_bytes)
                partial.ask_again()
            if partial.ref != ref:
                raise WireError("bad-size", f"{partial.name}: one digest, two sizes")
        self._open = dict(self._partials)
        self._blobs: dict[bytes, bytes] = {}
        self._failed: BlobRef | None = None
        # A chunk that has not arrived is in one of these, or was never asked for.
        self._asked: dict[_Key, _Asked] = {}  # in the order of asking
        self._lost: dict[_Key, None] = {}
        self._next_number = 0
        self._heard_s = 0.0  # the last arrival, or the begin of waiting
        self._silent_since_s = 0.0  # the same, or the last time that silence made us ask
        self._gap_s = 0.0  # between arrivals, the longest of late
        self._usual_wait_s = retry_s
        self._wait_s = retry_s
        self._probes = 1  # how many chunks a silence makes us ask for again

    @property
    def complete(self) -> bool:
        """Whether every blob has arrived whole."""
        return not self._open

    @property
    def failed(self) -> BlobRef | None:
        """The blob whose digest was wrong `MAX_ATTEMPTS` times; nothing is asked for any more."""
        return self._failed

    @property
    def missing_bytes(self) -> int:
        """Bytes of all blobs that have not arrived."""
        return sum(partial.missing_bytes for partial in self._open.values())

    @property
    def open(self) -> list[PartialBlob]:
        """The blobs that have not arrived whole, with what has come of them."""
        return list(self._open.values())

    @property
    def gap_s(self) -> float:
        """How long the next chunk takes on this link, as measured; 0 if nothing was."""
        return self._gap_s

    @property
    def blobs(self) -> Mapping[bytes, bytes]:
        """The complete blobs by digest, without those taken."""
        return MappingProxyType(self._blobs)

    def take(self, name: bytes) -> bytes:
        """A complete blob, which is not held here any longer; `KeyError` if there is none."""
        return self._blobs.pop(name)

    def wants(self, now_s: float) -> Wants:
        """What to ask for now; both lists are empty when there is nothing to ask."""
        if self._failed:
            return Wants([], [])
        if not self._asked:
            self._heard_s = self._silent_since_s = now_s
        elif now_s >= self._silent_since_s + self._wait_s:
            # The newest, so that the older ones still tell lost from late when they arrive.
            for key in list(self._asked)[-self._probes :]:
                self._lose(key)
            self._silent_since_s = now_s
            self._wait_s = max(self._wait_s, min(2 * self._wait_s, MAX_RETRY_S))
        room = self._window - len(self._asked)
        again = list(islice(self._lost, room))
        fresh = list(islice(self._fresh(), room - len(again)))
        for key in again:
            del self._lost[key]
        for key in again + fresh:
            self._asked[key] = _Asked(self._next_number, once=key not in again)
            self._next_number += 1
        return Wants(_ranges(fresh), _ranges(again))

    def forget_asked(self) -> None:
        """Nobody will answer what was asked for so far: it counts as lost."""
        for key in list(self._asked):
            self._lose(key)

    def doubt(self) -> None:
        """One of the chunks that were asked for counts as lost, and is asked for again.

        The one in the middle: whichever order answers come in, it is hardly the next one.
        """
        if self._asked:
            self._lose(list(self._asked)[len(self._asked) // 2])

    def wait_anew(self, now_s: float) -> None:
        """There is a connection again: the silence before it says nothing."""
        self._heard_s = self._silent_since_s = now_s
        self._wait_s, self._probes = self._usual_wait_s, 1

    def next_retry_s(self, now_s: float) -> float:
        """After a call of `wants`: how long until it asks again if no chunk arrives.

        Infinite if time alone never makes it ask: nothing is outstanding, or the download failed.
        """
        if self._failed or not self._asked:
            return math.inf
        return max(0.0, (self._silent_since_s + self._wait_s) - now_s)

    def accept(self, part: Chunk, now_s: float) -> BlobRef | None:
        """Take in a chunk; the blob's ref if it is complete with it.

        Raises `WireError`, to be counted and dropped: ``unexpected-blob`` (not in this download),
        ``bad-chunk`` (not a chunk of a blob of that size), ``duplicate-chunk``, ``bad-digest`` (the
        blob begins again; after `MAX_ATTEMPTS` the download has `failed`).
        """
        partial = self._partials.get(part.digest)
        if partial is None:
            raise WireError("unexpected-blob", f"not in this download: {part.digest.hex()[:64]}")
        if partial.ref is self._failed:
            raise WireError("bad-digest", f"{partial.name}: given up")
        partial.check(part)
        self._hear((part.digest, part.index), now_s)
        if partial.arrived[part.index]:
            raise WireError("duplicate-chunk", f"{partial.name}: chunk {part.index}")
        partial.write(part.index, part.data)
        return None if partial.missing_chunks else self._finish(partial)

    def _finish(self, partial: PartialBlob) -> BlobRef:
        ref, data = partial.ref, partial.finish()
        if digest(data) == ref.digest:
            self._blobs[ref.digest] = data
            del self._open[ref.digest]
            return ref
        partial.begin()
        partial.failures += 1
        if partial.failures == MAX_ATTEMPTS:
            self._failed = ref
        attempt = f"attempt {partial.failures} of {MAX_ATTEMPTS}"
        raise WireError("bad-digest", f"{partial.name}: {attempt}")

    def _hear(self, key: _Key, now_s: float) -> None:
        """Learn from an arrival what is lost, and how long silence lasts on this link."""
        asked = self._asked.pop(key, None)
        self._lost.pop(key, None)
        if asked is not None and asked.once:
            for other, earlier in list(self._asked.items()) if self._ordered else []:
                if earlier.number > asked.number:
                    break
                self._lose(other)
            wait_s = min(2 * (now_s - self._heard_s), MAX_SLOW_LINK_RETRY_S)
            self._gap_s = max(wait_s / 2, self._gap_s / 2)
            self._usual_wait_s = max(self._retry_s, wait_s, self._usual_wait_s / 2)
            self._probes = 1
        elif asked is not None:
            self._probes = min(2 * self._probes, self._window)
        self._wait_s = self._usual_wait_s
        self._heard_s = self._silent_since_s = now_s

    def _lose(self, key: _Key) -> None:
        del self._asked[key]
        self._lost[key] = None

    def _fresh(self) -> Iterator[_Key]:
        for name, partial in self._open.items():
            while partial.next_index < partial.chunks:
                index = partial.next_index
                partial.next_index += 1
                partial.skip_arrived()
                yield name, index


def serve(
    fetch: Fetch,
    find: Callable[[bytes], bytes | None],
    chunk_bytes: int,
    limit_chunks: int = MAX_CHUNKS_PER_FETCH,
    has_room: Callable[[], bool] = lambda: True,
) -> Iterator[Chunk]:
    """The chunks that answer `fetch`, in its order, cut as they are drawn.

    `find` gives the blob of a digest, or None. One fetch costs at most `limit_chunks` look-ups and
    chunks, however much it asks for. What can be served is; then `WireError`, to be counted, says
    the first thing that was not: ``unknown-blob``, ``bad-want`` (chunks beyond the blob's end) or
    ``greedy-fetch`` (what is over the limit). `has_room` (see `Link`) is asked before each chunk;
    without room the answer ends with ``busy``, and the peer asks again when it has waited in vain.
    """
    refusals: list[WireError] = []
    room = limit_chunks
    for want in fetch.wants[:limit_chunks]:
        data = find(want.digest)
        end = want.first + want.count
        if data is None:
            refusals.append(WireError("unknown-blob", f"nobody holds {want.digest.hex()} here"))
        elif end > -(-len(data) // chunk_bytes):
            refusals.append(WireError("bad-want", f"no chunks {want.first} to {end - 1}"))
        else:
            for index in range(want.first, min(end, want.first + room)):
                if not has_room():
                    raise WireError("busy", "too many chunks wait to be sent")
                room -= 1
                yield chunk(want.digest, data, index, chunk_bytes)
    asked = sum(want.count for want in fetch.wants)
    if asked > limit_chunks:
        refusals.append(WireError("greedy-fetch", f"{asked} chunks, over {limit_chunks}"))
    if refusals:
        raise refusals[0]


def _ranges(keys: list[_Key]) -> list[Want]:
    """Keys as wants, in their order; consecutive chunks of a blob become one."""
    wants: list[Want] = []
    for name, index in keys:
        last = wants[-1] if wants else None
        if last and last.digest == name and last.first + last.count == index:
            wants[-1] = Want(name, last.first, last.count + 1)
        else:
            wants.append(Want(name, index, 1))
    return wants
