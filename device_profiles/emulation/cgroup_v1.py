"""Control groups of version 1: each controller in a tree of its own, a group being one folder in
each of them."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path

from device_profiles.calibration.quota import CpuQuota
from device_profiles.emulation import control_files as files
from device_profiles.emulation import sweep
from device_profiles.emulation.belongings import Belongings
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

# The freezer first: who has entered it cannot get away. cpuacct and blkio only count.
_ORDER = ("freezer", "cpuset", "cpu", "cpuacct", "memory", "pids", "blkio")
_CONTROLLERS: tuple[Controller, ...] = ("cpu", "memory", "pids", "cpuset", "freezer")
_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as a huge page-aligned number
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


class V1Group:
    """A group. `folders` by controller; controllers mounted together share one."""

    def __init__(self, name: str, folders: Mapping[str, Path]) -> None:
        self.name = name
        self.folders = dict(folders)

    @property
    def join(self) -> Sequence[Path]:
        return [folder / "cgroup.procs" for folder in _distinct(self.folders)]

    def set_cpu(self, quota: CpuQuota | None) -> None:
        """Quota and period are two files. Between the two writes the share is the less of both:
        a larger period first, a smaller one last."""
        folder = self.folders["cpu"]
        quota_file, period_file = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
        if quota is None:
            self._put_cpu([(quota_file, -1)], quota)
            return
        check_quota(quota)
        writes = [(period_file, quota.period_us), (quota_file, quota.quota_us)]
        if (files.number(period_file) or 0) > quota.period_us and _quota(folder) is not None:
            writes.reverse()
        self._put_cpu(writes, quota)

    def usage(self) -> Usage:
        return usage_of(self.folders)

    def limits(self) -> GroupLimits:
        """Memory with swap off is the limit of both together, where the kernel has that."""
        none = Path()
        bytes_ = files.number(self.folders.get("memory", none) / "memory.limit_in_bytes")
        cpus = self.folders.get("cpuset")
        return GroupLimits(
            cpu=_quota(self.folders["cpu"]) if "cpu" in self.folders else None,
            memory_bytes=None if bytes_ is None or bytes_ >= _UNLIMITED_BYTES else bytes_,
            pids=files.number(self.folders.get("pids", none) / "pids.max"),
            cpus=files.cpus_of(files.read(cpus / "cpuset.cpus")) if cpus else None,
        )

    def kill(self) -> None:
        sweep.kill_groups(_distinct(self.folders))

    def remove(self) -> None:
        if left := sweep.remove_groups(_distinct(self.folders)):
            raise EmulationError("; ".join(left))

    def _put_cpu(self, writes: Sequence[tuple[Path, int]], quota: CpuQuota | None) -> None:
        for path, value in writes:
            try:
                files.write(path, str(value))
            except OSError as error:
                what = f"{path} does not take {value}"
                if error.errno == errno.EINVAL and quota is not None:
                    what += _why_invalid(self.folders["cpu"], quota)
                raise files.refusal(error, what) from None


class V1Groups:
    """The groups of a run. `folders`: its own group above them, by controller."""

    kind: Kind = "cgroup v1"

    def __init__(self, folders: Mapping[str, Path], why: Mapping[str, str]) -> None:
        self._folders = dict(folders)
        self._groups: list[V1Group] = []
        self.why = dict(why)
        self.controllers: frozenset[Controller] = frozenset(
            name for name in _CONTROLLERS if name in folders
        )

    def create(self, name: str, limits: GroupLimits) -> V1Group:
        folders = {c: top / name for c, top in self._folders.items()}
        group = V1Group(files.check_name(name), folders)
        refuse_missing(limits, self)
        files.refuse_existing(_distinct(folders))
        try:
            for folder in _distinct(folders):
                files.make(folder)
            _limit(group, limits)
        except BaseException:
            sweep.remove_groups(_distinct(folders))
            raise
        return group

    def close(self) -> None:
        if left := sweep.remove_groups(_distinct(self._folders)):
            raise EmulationError("; ".join(left))


def open_v1(run: str, belongings: Belongings, hierarchies: Sequence[Hierarchy]) -> V1Groups:
    """Below our own group in each tree, so that limits on us hold for the run's groups too.

    `EmulationError` unless the run gets a group for CPU or memory.
    """
    tops: dict[str, Path] = {}
    for controller in _ORDER:
        for hierarchy in hierarchies:
            if controller in hierarchy.controllers:
                tops[controller] = hierarchy.own / files.name_of_run(run)
    files.refuse_existing(_distinct(tops))
    folders: dict[str, Path] = {}
    why = {name: f"no {name} controller of cgroup v1 is mounted" for name in _ORDER}
    for controller, top in tops.items():
        try:
            if top not in folders.values():
                belongings.note("group", top)
                files.make(top)
            if controller == "cpuset":
                _fill_cpuset(top)
        except EmulationError as error:
            why[controller] = str(error)
            if top not in folders.values():
                sweep.remove_groups([top])
            continue
        folders[controller] = top
    if not folders.keys() & {"cpu", "memory"}:
        sweep.remove_groups(_distinct(folders))
        raise EmulationError(why["cpu"])
    if "memory" in folders and not _counts_swap(folders["memory"]) and files.has_swap():
        why["swap"] = "this kernel counts no swap (boot it with swapaccount=1)"
    missing = {name: text for name, text in why.items() if name not in folders}
    return V1Groups(folders, missing)


def _limit(group: V1Group, limits: GroupLimits) -> None:
    """Set all limits of a group that nobody is in yet."""
    folders = group.folders
    if "cpuset" in folders:
        _fill_cpuset(folders["cpuset"])
        if limits.cpus is not None:
            files.put(folders["cpuset"] / "cpuset.cpus", files.cpu_list(limits.cpus))
    if limits.cpu is not None:
        group.set_cpu(limits.cpu)
    if limits.memory_bytes is not None:
        memory = folders["memory"]
        files.put(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
        if _counts_swap(memory):  # of memory and swap together, so that none is left for swap
            files.put(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        files.put(memory / "memory.swappiness", "0")
    if limits.pids is not None:
        files.put(folders["pids"] / "pids.max", str(limits.pids))


def _fill_cpuset(folder: Path) -> None:
    """A new group has no cores and no memory nodes, and nobody may enter it: give it all of the
    parent's."""
    for name in _CPUSET_FILES:
        files.put(folder / name, files.read(folder.parent / name))


def _counts_swap(memory: Path) -> bool:
    return (memory / "memory.memsw.limit_in_bytes").exists()


def _quota(folder: Path) -> CpuQuota | None:
    quota = files.number(folder / "cpu.cfs_quota_us")
    period = files.number(folder / "cpu.cfs_period_us")
    return CpuQuota(quota / period, period) if quota and quota > 0 and period else None


def _why_invalid(folder: Path, quota: CpuQuota) -> str:
    """The kernel says no more than "invalid argument": most likely a group above has less."""
    for above in folder.parents:
        held = _quota(above)
        if held is not None and held.cores < quota.cores:
            return f" ({above} is held to {held.cores:g} cores, asked for {quota.cores:g} below it)"
    return ""


def _distinct(folders: Mapping[str, Path]) -> list[Path]:
    return list(dict.fromkeys(folders.values()))
