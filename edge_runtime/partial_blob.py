"""`PartialBlob`: a blob that is being put together from its chunks, in one buffer."""

from __future__ import annotations

import io

from edge_runtime.errors import WireError
from edge_runtime.messages import BlobRef, Chunk


class PartialBlob:
    """A blob that is being put together from chunks of `chunk_bytes`. Takes memory once it begins.

    `arrived` has one flag a chunk; `next_index` is the first chunk that was neither asked for nor
    arrived; `failures` counts how often the whole was not the blob.
    """

    def __init__(self, ref: BlobRef, chunk_bytes: int) -> None:
        self.ref = ref
        self.failures = 0
        self.chunks = ref.chunks(chunk_bytes)
        self._chunk_bytes = chunk_bytes
        self.begin()

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"blob {self.ref.digest.hex()[:8]}"

    def begin(self) -> None:
        """Start, or start again: nothing has arrived."""
        self.arrived = bytearray(self.chunks)
        self.missing_chunks = self.chunks
        self.missing_bytes = self.ref.size_bytes
        self.next_index = 0
        self._buffer: io.BytesIO | None = None

    def check(self, part: Chunk) -> None:
        """`WireError` unless `part` has the place and the size of one of the chunks."""
        begin = part.index * self._chunk_bytes
        size_bytes = min(self._chunk_bytes, self.ref.size_bytes - begin)
        if part.index >= self.chunks or len(part.data) != size_bytes:
            raise WireError(
                "bad-chunk",
                f"{self.name}: chunk {part.index} with {len(part.data)} bytes is none of "
                f"{self.ref.size_bytes} bytes in {self.chunks} chunks",
            )

    def write(self, index: int, data: bytes) -> None:
        """Take in a checked chunk that had not arrived."""
        if self._buffer is None:
            # BytesIO takes over this object, and getvalue() gives it back: there is no second copy.
            self._buffer = io.BytesIO(bytes(self.ref.size_bytes))
        self._buffer.seek(index * self._chunk_bytes)
        self._buffer.write(data)
        self.arrived[index] = True
        self.missing_chunks -= 1
        self.missing_bytes -= len(data)
        self.skip_arrived()

    def skip_arrived(self) -> None:
        """Move `next_index` past what has arrived."""
        while self.next_index < self.chunks and self.arrived[self.next_index]:
            self.next_index += 1

    def finish(self) -> bytes:
        """The whole, given away, once every chunk has arrived."""
        assert self._buffer is not None
        data, self._buffer = self._buffer.getvalue(), None
        return data
