"""A device's turn: leave to compute, where several emulated devices share one host's cores.

Where nobody emulates there is nothing to wait for: `NoTurn`. Else the run's turnstile
(`device_profiles/emulation/turnstile.py`) gives turns over a Unix socket. The device connects and
says its name and a newline; then a request is one byte: `w` (work), `t` (train) or `o` (over). The
answer to the first two is `g`, when the turn has come. A connection that ends is over.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from edge_runtime.errors import EmulationError

Phase = Literal["work", "train"]
"""`work`: decode, load, code. `train`: steps and tests, whose speed is that of matrix products."""

REQUESTS: dict[Phase, bytes] = {"work": b"w", "train": b"t"}
OVER = b"o"
GRANTED = b"g"
LOOK_S = 0.05
"""How often a device that waits looks at what else there is to do."""


class Turn(Protocol):
    """Asked for before each phase, and over when there is nothing more to compute."""

    @property
    def waited_s(self) -> float:
        """Seconds of waiting until now, in all."""
        ...

    def begin(self, phase: Phase, idle: Callable[[], bool]) -> bool:
        """Wait until `phase` may begin; the phase before is over with that.

        Calls `idle` now and then; when that is true, or raises, the wait is given up, and all is
        over: False.
        """
        ...

    def over(self) -> None:
        """There is nothing to compute for now."""
        ...

    def close(self) -> None:
        """There never will be."""
        ...


class NoTurn:
    """Everything may begin at once."""

    waited_s = 0.0

    def begin(self, phase: Phase, idle: Callable[[], bool]) -> bool:
        return True

    def over(self) -> None:
        pass

    def close(self) -> None:
        pass


class SocketTurn:
    """Turns that a turnstile gives, which listens at `path` and knows this device as `name`."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._socket: socket.socket | None = None
        self._waited_s = 0.0

    @property
    def waited_s(self) -> float:
        return self._waited_s

    def begin(self, phase: Phase, idle: Callable[[], bool]) -> bool:
        """Raises `EmulationError` if there is no turnstile, or it does not know this device."""
        began_s, granted = time.monotonic(), False
        try:
            if self._socket is None:
                self._socket = self._connect()
            self._socket.sendall(REQUESTS[phase])
            granted = self._wait(self._socket, idle)
        except OSError as error:
            raise EmulationError(
                f"no turn to compute from {self._path}: {error}; is the run that emulates this "
                f"device over, and does it know {self._name!r}?"
            ) from None
        finally:
            self._waited_s += time.monotonic() - began_s
            if not granted:  # the answer may be under way: it must not be taken for a later one
                self.close()
        return granted

    def over(self) -> None:
        if self._socket is not None:
            try:
                self._socket.sendall(OVER)
            except OSError:
                self.close()

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(str(self._path))
            link.settimeout(LOOK_S)
            link.sendall(self._name.encode() + b"\n")
        except BaseException:
            link.close()
            raise
        return link

    @staticmethod
    def _wait(link: socket.socket, idle: Callable[[], bool]) -> bool:
        while True:
            try:
                answer = link.recv(1)
            except TimeoutError:
                if idle():
                    return False
                continue
            if answer != GRANTED:
                raise ConnectionError("the connection was closed")
            return True
