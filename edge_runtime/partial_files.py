"""`PartialFiles`: blobs on disk while they come, so that a killed device does not begin again.

A file is named by its blob's digest and chunk size. It holds a seal a chunk (a short digest; zeros:
the chunk is not here), then the blob's bytes. A chunk is sealed once it is written, so whatever
ends the process loses at most the chunk that was being written.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import BlobRef

log = logging.getLogger("flexmoe.device")

MIN_BYTES = 1 << 20  # smaller blobs are not worth a file
MAX_AGE_S = 24 * 3600.0
_SEAL_BYTES = 8
_SUFFIX = ".chunks"


class PartialFile:
    """The chunks of one blob that have come. Two processes may write the same one.

    An error is told in the log once; what comes after it is not kept.
    """

    def __init__(self, path: Path, ref: BlobRef, chunk_bytes: int) -> None:
        self._path = path
        self._ref = ref
        self._chunk_bytes = chunk_bytes
        self._begin = _SEAL_BYTES * ref.chunks(chunk_bytes)  # of the blob's bytes
        self._usable = True

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self._begin + self._ref.size_bytes

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The chunks that are here undamaged, with their places; one is in memory at a time."""
        try:
            with self._path.open("rb") as file:
                seals = file.read(self._begin)
                for index, seal in enumerate(_pieces(seals)):
                    if seal != bytes(_SEAL_BYTES):
                        begin = index * self._chunk_bytes
                        file.seek(self._begin + begin)
                        data = file.read(min(self._chunk_bytes, self._ref.size_bytes - begin))
                        if _seal(data) == seal:
                            yield index, data
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)

    def whole(self) -> bytes | None:
        """The blob, if all of it is here."""
        try:
            with self._path.open("rb") as file:
                seals = file.read(self._begin)
                if len(seals) < self._begin or bytes(_SEAL_BYTES) in _pieces(seals):
                    return None
                data = file.read(self._ref.size_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(error)
            return None
        return data if digest(data) == self._ref.digest else None

    def write(self, index: int, data: bytes) -> None:
        """Keep a chunk."""
        if not self._usable:
            return
        try:
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                file.seek(self._begin + index * self._chunk_bytes)
                file.write(data)
                file.flush()
                file.seek(index * _SEAL_BYTES)
                file.write(_seal(data))
        except OSError as error:
            self._give_up(error)

    def remove(self) -> None:
        """Keep nothing of the blob."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        _warn(self._path.parent, error)


class PartialFiles:
    """A folder of partial files, at most `capacity_bytes` of them.

    Files a day old go, and to make room those written the longest time ago, except those of blobs
    in use. A folder that cannot be used is told in the log, and the device goes on without. Other
    processes may use the folder at the same time.
    """

    def __init__(
        self, folder: Path, capacity_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock`: seconds since the epoch, as the ages of files are."""
        self._folder = folder
        self._capacity_bytes = capacity_bytes
        self._clock = clock
        self._used: dict[Path, PartialFile] = {}  # by this process
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
        except OSError as error:
            _warn(folder, error)

    def open(self, ref: BlobRef, chunk_bytes: int) -> PartialFile | None:
        """The file of a blob; None if the blob is small, or has no room."""
        if ref.size_bytes < MIN_BYTES:
            return None
        path = self._folder / f"{ref.digest.hex()}.{chunk_bytes}{_SUFFIX}"
        if (known := self._used.get(path)) is not None:
            return known
        file = PartialFile(path, ref, chunk_bytes)
        self._used[path] = file
        try:
            if self._make_room():
                return file
        except OSError as error:
            _warn(self._folder, error)
        del self._used[path]
        return None

    def keep(self, names: Collection[bytes]) -> None:
        """Remove what this process wrote of blobs that are not among `names`."""
        wanted = {name.hex() for name in names}
        for path in [path for path in self._used if path.name.partition(".")[0] not in wanted]:
            self._used.pop(path).remove()

    def _make_room(self) -> bool:
        """Let others' files go until those in use fit; whether they do."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue  # another process removed it
            if path in self._used:
                continue
            if self._clock() - facts.st_mtime > MAX_AGE_S:
                path.unlink(missing_ok=True)
            else:
                found.append((facts.st_mtime_ns, path, facts.st_size))
        room = self._capacity_bytes - sum(file.size_bytes for file in self._used.values())
        room -= sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if room >= 0:
                break
            path.unlink(missing_ok=True)
            room += size
        return room >= 0


def _seal(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_SEAL_BYTES).digest()


def _pieces(seals: bytes) -> list[bytes]:
    return [seals[i : i + _SEAL_BYTES] for i in range(0, len(seals), _SEAL_BYTES)]


def _warn(folder: Path, error: OSError) -> None:
    log.warning("blobs that have begun cannot be kept in %s (%s)", folder, error.strerror or error)
