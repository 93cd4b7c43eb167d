"""What a cgroup allows and what it has used, from version 2 or 1.

Inside a cgroup the usual tools report the host's memory and cores; what counts is the tightest
limit on the way from the process's group up to the root, and what the process's own group used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# Version 1 writes "no limit" as a huge page-aligned number.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class Limits:
    """None where nothing limits. `cpu_cores` is quota / period.

    `memory_bytes` is the tightest limit and `memory_used_bytes` what its group uses, without the
    file cache that the kernel drops first (the working set of Docker and Kubernetes).
    `memory_left_bytes` is the least that any limit leaves: a group shares its ancestors' limits
    with their other groups.
    """

    memory_bytes: int | None
    memory_used_bytes: int | None
    memory_left_bytes: int | None
    cpu_cores: float | None


@dataclass(frozen=True)
class Usage:
    """What one group has used since it was made; None where the kernel does not say.

    `periods` are those of the CPU quota in which the group ran, `throttled_s` the time in which it
    was ready and the quota held it back. `memory_bytes` is without the file cache, as in `Limits`;
    `memory_peak_bytes` is with it, and so the figure that the limit is held against.
    `memory_limit_bytes`: the group's own. `memory_kills`: processes that the kernel killed for want
    of memory.
    """

    cpu_s: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_s: float | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_kills: int | None = None
    disk_read_bytes: int | None = None
    disk_write_bytes: int | None = None
    pids: int | None = None


def read_limits(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Limits:
    """The limits that hold for this process; all None where there are no cgroups."""
    memory: tuple[int, int | None] | None = None
    left: int | None = None
    cores: float | None = None
    for kind, group in _groups(mount, membership):
        limit, used, quota = _read_v2(group) if kind == "v2" else _read_v1(group, kind)
        if limit is not None:
            rest = max(0, limit - (used or 0))
            left = rest if left is None else min(left, rest)
            if memory is None or limit < memory[0]:
                memory = (limit, used)
        if quota is not None and (cores is None or quota < cores):
            cores = quota
    limit, used = memory or (None, None)
    return Limits(limit, used, left, cores)


def read_usage(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Usage:
    """What this process's own group has used. Of the host's root group nothing is told: what all
    the host's processes did is not this one's."""
    return _merged(_own_groups(mount, membership))


def usage_of(folders: Mapping[str, Path]) -> Usage:
    """What a group has used. `folders` by version 1's controller ("cpu", "cpuacct", "memory",
    "blkio", "pids"), or the only one as "v2"."""
    return _merged(folders.items())


def usable_cores() -> float:
    """Cores that this process may use: its affinity, or its quota where that is less."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = read_limits().cpu_cores
    return min(float(affine or 1), quota or float("inf"))


def _groups(mount: Path, membership: Path) -> Iterator[tuple[str, Path]]:
    """This process's groups and all their ancestors, as (version or controller, folder)."""
    for kind, ways in _ways_up(mount, membership):
        for group in ways:
            yield kind, group


def _own_groups(mount: Path, membership: Path) -> Iterator[tuple[str, Path]]:
    """This process's groups alone."""
    for kind, way in _ways_up(mount, membership):
        for group in way[:1]:
            if not _is_hosts(kind, group):
                yield kind, group


def _is_hosts(kind: str, group: Path) -> bool:
    """Whether this is the root of all groups, and not what a container sees as its root."""
    if kind == "v2":
        return not (group / "cgroup.events").exists()
    return (group / "release_agent").exists()


def _ways_up(mount: Path, membership: Path) -> Iterator[tuple[str, list[Path]]]:
    """Of each hierarchy, as (version or controller, the own group and its ancestors)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            roots = [("v2", root) for root in (mount, mount / "unified")]
        else:
            names = [name for name in controllers.split(",") if name in _V1_READERS]
            roots = [(name, mount / folder) for name in names for folder in {name, controllers}]
        for kind, root in roots:
            # In a container the path may lie outside what is mounted: then the root is our group.
            group = root / path.lstrip("/")
            above = [folder for folder in group.parents if folder == root or root in folder.parents]
            yield kind, [folder for folder in (group, *above) if folder.is_dir()]


def _read_v2(group: Path) -> tuple[int | None, int | None, float | None]:
    quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
    cores = int(quota) / int(period or 100_000) if quota.isdigit() else None
    used = _without_cache(group, "memory.current", "inactive_file")
    return _number(group / "memory.max"), used, cores


def _read_v1(group: Path, controller: str) -> tuple[int | None, int | None, float | None]:
    if controller == "memory":
        return (
            _v1_limit(group),
            _without_cache(group, "memory.usage_in_bytes", "total_inactive_file"),
            None,
        )
    if controller != "cpu":
        return None, None, None
    quota = _number(group / "cpu.cfs_quota_us")
    period = _number(group / "cpu.cfs_period_us")
    return None, None, quota / period if quota and period else None


def _v1_limit(group: Path) -> int | None:
    limit = _number(group / "memory.limit_in_bytes")
    return None if limit is None or limit >= _UNLIMITED_BYTES else limit


# --- usage ---------------------------------------------------------------------------------------

_Facts = dict[str, "int | float | None"]


def _merged(groups: Iterable[tuple[str, Path]]) -> Usage:
    """All that these groups say; of what two say, the first."""
    facts: dict[str, Any] = {}
    for kind, group in groups:
        read = _v2_usage if kind == "v2" else _V1_READERS.get(kind)
        for name, value in (read(group) if read else {}).items():
            if value is not None:
                facts.setdefault(name, value)
    return Usage(**facts)


def _v2_usage(group: Path) -> _Facts:
    cpu, io = _pairs(group / "cpu.stat"), _text(group / "io.stat")
    # A line is: 8:0 rbytes=1 wbytes=2 rios=3 ...
    counts = [word.partition("=")[::2] for word in (io or "").split()]
    return {
        "cpu_s": _scaled(cpu.get("usage_usec"), 1e-6),
        "periods": cpu.get("nr_periods"),
        "throttled_periods": cpu.get("nr_throttled"),
        "throttled_s": _scaled(cpu.get("throttled_usec"), 1e-6),
        "memory_bytes": _without_cache(group, "memory.current", "inactive_file"),
        "memory_peak_bytes": _number(group / "memory.peak"),
        "memory_limit_bytes": _number(group / "memory.max"),
        "memory_kills": _pairs(group / "memory.events").get("oom_kill"),
        "disk_read_bytes": _sum_of(counts, "rbytes", io),
        "disk_write_bytes": _sum_of(counts, "wbytes", io),
        "pids": _number(group / "pids.current"),
    }


def _v1_cpu(group: Path) -> _Facts:
    stat = _pairs(group / "cpu.stat")
    return {
        "periods": stat.get("nr_periods"),
        "throttled_periods": stat.get("nr_throttled"),
        "throttled_s": _scaled(stat.get("throttled_time"), 1e-9),
    }


def _v1_cpuacct(group: Path) -> _Facts:
    return {"cpu_s": _scaled(_number(group / "cpuacct.usage"), 1e-9)}


def _v1_memory(group: Path) -> _Facts:
    return {
        "memory_bytes": _without_cache(group, "memory.usage_in_bytes", "total_inactive_file"),
        "memory_peak_bytes": _number(group / "memory.max_usage_in_bytes"),
        "memory_limit_bytes": _v1_limit(group),
        "memory_kills": _pairs(group / "memory.oom_control").get("oom_kill"),
    }


def _v1_blkio(group: Path) -> _Facts:
    text = _text(group / "blkio.throttle.io_service_bytes_recursive")
    # A line is: 8:0 Read 4096
    counts = [words[1:] for line in (text or "").splitlines() if len(words := line.split()) == 3]
    return {
        "disk_read_bytes": _sum_of(counts, "Read", text),
        "disk_write_bytes": _sum_of(counts, "Write", text),
    }


def _v1_pids(group: Path) -> _Facts:
    return {"pids": _number(group / "pids.current")}


_V1_READERS: Mapping[str, Callable[[Path], _Facts]] = {
    "cpu": _v1_cpu,
    "cpuacct": _v1_cpuacct,
    "memory": _v1_memory,
    "blkio": _v1_blkio,
    "pids": _v1_pids,
}


def _sum_of(counts: Iterable[Sequence[str]], name: str, text: str | None) -> int | None:
    """Of all devices; None where there is no such file."""
    if text is None:
        return None
    return sum(int(count) for what, count in counts if what == name and count.isdigit())


def _scaled(count: int | None, unit: float) -> float | None:
    return None if count is None else count * unit


def _pairs(path: Path) -> dict[str, int]:
    """A file with a name and a number on each line."""
    lines = (line.partition(" ") for line in (_text(path) or "").splitlines())
    return {name: int(value) for name, _, value in lines if value.isdigit()}


def _without_cache(group: Path, usage: str, cache: str) -> int | None:
    """The number in the file `usage`, less the line `cache` of the group's `memory.stat`."""
    used = _number(group / usage)
    return None if used is None else max(0, used - _pairs(group / "memory.stat").get(cache, 0))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """A non-negative whole number; None for "max", -1 and files that are not there."""
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None
