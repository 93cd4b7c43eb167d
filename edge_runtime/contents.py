"""`Contents`: what a device holds: parts in memory, programs on its disk too."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from edge_runtime.errors import FlexmoeError
from edge_runtime.program_cache import ProgramCache
from edge_runtime.protocol.blob import BlobShelf
from edge_runtime.protocol.messages import MAX_HELD
from edge_runtime.unfinished import Unfinished

PROGRAM = "program"


class Contents:
    """Contents by digest, and what the server was told of them. Not thread-safe.

    Of each part there is one version: a newer one takes its place. When memory is full, what was
    used the longest time ago leaves.
    """

    def __init__(
        self,
        shelf: BlobShelf,
        programs: ProgramCache | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.unfinished = unfinished or Unfinished()  # of contents that are still to come
        self._shelf = shelf
        self._programs = programs
        self._versions: dict[str, bytes] = {}  # digests by kind
        self._told: set[bytes] = set()

    @property
    def capacity_bytes(self) -> int:
        """How much fits into the memory for contents."""
        return self._shelf.capacity_bytes

    def __contains__(self, name: object) -> bool:
        return name in self._shelf or (self._programs is not None and name in self._programs)

    def get(self, name: bytes) -> bytes | None:
        """The content of this digest, or None; one from the disk is in memory then.

        `FlexmoeError` if that has no room.
        """
        data = self._shelf.get(name)
        if data is None and self._programs is not None:
            data = self._programs.get(name)
            if data is not None:
                self._shelf.put(data)
        return data

    def put(self, kind: str, name: bytes, data: bytes) -> None:
        """Keep a content under its digest, programs on the disk too.

        `FlexmoeError` if memory has no room for it.
        """
        before = self._versions.get(kind)
        self.use(kind, name)  # first: what it replaces makes room
        try:
            self._shelf.put(data)
        except FlexmoeError:
            self._versions.pop(kind, None)
            if before is not None:
                self._told.add(before)  # it is gone, and nothing took its place
            raise
        if kind == PROGRAM and self._programs is not None:
            self._programs.put(name, data)

    def use(self, kind: str, name: bytes) -> None:
        """This content is the version of `kind` from now on: the one before it goes."""
        if kind == PROGRAM:
            return
        before = self._versions.get(kind)
        self._versions[kind] = name
        if before is not None and before not in self._versions.values():
            self._shelf.drop(before)
            self._told.discard(before)  # the server knows that a new version takes its place

    def drop(self, name: bytes) -> None:
        """Let a content go from memory, if it is there."""
        self._shelf.drop(name)
        self._versions = {kind: held for kind, held in self._versions.items() if held != name}

    def hold(self, names: Iterable[bytes]) -> AbstractContextManager[None]:
        """Keep these contents, present or still to come, in memory while the block runs."""
        return self._shelf.hold(names)

    def tell_held(self) -> list[bytes]:
        """The digests of what is held, for the server; of too many the most recently used."""
        on_disk = self._programs.names if self._programs is not None else []
        names = list(dict.fromkeys([*on_disk, *self._shelf.names]))[-MAX_HELD:]
        self._told = set(names)
        return names

    def tell_dropped(self, expected: Iterable[bytes]) -> list[bytes]:
        """The digests of what the server believes to be held, and is not; each is told once.

        It believes in what it was told of last, and in what is `expected`.
        """
        self._told.update(expected)
        names = sorted(name for name in self._told if name not in self)[:MAX_HELD]
        self._told.difference_update(names)
        return names
