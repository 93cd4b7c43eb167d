"""How a device is doing: CPU, memory, load, temperature. Numbers only, so that they travel well."""

from __future__ import annotations

import os
import sys
import time

import psutil

from edge_runtime.cgroup import read_limits, usable_cores

try:
    import resource
except ImportError:  # Windows has no resource module
    resource = None  # type: ignore[assignment]

_MIB = 1024 * 1024


class Telemetry:
    """Measures from `begin` to `read`."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.begin()

    def begin(self) -> None:
        """Start a span."""
        self._wall = time.monotonic()
        self._cpu = _cpu_s(self._process)

    def read(self) -> dict[str, float]:
        """The span so far, and the present state.

        Always: `wall_s`, `cpu_s`, `cpu_share` (of one core), `rss_mib`, `peak_rss_mib` (since the
        process started), `usable_cores`. Where there is one: `memory_limit_mib` and
        `memory_used_mib` (the cgroup's), `load_1m`, `temperature_c` (the hottest sensor).
        """
        wall_s = time.monotonic() - self._wall
        cpu_s = _cpu_s(self._process) - self._cpu
        rss = self._process.memory_info().rss
        facts = {
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "cpu_share": cpu_s / wall_s if wall_s > 0 else 0.0,
            "rss_mib": rss / _MIB,
            "peak_rss_mib": max(_peak_rss_bytes(), rss) / _MIB,
            "usable_cores": usable_cores(),
        }
        limits = read_limits()
        if limits.memory_bytes is not None:
            facts["memory_limit_mib"] = limits.memory_bytes / _MIB
        if limits.memory_used_bytes is not None:
            facts["memory_used_mib"] = limits.memory_used_bytes / _MIB
        if hasattr(os, "getloadavg"):
            facts["load_1m"] = os.getloadavg()[0]
        temperature = _temperature_c()
        if temperature is not None:
            facts["temperature_c"] = temperature
        return facts


def memory_available_bytes() -> int:
    """What this process may still allocate: the host's free memory, or its cgroup's rest."""
    available = psutil.virtual_memory().available
    left = read_limits().memory_left_bytes
    return int(available if left is None else min(available, left))


def usable_memory_bytes(limit_bytes: int | None, held_bytes: int = 0) -> int:
    """What training may use: what is free, with the `held_bytes` that it holds already, and no more
    than `limit_bytes`, if there is a limit."""
    usable = memory_available_bytes() + held_bytes
    return usable if limit_bytes is None else min(usable, limit_bytes)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_rss_bytes() -> int:
    """The most memory that this program held; 0 where the system does not say."""
    if sys.platform == "linux":
        # Not getrusage: its figure starts with that of the process that forked this one.
        with open("/proc/self/status") as status:
            return next((int(x.split()[1]) * 1024 for x in status if x.startswith("VmHWM")), 0)
    if resource is None:
        return 0
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _temperature_c() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    readings = [r.current for group in psutil.sensors_temperatures().values() for r in group]
    return float(max(readings)) if readings else None
