"""A mosquitto to be killed and started again, and a way to it that can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES
from tests.e2e.processes import WAIT_S, free_port

_POLL_S = 0.01


class Mosquitto:
    """A broker on a port of its own, with the lines `more` in its configuration."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "persistence false",
            "log_type none",
            "sys_interval 1",
            f"max_packet_size {MAX_MESSAGE_BYTES + 1024}",
            "max_queued_messages 4000",
            "max_queued_bytes 268435456",
            *(["user root"] if os.geteuid() == 0 else []),
            *more,
        ]
        self._config.write_text("\n".join(lines) + "\n")
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        path = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._process = subprocess.Popen([path, "-c", self._config], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL: what it retained is lost."""
        self._process.kill()
        self._process.wait()


class Proxy:
    """A port that leads to another one; `cut` ends all connections through it, without a word."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((here, there))
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
