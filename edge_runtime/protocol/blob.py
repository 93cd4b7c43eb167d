"""Blobs: bytes named by their content digest, cut into chunks, and kept on a bounded shelf."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from edge_runtime.errors import ConfigError, FlexmoeError, WireError
from edge_runtime.protocol.messages import DIGEST_BYTES, BlobRef, Chunk


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """The name of a blob: BLAKE2b of its bytes, `DIGEST_BYTES` long."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def make_ref(data: bytes) -> BlobRef:
    """The reference that a message carries for `data`; `WireError` if it is empty or too long."""
    return BlobRef(digest(data), len(data))


def kind_of_expert(expert: int) -> str:
    """The kind of expert `expert`'s blobs, such as ``expert:3``."""
    return f"expert:{expert}"


def chunk(name: bytes, data: bytes, index: int, chunk_bytes: int) -> Chunk:
    """Chunk `index` of the blob `data`, whose digest is `name`; `WireError` if it has none such."""
    count = -(-len(data) // chunk_bytes)
    if not 0 <= index < count:
        raise WireError("bad-want", f"chunk {index} of a blob of {count} chunks")
    start = index * chunk_bytes
    return Chunk(name, index, data[start : start + chunk_bytes])


class BlobShelf:
    """Blobs in memory by digest, at most `capacity_bytes` of them.

    When a new blob needs room, the blobs that were put or got the longest time ago leave, except
    the pinned ones: those that are in use. Not thread-safe: a shelf belongs to one thread.
    """

    def __init__(self, capacity_bytes: int) -> None:
        if capacity_bytes <= 0:
            raise ConfigError(f"a blob shelf holds at least 1 byte, not {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self._blobs: OrderedDict[bytes, bytes] = OrderedDict()  # the least recently used first
        self._pins: Counter[bytes] = Counter()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """The sizes of all blobs on the shelf, together; never above `capacity_bytes`."""
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._blobs)

    def __contains__(self, name: object) -> bool:
        return name in self._blobs

    def put(self, data: bytes) -> bytes:
        """Keep `data`, and say its digest.

        `FlexmoeError`, and nothing has changed, if it does not fit beside the pinned blobs.
        """
        name = digest(data)
        if name in self._blobs:
            self._blobs.move_to_end(name)
            return name
        self._make_room(len(data))
        self._blobs[name] = data
        self._used_bytes += len(data)
        return name

    def get(self, name: bytes) -> bytes | None:
        """The blob of this digest, or None; it becomes the most recently used."""
        if name in self._blobs:
            self._blobs.move_to_end(name)
        return self._blobs.get(name)

    def drop(self, name: bytes) -> None:
        """Let a blob go, if it is there, pinned or not."""
        if name in self._blobs:
            self._used_bytes -= len(self._blobs.pop(name))

    @property
    def names(self) -> list[bytes]:
        """The digests of all blobs, the least recently used first."""
        return list(self._blobs)

    def pin(self, names: Iterable[bytes]) -> None:
        """Never evict these blobs, present or still to come, until `unpin` was called as often."""
        self._pins.update(names)

    def unpin(self, names: Iterable[bytes]) -> None:
        """Undo one `pin` of each; `KeyError` for a digest that is not pinned."""
        for name in names:
            if name not in self._pins:
                raise KeyError(f"blob {name.hex()} is not pinned")
            self._pins[name] -= 1
            if not self._pins[name]:
                del self._pins[name]

    def trim(self, size_bytes: int) -> None:
        """Let the blobs used the longest time ago leave until `size_bytes` are used, or only
        pinned ones are left."""
        for name in [name for name in self._blobs if name not in self._pins]:
            if self._used_bytes <= size_bytes:
                return
            self._used_bytes -= len(self._blobs.pop(name))

    @contextmanager
    def hold(self, names: Iterable[bytes]) -> Iterator[None]:
        """Pin these blobs while the block runs."""
        held = list(names)
        self.pin(held)
        try:
            yield
        finally:
            self.unpin(held)

    def _make_room(self, size_bytes: int) -> None:
        pinned_bytes = sum(len(self._blobs[name]) for name in self._pins if name in self._blobs)
        if pinned_bytes + size_bytes > self.capacity_bytes:
            raise FlexmoeError(
                f"a blob of {size_bytes} bytes does not fit: the shelf holds {self.capacity_bytes} "
                f"bytes, {pinned_bytes} of them in use; enlarge it or assign fewer experts"
            )
        self.trim(self.capacity_bytes - size_bytes)
