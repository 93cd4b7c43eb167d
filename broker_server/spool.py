"""Updates on disk until their round closes, so that the server's memory does not grow with clients.

They are read back in the order of client names: a sum that does not depend on who answered first.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from edge_runtime.errors import FlexmoeError


class Spool:
    """A folder of updates by client."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, client: str, data: bytes) -> None:
        """Keep a client's update; `FlexmoeError` if the disk refuses it."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._path(client).write_bytes(data)
        except OSError as error:
            raise FlexmoeError(
                f"cannot keep the updates in {self._directory}: {error.strerror}; "
                "free some space or choose another --out"
            ) from None

    def get(self, client: str) -> bytes:
        """The update that `put` kept; `FlexmoeError` if the disk does not give it back."""
        try:
            return self._path(client).read_bytes()
        except OSError as error:
            raise FlexmoeError(
                f"cannot read the update of {client} back from {self._directory}: "
                f"{error.strerror}; check that disk or choose another --out"
            ) from None

    def clear(self) -> None:
        """Forget all updates; `FlexmoeError` if they cannot be removed."""
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._directory)
        except OSError as error:
            raise FlexmoeError(
                f"cannot remove the updates in {self._directory}: {error.strerror}; "
                "check who may write there, or choose another --out"
            ) from None

    def _path(self, client: str) -> Path:
        # In hex: a client may be called "..", and some disks take "A" and "a" for one name.
        return self._directory / client.encode().hex()
