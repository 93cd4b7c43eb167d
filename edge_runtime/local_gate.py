"""The gate rows that never leave this device (`gate.mode = "local"`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.own_file import OwnFile
from edge_runtime.tensor_blob import pack_tensors, unpack_tensors

Row = NDArray[np.float32]
_Versions = dict[int, list[tuple[int, Row]]]  # by expert: rounds and the rows after them


class LocalGate:
    """Rows by expert, for one session; in `path` too, if there is one, to survive a restart.

    Of each expert it keeps the rows after the two last rounds that trained it: a server that was
    killed before its checkpoint asks for the last round again, and that must start where it did.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file = OwnFile(path, "local gate")
        self._session = ""
        self._rows: _Versions = {}

    def enter(self, session: str) -> None:
        """Go on with what is kept of `session`, or begin with nothing."""
        if session != self._session:
            self._session, self._rows = session, self._file.load(session, _unpack) or {}

    def rows(self, number: int) -> dict[int, Row]:
        """The rows that round `number` starts from: the newest of earlier rounds, by expert."""
        found = {}
        for expert, versions in self._rows.items():
            earlier = [row for trained, row in versions if trained < number]
            if earlier:
                found[expert] = earlier[-1]
        return found

    def keep(self, number: int, rows: Mapping[int, Row]) -> None:
        """Remember the rows after round `number`."""
        for expert, row in rows.items():
            versions = [(n, old) for n, old in self._rows.get(expert, []) if n < number]
            self._rows[expert] = [*versions, (number, row.copy())][-2:]
        self._file.save(self._session, _pack(self._rows))


def _pack(rows: _Versions) -> bytes:
    return pack_tensors(
        {f"{expert}@{n}": row for expert, versions in rows.items() for n, row in versions}
    )


def _unpack(packed: bytes) -> _Versions:
    rows: _Versions = {}
    for name, row in unpack_tensors(packed).items():
        expert, number = map(int, name.split("@"))
        rows.setdefault(expert, []).append((number, row))
    return {expert: sorted(v, key=lambda pair: pair[0]) for expert, v in rows.items()}
