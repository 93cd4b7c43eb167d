"""A codec's body as it is read: in pieces, from several places at a time.

A value's bytes are far apart in byte planes. Whoever reads every plane piece by piece needs memory
for the pieces alone, not for the body.
"""

from __future__ import annotations

from typing import Protocol

from edge_runtime.errors import WireError


class Cursor(Protocol):
    """A place in a body."""

    def read(self, size_bytes: int) -> bytes | memoryview:
        """The next bytes, exactly so many; `WireError` if there are fewer."""
        ...

    def end(self) -> None:
        """`WireError` unless the body ends here."""
        ...


class Body(Protocol):
    """Bytes that cursors read."""

    @property
    def size_bytes(self) -> int | None:
        """How long it is; None where only its end tells."""
        ...

    def at(self, start: int) -> Cursor:
        """A cursor of its own that begins at the byte `start`; `WireError` if it ends before."""
        ...


class Plain:
    """A body that is in memory."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.size_bytes = len(data)

    def at(self, start: int) -> Cursor:
        return _PlainCursor(self._data[start:])


class _PlainCursor:
    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def read(self, size_bytes: int) -> memoryview:
        piece, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        if len(piece) < size_bytes:
            raise WireError("bad-body", "the body ends too early")
        return piece

    def end(self) -> None:
        if len(self._rest):
            raise WireError("bad-body", f"expected the body to end {len(self._rest)} bytes before")


def check_length(body: Body, expected: int) -> None:
    """`WireError` if `body` is known to have other than the `expected` bytes."""
    if body.size_bytes is not None and body.size_bytes != expected:
        raise WireError("bad-body", f"expected {expected} bytes, got {body.size_bytes}")
