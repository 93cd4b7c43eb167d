"""The gate rows that never leave this device (`gate.mode = "local"`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_runtime.codec import RawCodec
from edge_runtime.errors import WireError

log = logging.getLogger("flexmoe.device")

Row = NDArray[np.float32]


class LocalGate:
    """Rows by expert, for one session; in `path` too, if there is one, to survive a restart.

    Of each expert it keeps the rows after the two last rounds that trained it: a server that was
    killed before its checkpoint asks for the last round again, and that must start where it did.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._session = ""
        self._rows: dict[int, list[tuple[int, Row]]] = {}

    def enter(self, session: str) -> None:
        """Go on with what is kept of `session`, or begin with nothing."""
        if session != self._session:
            self._session, self._rows = session, self._load(session)

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
        self._save()

    def _load(self, session: str) -> dict[int, list[tuple[int, Row]]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            raw = msgpack.unpackb(self._path.read_bytes())
            if raw["session"] != session:
                return {}
            rows: dict[int, list[tuple[int, Row]]] = {}
            for name, row in RawCodec().decode(raw["rows"]).items():
                expert, number = map(int, name.split("@"))
                rows.setdefault(expert, []).append((number, row))
            return {expert: sorted(v, key=lambda pair: pair[0]) for expert, v in rows.items()}
        except (OSError, ValueError, KeyError, TypeError, WireError) as error:
            log.warning(
                "the local gate in %s cannot be read (%s); it begins anew", self._path, error
            )
            return {}

    def _save(self) -> None:
        if self._path is None:
            return
        tensors = {
            f"{expert}@{number}": row
            for expert, versions in self._rows.items()
            for number, row in versions
        }
        data = msgpack.packb({"session": self._session, "rows": RawCodec().encode(tensors)})
        part = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            os.replace(part, self._path)
        except OSError as error:
            log.warning("the local gate cannot be kept in %s: %s", self._path, error.strerror)
