"""What bytes are booked under: kinds, and which part of an update each byte belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import BlobRef, Chunk, Message

MESSAGE_KIND = "control"
_KIND = re.compile(r"program|backbone|gate|expert:[0-9]{1,6}|control|connection")


def valid_kind(text: str) -> bool:
    """Whether bytes may be booked under this kind."""
    return _KIND.fullmatch(text) is not None


class UpdateKinds:
    """Which part of each client's update each byte belongs to, for booking its chunks."""

    def __init__(self) -> None:
        self._sections: dict[str, tuple[bytes, list[tuple[str, int]]]] = {}

    def learn(self, client: str, update: BlobRef, sections: Sequence[tuple[str, int]]) -> None:
        """Remember a client's update, in place of its last one: the kinds and sizes of sections.

        `WireError` if the sizes are not those of parts of the update: nothing could be booked then.
        """
        sizes = [size_bytes for _, size_bytes in sections]
        if min(sizes, default=0) < 0 or sum(sizes) != update.size_bytes:
            raise WireError("bad-sections", f"{sum(sizes)} bytes of {update.size_bytes}")
        self._sections[client] = (update.digest, list(sections))

    def shares(self, client: str, message: Message, chunk_bytes: int) -> list[tuple[str, int]]:
        """What a message's bytes are booked under: kinds, and how many bytes of the blob each."""
        digest, sections = self._sections.get(client, (b"", []))
        if not isinstance(message, Chunk) or message.digest != digest:
            return []
        begin = message.index * chunk_bytes
        end, at, shares = begin + len(message.data), 0, []
        for kind, size_bytes in sections:
            inside = min(end, at + size_bytes) - max(begin, at)
            if inside > 0:
                shares.append((kind, inside))
            at += size_bytes
        return shares

    def forget(self) -> None:
        """Drop all updates of all clients."""
        self._sections.clear()
