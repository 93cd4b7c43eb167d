"""How a device is doing, as the kernel counts it: CPU, memory, disk, network. Numbers only, so that
they travel well."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.cgroup import Usage, read_limits, read_usage, usable_cores
from edge_runtime.interface import InterfaceUsage, read_interfaces

try:
    import resource
except ImportError:  # Windows has no resource module
    resource = None  # type: ignore[assignment]

_MIB = 1024 * 1024


@dataclass(frozen=True)
class _Counters:
    """What only grows."""

    wall_s: float
    cpu_s: float
    usage: Usage
    disk: tuple[int, int] | None  # bytes read, written
    interface: InterfaceUsage | None
    delay_s: float | None  # in which threads were ready and did not run


class Telemetry:
    """Measures from `begin` to `read`."""

    def __init__(
        self, time_scale: float = 1.0, interface: bool = True, sensors: bool = True
    ) -> None:
        """`time_scale`: seconds of life in a second here. `interface`: whether the server is
        reached through a network interface. `sensors`: whether the board is a real one."""
        self._time_scale = time_scale
        self._interface = interface
        self._sensors = sensors
        self.begin()

    def begin(self) -> None:
        """Start a span."""
        self._before = self._count()

    def read(self, waited_s: float = 0.0, **seconds: float) -> dict[str, float]:
        """The span so far, and the present state.

        `waited_s`: of that, waiting for turns. It and other `seconds` of this machine, by name, are
        told with the rest, as seconds of life. Always: `wall_s` (without the waiting),
        `turn_wait_s`, `cpu_s` (CPU seconds of this host, whatever the time scale), `cpu_share` (of
        one core), `rss_mib`, `peak_rss_mib` (since the process started), `usable_cores`.

        Where the kernel tells, of the process's cgroup: `throttled_s` (the sum over CPUs),
        `throttled_share` (of the quota's periods), `memory_limit_mib` (the tightest),
        `memory_used_mib` (without the file cache), `memory_peak_mib` and `memory_kills` (since the
        group was made), `disk_read_bytes`, `disk_write_bytes` (else the process's own). Also
        `interface_up_bytes`, `interface_down_bytes`, `interface_drops`; `host_wait_s`, in which
        threads were ready and neither ran nor were throttled, for others had the cores; `load_1m`.
        Of a real board what its sensors say.
        """
        before, now = self._before, self._count()
        wall_s = max(0.0, now.wall_s - before.wall_s - waited_s)
        cpu_s = now.cpu_s - before.cpu_s
        rss, peak = _memory_bytes()
        seconds = {"wall_s": wall_s, "turn_wait_s": waited_s, **seconds}
        facts = {
            **{name: value_s * self._time_scale for name, value_s in seconds.items()},
            "cpu_s": cpu_s,
            "cpu_share": cpu_s / wall_s if wall_s > 0 else 0.0,
            "rss_mib": rss / _MIB,
            "peak_rss_mib": max(peak, rss) / _MIB,
            "usable_cores": usable_cores(),
        }
        facts.update(_memory_of_group(now.usage))
        facts.update(self._grown(before, now))
        if hasattr(os, "getloadavg"):
            facts["load_1m"] = os.getloadavg()[0]
        if self._sensors:
            from edge_runtime.sensors import read_sensors

            facts.update(read_sensors())
        return facts

    def _count(self) -> _Counters:
        usage = read_usage()
        disk = usage.disk_read_bytes, usage.disk_write_bytes
        return _Counters(
            time.monotonic(),
            time.process_time(),
            usage,
            _own_disk_bytes() if disk[0] is None or disk[1] is None else (disk[0], disk[1]),
            read_interfaces() if self._interface else None,
            _run_delay_s(),
        )

    def _grown(self, before: _Counters, now: _Counters) -> Iterator[tuple[str, float]]:
        """What the counters say of the time between."""
        throttled_s = _growth(before.usage.throttled_s, now.usage.throttled_s)
        periods = _growth(before.usage.periods, now.usage.periods)
        held = _growth(before.usage.throttled_periods, now.usage.throttled_periods)
        if throttled_s is not None:
            yield "throttled_s", throttled_s * self._time_scale
        if periods is not None and held is not None:
            yield "throttled_share", held / periods if periods else 0.0
        delay_s = _growth(before.delay_s, now.delay_s)
        if delay_s is not None:  # the kernel counts a throttled thread as one that is ready
            yield "host_wait_s", max(0.0, delay_s - (throttled_s or 0.0)) * self._time_scale
        if before.disk is not None and now.disk is not None:
            yield "disk_read_bytes", max(0.0, now.disk[0] - before.disk[0])
            yield "disk_write_bytes", max(0.0, now.disk[1] - before.disk[1])
        was, is_now = before.interface, now.interface
        if was is not None and is_now is not None:
            yield "interface_up_bytes", max(0.0, is_now.up_bytes - was.up_bytes)
            yield "interface_down_bytes", max(0.0, is_now.down_bytes - was.down_bytes)
            yield "interface_drops", max(0.0, is_now.drops - was.drops)


def memory_available_bytes() -> int:
    """What this process may still allocate: the host's free memory, or its cgroup's rest."""
    available = _host_available_bytes()
    left = read_limits().memory_left_bytes
    return available if left is None else min(available, left)


def usable_memory_bytes(limit_bytes: int | None, held_bytes: int = 0) -> int:
    """What training may use: what is free, with the `held_bytes` that it holds already, and no more
    than `limit_bytes`, if there is a limit."""
    usable = memory_available_bytes() + held_bytes
    return usable if limit_bytes is None else min(usable, limit_bytes)


def _memory_of_group(usage: Usage) -> Iterator[tuple[str, float]]:
    limits = read_limits()
    used = limits.memory_used_bytes if usage.memory_bytes is None else usage.memory_bytes
    for name, size_bytes in (
        ("memory_limit_mib", limits.memory_bytes),
        ("memory_used_mib", used),
        ("memory_peak_mib", usage.memory_peak_bytes),
    ):
        if size_bytes is not None:
            yield name, size_bytes / _MIB
    if usage.memory_kills is not None:
        yield "memory_kills", float(usage.memory_kills)


def _growth(before: float | None, now: float | None) -> float | None:
    """None where one of both is not known. A group or an interface made anew counts from 0."""
    return None if before is None or now is None else max(0.0, now - before)


# --- what the system says of this process ---------------------------------------------------------


def _memory_bytes() -> tuple[int, int]:
    """What this program holds, and the most that it held; 0 where the system does not say."""
    if sys.platform == "linux":
        # Not getrusage: its figure starts with that of the process that forked this one.
        status = _sizes(Path("/proc/self/status"))
        return status.get("VmRSS", 0), status.get("VmHWM", 0)
    import psutil

    rss: int = psutil.Process().memory_info().rss
    if resource is None:
        return rss, 0
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss, peak if sys.platform == "darwin" else peak * 1024


def _host_available_bytes() -> int:
    available = _sizes(Path("/proc/meminfo")).get("MemAvailable")
    if available is None:
        import psutil

        available = int(psutil.virtual_memory().available)
    return available


def _sizes(path: Path) -> dict[str, int]:
    """The lines that give kB, in bytes; none where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def _own_disk_bytes() -> tuple[int, int] | None:
    """Bytes that this process had read and written by a disk."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    counts = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    return counts["read_bytes"], counts["write_bytes"]


def _run_delay_s() -> float | None:
    """How long this process's threads were ready and did not run; None if the kernel is silent."""
    delay_ns, known = 0, False
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                text = Path("/proc/self/task", thread, "schedstat").read_text()
            except (FileNotFoundError, ProcessLookupError):  # no such figure, or thread any more
                continue
            delay_ns, known = delay_ns + int(text.split()[1]), True
    except OSError:
        return None
    return delay_ns * 1e-9 if known else None
