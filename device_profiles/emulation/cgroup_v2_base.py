"""`Base`: the group of version 2 below which a run may have its own."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from device_profiles.emulation import control_files as files
from device_profiles.emulation.control_files import Hierarchy
from edge_runtime.errors import EmulationError

NEEDED = frozenset({"cpu", "memory"})
"""What a group has to be given for a board to be emulated."""
_DELEGATED = ("trusted.delegate", "user.delegate")  # set by systemd on what it leaves to others
_ROUNDS = 100  # of moving processes: they may fork meanwhile
SCOPE = "systemd-run --user --scope -p Delegate=yes flexmoe ..."


@dataclass(frozen=True)
class Base:
    """`controllers` are those that groups below may have. `crowded`: it has processes, which must
    be seated in a leaf of their own first."""

    folder: Path
    controllers: frozenset[str]
    crowded: bool


def find_base(hierarchy: Hierarchy) -> Base:
    """Our own group, or the nearest above it that has CPU and memory to give.

    Never one above a group that is limited itself: what holds for us must hold for the devices.
    `EmulationError` says why there is none; nothing is changed.
    """
    refused: list[str] = []
    partly: Base | None = None
    own, mount = hierarchy.own, hierarchy.mount
    for group in [own, *(g for g in own.parents if g == mount or mount in g.parents)]:
        base, problem = _examine(group, mount)
        if base is not None and base.controllers >= NEEDED:
            return base
        partly = partly or base
        refused.append(problem)
        if _is_limited(group):
            break
    if partly is not None:
        return partly
    raise EmulationError(refused[0])


def seat_processes(group: Path, leaf: Path) -> None:
    """Move all processes of `group` into `leaf`; `EmulationError` if one cannot be."""
    for _ in range(_ROUNDS):
        pids = files.read(group / "cgroup.procs").split()
        if not pids:
            return
        for pid in pids:
            try:
                files.write(leaf / "cgroup.procs", pid)
            except ProcessLookupError:
                continue
            except OSError as error:
                raise files.refusal(error, f"cannot move process {pid} into {leaf}") from None
    raise EmulationError(f"{group} gets new processes faster than they can be moved")


def _examine(group: Path, mount: Path) -> tuple[Base | None, str]:
    """What this group is good for; if it is not good enough, why."""
    available = frozenset(files.read(group / "cgroup.controllers").split())
    missing = " and ".join(sorted(NEEDED - available))
    problem = f"cgroup v2 at {group} is without {missing}" if missing else ""
    if not available & NEEDED:
        return None, problem
    needed = [group, group / "cgroup.procs", group / "cgroup.subtree_control"]
    if not all(os.access(path, os.W_OK) for path in needed):
        if os.geteuid() == 0:
            return None, f"{group} cannot be written; mount it writable (in Docker: --privileged)"
        return None, f"not root, and {group} is not delegated: try {SCOPE}"
    enabled = set(files.read(group / "cgroup.subtree_control").split())
    # Only the root of all may have processes beside controllers; it has no cgroup.type.
    is_top = not (group / "cgroup.type").exists()
    crowded = not is_top and not enabled and bool(files.read(group / "cgroup.procs"))
    if crowded and not _is_ours(group, mount):
        return None, f"{group} has processes in it and is not delegated: try {SCOPE}"
    return Base(group, available, crowded), problem


def _is_ours(group: Path, mount: Path) -> bool:
    """Whether we may move the group's processes about: it was delegated, it is all that this
    container sees, or there is nobody in it but us."""
    if group == mount:
        return True
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return all(map(_descends, files.read(group / "cgroup.procs").split()))


def _descends(pid: str) -> bool:
    """Whether the process is this one or was started by it."""
    while pid not in ("", "0", str(os.getpid())):
        # The program's name, in brackets, may hold anything; after it come the state, the parent.
        words = files.read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        pid = words[1] if len(words) > 1 else ""
    return pid == str(os.getpid())


def _is_limited(group: Path) -> bool:
    """Whether the group has a limit of its own."""
    limits = (files.read(group / name) for name in ("memory.max", "cpu.max"))
    return any(limit and not limit.startswith("max") for limit in limits)
