"""A fleet: one `flexmoe device` process for each shard, on this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from device_profiles.process import ChildProcess, stop_all
from edge_runtime.errors import FleetError

STOP_GRACE_S = 5.0
_POLL_S = 0.02


class Fleet:
    """Device processes by name. Use it as a context manager: leaving it ends them all."""

    def __init__(
        self,
        shards: Mapping[str, Path],
        host: str,
        port: int,
        federation: str,
        trainer: str,
        log_directory: Path,
        state_directory: Path,
        threads: int = 0,
        links: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start a device for each of `shards`; `threads` for each, 0: as it chooses.

        `links`: the class of a device's link, by the device's name.
        """
        self._ended: set[str] = set()
        self._devices: dict[str, ChildProcess] = {}
        # Devices share this machine's cores: numpy's and torch's own threads would fight for them.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            for name, shard in shards.items():
                command = [sys.executable, "-m", "edge_runtime", "device", "--id", name]
                command += ["--data", str(shard), "--broker", f"{host}:{port}"]
                command += ["--federation", federation, "--trainer", trainer]
                command += ["--state", str(state_directory)]
                command += ["--threads", str(threads)] if threads else []
                command += ["--link", links[name]] if name in links else []
                log = log_directory / f"{name}.log"
                self._devices[name] = ChildProcess.start(command, name, log, environment)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all devices and wait for them."""
        stop_all(list(self._devices.values()), STOP_GRACE_S)

    def wait(self, timeout_s: float) -> None:
        """Give devices that were told to stop the time to do so."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and any(d.poll() is None for d in self._devices.values()):
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise `FleetError`, with the log's last lines, if a device has ended with an error."""
        if ended := self.ended():
            raise FleetError("; ".join(ended))

    def ended(self) -> list[str]:
        """What to say of each device that has ended with an error since the last call."""
        said = []
        for name, device in self._devices.items():
            code = device.poll()
            if code in (None, 0) or name in self._ended:
                continue
            self._ended.add(name)
            lines = " | ".join(device.tail(2).splitlines()) or "it printed nothing"
            said.append(f"{name} ended with code {code}: {lines} (log: {device.log_path})")
        return said
