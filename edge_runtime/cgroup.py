"""What this process's cgroup allows: memory and CPU, from version 2 or 1.

Inside a cgroup the usual tools report the host's memory and cores; what counts is the tightest
limit on the way from the process's group up to the root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def usable_cores() -> float:
    """Cores that this process may use: its affinity, or its quota where that is less."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = read_limits().cpu_cores
    return min(float(affine or 1), quota or float("inf"))


def _groups(mount: Path, membership: Path) -> Iterator[tuple[str, Path]]:
    """This process's groups and all their ancestors, as (version or controller, folder)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            roots = [("v2", root) for root in (mount, mount / "unified")]
        else:
            names = [name for name in controllers.split(",") if name in ("memory", "cpu")]
            roots = [(name, mount / folder) for name in names for folder in {name, controllers}]
        for kind, root in roots:
            # In a container the path may lie outside what is mounted: then the root is our group.
            group = root / path.lstrip("/")
            while True:
                if group.is_dir():
                    yield kind, group
                if group == root or root not in group.parents:
                    break
                group = group.parent


def _read_v2(group: Path) -> tuple[int | None, int | None, float | None]:
    quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
    cores = int(quota) / int(period or 100_000) if quota.isdigit() else None
    used = _without_cache(group, "memory.current", "inactive_file")
    return _number(group / "memory.max"), used, cores


def _read_v1(group: Path, controller: str) -> tuple[int | None, int | None, float | None]:
    if controller == "memory":
        limit = _number(group / "memory.limit_in_bytes")
        if limit is not None and limit >= _UNLIMITED_BYTES:
            limit = None
        return limit, _without_cache(group, "memory.usage_in_bytes", "total_inactive_file"), None
    quota = _number(group / "cpu.cfs_quota_us")
    period = _number(group / "cpu.cfs_period_us")
    return None, None, quota / period if quota and period else None


def _without_cache(group: Path, usage: str, cache: str) -> int | None:
    """The number in the file `usage`, less the line `cache` of the group's `memory.stat`."""
    used = _number(group / usage)
    for line in (_text(group / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if used is not None and name == cache and value.isdigit():
            return max(0, used - int(value))
    return used


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """A non-negative whole number; None for "max", -1 and files that are not there."""
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None
