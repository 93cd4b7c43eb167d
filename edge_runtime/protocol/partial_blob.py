"""`PartialBlob`: a blob that is being put together from its chunks, in one buffer."""

from __future__ import annotations

import io

from edge_runtime.errors import WireError
from edge_runtime.partial_files import PartialFile
from edge_runtime.protocol.messages import BlobRef, Chunk


class PartialBlob:
    """A blob that is being put together from chunks of `chunk_bytes`. Takes memory once it begins.

    `arrived` has one flag a chunk; `next_index` is the first chunk that was neither asked for nor
    arrived; `failures` counts how often the whole was not the blob. With a `file` the chunks are
    kept there too.
    """

    def __init__(self, ref: BlobRef, chunk_bytes: int, file: PartialFile | None = None) -> None:
        self.ref = ref
        self.failures = 0
        self.chunks = ref.chunks(chunk_bytes)
        self._chunk_bytes = chunk_bytes
        self._file = file
        self._reset()

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"blob {self.ref.digest.hex()[:8]}"

    @property
    def begun(self) -> bool:
        """Whether it takes memory: something has arrived, and the whole was not given away."""
        return self._buffer is not None

    def fits(self, ref: BlobRef, chunk_bytes: int) -> bool:
        """Whether it is this blob, cut so."""
        return self.ref == ref and self._chunk_bytes == chunk_bytes

    def begin(self) -> None:
        """Start again: nothing has arrived."""
        self._reset()
        if self._file is not None:
            self._file.remove()

    def resume(self) -> None:
        """Take in what the file has from before; all of it is something that is not the blob."""
        if self._file is None:
            return
        for index, data in self._file.chunks():
            self._take_in(index, data)
        if not self.missing_chunks:
            self.begin()

    def ask_again(self) -> None:
        """Whoever was asked before, nobody is now: `next_index` is the first that is missing."""
        self.next_index = 0
        self.skip_arrived()

    def _reset(self) -> None:
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
        self._take_in(index, data)
        if self._file is not None:
            self._file.write(index, data)

    def _take_in(self, index: int, data: bytes) -> None:
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
