"""What codecs lost of a device's updates, to be sent with later ones (error feedback).

Seide et al. 2014 and Karimireddy et al. 2019: what a biased codec leaves out of one update is added
to the next, so that in the end all of it arrives. Kept by kind (``backbone``, ``expert:<e>``, and
``gate:<e>`` for the gate's row of an expert), so what belongs to an expert waits until the device
trains that expert again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.own_file import OwnFile
from edge_runtime.tensor_blob import pack_tensors, unpack_tensors

Lost = Mapping[str, NDArray[np.float32]]

DEFAULT_BYTES = 16 << 20
_NOTHING: Lost = {}


class _Residual(NamedTuple):
    """Of one kind: the last round that counts, and what was left before and after it."""

    number: int
    before: Lost
    after: Lost

    @property
    def size_bytes(self) -> int:
        return sum(value.nbytes for lost in (self.before, self.after) for value in lost.values())


class Residuals:
    """Residuals of one session; in `path` too, if there is one, to survive a restart.

    They count once the server has received the update that they are of. Of each kind one step back
    is kept as well: a server that was killed before its checkpoint asks for the last round again,
    and that must start where it did. At rest they take at most `capacity_bytes`: the kinds that
    were trained the longest time ago leave.
    """

    def __init__(self, path: Path | None = None, capacity_bytes: int = DEFAULT_BYTES) -> None:
        self._file = OwnFile(path, "residuals")
        self._capacity_bytes = capacity_bytes
        self._session = ""
        self._kept: dict[str, _Residual] = {}
        self._proposed: tuple[int, dict[str, Lost]] | None = None

    @property
    def used_bytes(self) -> int:
        """The sizes of all that counts, with the steps back."""
        return sum(kept.size_bytes for kept in self._kept.values())

    def enter(self, session: str) -> None:
        """Go on with what is kept of `session`, or begin with nothing."""
        if session != self._session:
            self._session, self._proposed = session, None
            self._kept = self._file.load(session, _unpack) or {}

    def of(self, kind: str, number: int) -> Lost:
        """What round `number` has to add to its update of `kind`; empty if there is nothing.

        However long ago it was lost, it counts in full: here is the one place to change that.
        """
        kept = self._kept.get(kind)
        if kept is None:
            return _NOTHING
        return kept.after if kept.number < number else kept.before

    def propose(self, number: int, lost: Mapping[str, Lost]) -> None:
        """Round `number` lost this, by kind: it counts when `received` is called."""
        self._proposed = (number, dict(lost))

    def received(self) -> None:
        """The server has the update whose losses were proposed last."""
        if self._proposed is None:
            return
        (number, lost), self._proposed = self._proposed, None
        for kind, after in lost.items():
            self._kept[kind] = _Residual(number, self.of(kind, number), after)
        self._shrink()
        if lost:
            self._file.save(self._session, _pack(self._kept))

    def _shrink(self) -> None:
        used_bytes = self.used_bytes
        for kind in sorted(self._kept, key=lambda kind: (self._kept[kind].number, kind)):
            if used_bytes <= self._capacity_bytes:
                return
            used_bytes -= self._kept.pop(kind).size_bytes


def _pack(kept: Mapping[str, _Residual]) -> list[list[object]]:
    return [
        [kind, item.number, pack_tensors(item.before), pack_tensors(item.after)]
        for kind, item in kept.items()
    ]


def _unpack(packed: Any) -> dict[str, _Residual]:
    return {
        str(kind): _Residual(int(number), unpack_tensors(before), unpack_tensors(after))
        for kind, number, before, after in packed
    }
