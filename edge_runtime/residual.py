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
_Proposal = tuple[int, dict[str, Lost]]  # a round, and what its update lost by kind

DEFAULT_BYTES = 16 << 20
_NOTHING: Lost = {}


class _Residual(NamedTuple):
    """Of one kind: the last round of it that counts, and what was left before and after it."""

    number: int
    before: Lost
    after: Lost

    @property
    def size_bytes(self) -> int:
        return sum(value.nbytes for lost in (self.before, self.after) for value in lost.values())


class Residuals:
    """Residuals of one session; in `path` too, if there is one, to survive a restart.

    They count once the update that they are of is in the model: only the server knows, and tells
    with the next work. Of each kind one step back is kept as well, for a server that goes on from
    an older checkpoint. What counts takes at most `capacity_bytes`: the kinds that were trained
    the longest time ago leave. What the last update lost is kept beside it.
    """

    def __init__(self, path: Path | None = None, capacity_bytes: int = DEFAULT_BYTES) -> None:
        self._file = OwnFile(path, "residuals")
        self._capacity_bytes = capacity_bytes
        self._session = ""
        self._kept: dict[str, _Residual] = {}
        self._proposed: _Proposal | None = None

    @property
    def used_bytes(self) -> int:
        """The sizes of all that counts, with the steps back."""
        return sum(kept.size_bytes for kept in self._kept.values())

    def enter(self, session: str) -> None:
        """Go on with what is kept of `session`, or begin with nothing."""
        if session != self._session:
            self._session = session
            self._kept, self._proposed = self._file.load(session, _unpack) or ({}, None)

    def settle(self, counted: int) -> None:
        """The last update of this device that is in the model is that of round `counted`.

        So what was proposed for that round counts from now on, and for any other never will.
        """
        for kind, kept in list(self._kept.items()):
            if kept.number > counted:
                self._kept[kind] = _Residual(counted, _NOTHING, kept.before)
        proposed, self._proposed = self._proposed, None
        if proposed is not None and proposed[0] == counted:
            for kind, after in proposed[1].items():
                self._kept[kind] = _Residual(counted, self.of(kind), after)
            self._shrink()

    def of(self, kind: str) -> Lost:
        """What the next update of `kind` has to add; empty if there is nothing.

        However long ago it was lost, it counts in full: here is the one place to change that.
        """
        kept = self._kept.get(kind)
        return _NOTHING if kept is None else kept.after

    def propose(self, number: int, lost: Mapping[str, Lost]) -> None:
        """Round `number` lost this, by kind: `settle` says whether it counts."""
        self._proposed = (number, dict(lost))
        if lost or self._kept:
            # Before the update is on its way: a restarted device must know it.
            self._file.save(self._session, _pack(self._kept, self._proposed))

    def _shrink(self) -> None:
        used_bytes = self.used_bytes
        for kind in sorted(self._kept, key=lambda kind: (self._kept[kind].number, kind)):
            if used_bytes <= self._capacity_bytes:
                return
            used_bytes -= self._kept.pop(kind).size_bytes


def _pack(kept: Mapping[str, _Residual], proposed: _Proposal) -> dict[str, object]:
    number, lost = proposed
    return {
        "kept": [
            [kind, item.number, pack_tensors(item.before), pack_tensors(item.after)]
            for kind, item in kept.items()
        ],
        "proposed": [number, [[kind, pack_tensors(after)] for kind, after in lost.items()]],
    }


def _unpack(packed: Any) -> tuple[dict[str, _Residual], _Proposal | None]:
    kept = {
        str(kind): _Residual(int(number), unpack_tensors(before), unpack_tensors(after))
        for kind, number, before, after in packed["kept"]
    }
    number, lost = packed["proposed"]
    return kept, (int(number), {str(kind): unpack_tensors(after) for kind, after in lost})
