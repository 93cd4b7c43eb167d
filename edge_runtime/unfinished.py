"""`Unfinished`: what has come of blobs that are not built into contents yet.

It goes from one work to the next, and with a folder to the device's next life.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from edge_runtime.partial_files import PartialFiles
from edge_runtime.protocol.messages import BlobRef
from edge_runtime.protocol.partial_blob import PartialBlob


class Unfinished:
    """Blobs that have begun, and whole ones that were not used. Not thread-safe.

    Those of one work: `keep` lets the others go. Memory: what was put, no more.
    """

    def __init__(self, files: PartialFiles | None = None) -> None:
        self._files = files
        self._partials: dict[bytes, PartialBlob] = {}
        self._whole: dict[bytes, bytes] = {}

    def put(self, partials: Iterable[PartialBlob], whole: dict[bytes, bytes]) -> None:
        """Hold these for the next work."""
        self._partials |= {part.ref.digest: part for part in partials if part.begun}
        self._whole |= whole

    def keep(self, names: Collection[bytes]) -> None:
        """Hold nothing but blobs of these digests."""
        self._partials = {name: part for name, part in self._partials.items() if name in names}
        self._whole = {name: data for name, data in self._whole.items() if name in names}
        if self._files is not None:
            self._files.keep(names)

    def take_whole(self, ref: BlobRef, chunk_bytes: int) -> bytes | None:
        """A blob that came whole before, or None."""
        data = self._whole.pop(ref.digest, None)
        file = self._files.open(ref, chunk_bytes) if self._files is not None else None
        return file.whole() if data is None and file is not None else data

    def take(self, ref: BlobRef, chunk_bytes: int) -> PartialBlob:
        """A blob with what came of it before."""
        partial = self._partials.pop(ref.digest, None)
        if partial is not None and partial.fits(ref, chunk_bytes):
            return partial
        file = self._files.open(ref, chunk_bytes) if self._files is not None else None
        partial = PartialBlob(ref, chunk_bytes, file)
        partial.resume()
        return partial
