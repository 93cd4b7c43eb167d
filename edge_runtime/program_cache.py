"""`ProgramCache`: programs on a device's disk, so that each travels once in the device's life."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import DIGEST_BYTES

log = logging.getLogger("flexmoe.device")

DEFAULT_BYTES = 64 << 20
_ABANDONED_S = 86_400.0  # a file that is being written is younger


def cache_root() -> Path:
    """The folder `FLEXMOE_CACHE`, else ours in the user's cache folder."""
    named = os.environ.get("FLEXMOE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "flexmoe"


def default_folder(federation: str, client: str) -> Path:
    """Where a device keeps its programs."""
    return cache_root() / "devices" / federation / client


class ProgramCache:
    """Files named by their digests in hex, at most `capacity_bytes` of them.

    The least recently used leave. A file is checked by its digest when it is read; a damaged one is
    removed. A folder that cannot be used is told in the log, and the device goes on without. Other
    processes may use the folder at the same time.
    """

    def __init__(self, folder: Path, capacity_bytes: int = DEFAULT_BYTES) -> None:
        self._folder = folder
        self._capacity_bytes = capacity_bytes
        self._sizes: dict[bytes, int] = {}  # by digest, the least recently used first
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._look()
        except OSError as error:
            self._warn(error)

    @property
    def names(self) -> list[bytes]:
        """The digests of all files, the least recently used first."""
        return list(self._sizes)

    def __contains__(self, name: object) -> bool:
        return name in self._sizes

    def get(self, name: bytes) -> bytes | None:
        """The program of this digest, or None; it becomes the most recently used."""
        if name not in self._sizes:
            return None
        path = self._path(name)
        try:
            data = path.read_bytes()
            if digest(data) == name:
                self._sizes[name] = self._sizes.pop(name)
                os.utime(path)
                return data
            log.warning("the program in %s is damaged; it is removed", path)
            path.unlink()
        except FileNotFoundError:
            log.info("the program in %s was removed", path)
        except OSError as error:
            self._warn(error)
        del self._sizes[name]
        return None

    def put(self, name: bytes, data: bytes) -> None:
        """Keep a program under its digest, if it fits at all."""
        if name in self._sizes or len(data) > self._capacity_bytes:
            return
        path = self._path(name)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._make_room(len(data))
            part.write_bytes(data)
            os.replace(part, path)
            self._sizes[name] = len(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            self._warn(error)

    def _look(self) -> None:
        """Learn what is in the folder; what a process left half-written a day ago goes."""
        found = []
        for path in self._folder.iterdir():
            name = _digest_in(path.name)
            if not path.is_file() or not (name or path.suffix == ".part"):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                facts = path.stat()
                if name:
                    found.append((facts.st_mtime_ns, name, facts.st_size))
                elif time.time() - facts.st_mtime > _ABANDONED_S:
                    path.unlink()
        self._sizes = {name: size_bytes for _, name, size_bytes in sorted(found)}
        self._make_room(0)

    def _make_room(self, size_bytes: int) -> None:
        used_bytes = sum(self._sizes.values())
        for name in self.names:
            if used_bytes + size_bytes <= self._capacity_bytes:
                return
            used_bytes -= self._sizes.pop(name)
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: bytes) -> Path:
        return self._folder / name.hex()

    def _warn(self, error: OSError) -> None:
        reason = error.strerror or error
        log.warning("programs cannot be kept in %s (%s)", self._folder, reason)


def _digest_in(name: str) -> bytes:
    """The digest that a file is named by, or nothing."""
    try:
        found = bytes.fromhex(name)
    except ValueError:
        return b""
    return found if len(found) == DIGEST_BYTES and found.hex() == name else b""
