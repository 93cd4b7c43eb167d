"""Being inside a network namespace for a moment."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path

from edge_runtime.errors import EmulationError

_CLONE_NEWNET = 0x40000000


def socket_in(namespace: Path) -> socket.socket:
    """A TCP socket that is inside a network namespace; `EmulationError` if it cannot be entered."""
    made: list[socket.socket] = []
    failures: list[OSError] = []

    def make() -> None:
        try:
            _enter(namespace)
            made.append(socket.socket())
        except OSError as error:
            failures.append(error)

    # Only this thread enters, and it ends here.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        reason = failures[0].strerror if failures else "its thread failed"
        raise EmulationError(f"cannot enter the network namespace {namespace} ({reason})")
    return made[0]


def _enter(namespace: Path) -> None:
    """Move the calling thread; `OSError` if that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
