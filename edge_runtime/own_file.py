"""`OwnFile`: what a device keeps of one session, to survive a restart."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from edge_runtime.errors import WireError
from edge_runtime.protocol.blob import digest

log = logging.getLogger("flexmoe.device")

Kept = TypeVar("Kept")


class OwnFile:
    """One file, written whole or not at all; without a path nothing is kept.

    A file that cannot be read or written is told in the log, and the device goes on without.
    """

    def __init__(self, path: Path | None, what: str) -> None:
        """`what` the file holds, for messages."""
        self._path = path
        self._what = what

    def load(self, session: str, read: Callable[[Any], Kept]) -> Kept | None:
        """What `save` kept of `session`, as `read` understands it; else None."""
        if self._path is None or not self._path.exists():
            return None
        try:
            raw = msgpack.unpackb(self._path.read_bytes())
            if raw["session"] != session:
                return None
            if digest(raw["kept"]) != raw["digest"]:
                raise ValueError("it is damaged")
            return read(msgpack.unpackb(raw["kept"]))
        except (OSError, ValueError, KeyError, TypeError, WireError) as error:
            log.warning(
                "the %s in %s cannot be read (%s); it begins anew", self._what, self._path, error
            )
            return None

    def save(self, session: str, kept: object) -> None:
        """Keep `kept`, which msgpack can pack, in place of what was kept before."""
        if self._path is None:
            return
        packed = msgpack.packb(kept)
        whole = {"session": session, "digest": digest(packed), "kept": packed}
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgpack.packb(whole))
            os.replace(part, self._path)
        except OSError as error:
            log.warning("the %s cannot be kept in %s: %s", self._what, self._path, error.strerror)
