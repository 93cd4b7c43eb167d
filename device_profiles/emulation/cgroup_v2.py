"""Control groups of version 2: one tree, in which a group with controllers below holds no process
of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from device_profiles.calibration.quota import CpuQuota
from device_profiles.emulation import control_files as files
from device_profiles.emulation import sweep
from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.cgroup_v2_base import Base, find_base, seat_processes
from device_profiles.emulation.control_files import Hierarchy
from device_profiles.emulation.group import (
    Controller,
    GroupLimits,
    Kind,
    check_quota,
    refuse_missing,
)
from edge_runtime.cgroup import Usage, usage_of
from edge_runtime.errors import EmulationError

_CONTROLLERS: tuple[Controller, ...] = ("cpu", "memory", "pids", "cpuset")
_ENABLED = (*_CONTROLLERS, "io")  # io only counts
_SWAP = "memory.swap.max"


class V2Group:
    """A group."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    @property
    def join(self) -> Sequence[Path]:
        return [self.folder / "cgroup.procs"]

    def set_cpu(self, quota: CpuQuota | None) -> None:
        if quota is None:
            files.put(self.folder / "cpu.max", "max")
            return
        check_quota(quota)
        files.put(self.folder / "cpu.max", f"{quota.quota_us} {quota.period_us}")

    def usage(self) -> Usage:
        return usage_of({"v2": self.folder})

    def limits(self) -> GroupLimits:
        quota, _, period = files.read(self.folder / "cpu.max").partition(" ")
        cpu = CpuQuota(int(quota) / int(period), int(period)) if quota.isdigit() else None
        cpus = files.read(self.folder / "cpuset.cpus")
        return GroupLimits(
            cpu=cpu,
            memory_bytes=files.number(self.folder / "memory.max"),
            pids=files.number(self.folder / "pids.max"),
            cpus=files.cpus_of(cpus) if cpus else None,
        )

    def kill(self) -> None:
        sweep.kill_groups([self.folder])

    def remove(self) -> None:
        _remove([self.folder])


class V2Groups:
    """The groups of a run below `folder`; `leaf`: where this process sits meanwhile, if it had to
    make room."""

    kind: Kind = "cgroup v2"

    def __init__(
        self,
        folder: Path,
        leaf: Path | None,
        controllers: frozenset[Controller],
        why: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self.leaf = leaf
        self.controllers = controllers
        self.why = dict(why)

    def create(self, name: str, limits: GroupLimits) -> V2Group:
        group = V2Group(files.check_name(name), self.folder / name)
        refuse_missing(limits, self)
        files.refuse_existing([group.folder])
        files.make(group.folder)
        try:
            _limit(group, limits)
        except BaseException:
            sweep.remove_groups([group.folder])
            raise
        return group

    def close(self) -> None:
        _remove([self.folder], self.leaf)


def open_v2(run: str, belongings: Belongings, hierarchy: Hierarchy) -> V2Groups:
    """Below our own group if that can be, else below the nearest one above it whose limits hold for
    us as well. `EmulationError` if there is none."""
    base = find_base(hierarchy)
    folder = base.folder / files.name_of_run(run)
    leaf = base.folder / f"{files.name_of_run(run)}-self" if base.crowded else None
    files.refuse_existing([folder, *([leaf] if leaf else [])])
    try:
        belongings.note("group", folder)
        files.make(folder)
        if leaf is not None:
            belongings.note("leaf", leaf)
            files.make(leaf)
            seat_processes(base.folder, leaf)
        enabled, why = _enable(base, folder)
        if not enabled & {"cpu", "memory"}:
            raise EmulationError(why["cpu"])
    except BaseException:
        sweep.remove_groups([folder])
        if leaf is not None:
            sweep.remove_leaf(leaf)
        raise
    if "memory" in enabled and not (folder / _SWAP).exists() and files.has_swap():
        why["swap"] = "this kernel counts no swap"
    return V2Groups(folder, leaf, enabled, why)


def _enable(base: Base, folder: Path) -> tuple[frozenset[Controller], dict[str, str]]:
    """Turn controllers on for the groups below `folder`, each alone: one that is refused (cpu with
    real-time processes about) must not take the others with it.

    They stay on in the base afterwards: another run may be using them by then.
    """
    enabled: set[Controller] = set()
    why: dict[str, str] = {}
    for controller in _ENABLED:
        if controller not in base.controllers:
            why[controller] = f"cgroup v2 at {base.folder} has no {controller} controller"
            continue
        try:
            for group in (base.folder, folder):
                files.put(group / "cgroup.subtree_control", f"+{controller}")
        except EmulationError as error:
            why[controller] = str(error)
        else:
            enabled.update(name for name in _CONTROLLERS if name == controller)
    if (folder / "cgroup.freeze").exists() or (folder / "cgroup.kill").exists():
        enabled.add("freezer")
    return frozenset(enabled), why


def _limit(group: V2Group, limits: GroupLimits) -> None:
    """Set all limits of a group that nobody is in yet."""
    folder = group.folder
    if limits.cpus is not None:
        files.put(folder / "cpuset.cpus", files.cpu_list(limits.cpus))
    if limits.cpu is not None:
        group.set_cpu(limits.cpu)
    if limits.memory_bytes is not None:
        files.put(folder / "memory.max", str(limits.memory_bytes))
        if (folder / _SWAP).exists():
            files.put(folder / _SWAP, "0")
    if limits.pids is not None:
        files.put(folder / "pids.max", str(limits.pids))


def _remove(folders: Sequence[Path], leaf: Path | None = None) -> None:
    left = sweep.remove_groups(folders)
    if leaf is not None and leaf.exists():
        left += sweep.remove_leaf(leaf)
    if left:
        raise EmulationError("; ".join(left))
