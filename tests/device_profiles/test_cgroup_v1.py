"""Version 1's files: what is written, in which order, and what is said when the kernel refuses."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.calibration.quota import LEAST_CORES, CpuQuota, of_cores
from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.cgroup_v1 import V1Group, V1Groups, open_v1
from device_profiles.emulation.control_files import Hierarchy
from device_profiles.emulation.group import GroupLimits
from edge_runtime.errors import EmulationError
from tests.device_profiles.control_tree import ControlTree

MIB = 1 << 20
CPU = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpuacct.usage": "7000000000"}
MEMORY = {
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.memsw.limit_in_bytes": "9223372036854771712",
    "memory.swappiness": "60",
}
OTHERS = {"cpuset.cpus": "", "cpuset.mems": "", "pids.max": "max", "cgroup.procs": ""}
TREES = ("freezer", "cpuset", "cpu,cpuacct", "memory", "pids")


class Host:
    """A host with a tree for each of `TREES`; we sit in the group ``box`` of each."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **extra: str) -> None:
        self.tree = ControlTree(folder / "cgroup", patch, {})
        self.tree.template = {**CPU, **MEMORY, **OTHERS, **extra}
        self.hierarchies = []
        for name in TREES:
            mount = self.tree.root / name
            self.tree.make(mount)
            self.tree.make(mount / "box")
            for file, text in (("cpuset.cpus", "0-3"), ("cpuset.mems", "0")):
                (mount / "box" / file).write_text(text)
            controllers = frozenset(name.split(","))
            self.hierarchies.append(Hierarchy(1, controllers, mount, mount / "box"))
        self.belongings = Belongings("abc123", folder)

    def open(self) -> V1Groups:
        return open_v1("abc123", self.belongings, self.hierarchies)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_group_in_each_tree_below_our_own(host: Host) -> None:
    groups = host.open()
    assert groups.controllers == {"cpu", "memory", "pids", "cpuset", "freezer"}
    group = groups.create("d1", GroupLimits())
    tops = [f"{name}/box/flexmoe-abc123" for name in TREES]
    joined = [str(file.relative_to(host.tree.root)) for file in group.join]
    assert joined == [f"{top}/d1/cgroup.procs" for top in tops]
    noted = host.belongings.path.read_text().splitlines()[1:]
    assert noted == [f"group {host.tree.root / top}" for top in tops]
    assert group.usage().cpu_s == 7.0
    groups.close()
    assert not list(host.tree.root.rglob("*flexmoe*"))


def test_every_write_in_its_order(host: Host) -> None:
    groups = host.open()
    cpuset = "cpuset/box/flexmoe-abc123"
    assert host.tree.writes == [(f"{cpuset}/cpuset.cpus", "0-3"), (f"{cpuset}/cpuset.mems", "0")]
    host.tree.writes.clear()
    limits = GroupLimits(CpuQuota(0.5, 10_000), 64 * MIB, 20, frozenset({2, 0}))
    assert groups.create("d1", limits).limits() == limits
    cpu, memory = "cpu,cpuacct/box/flexmoe-abc123/d1", "memory/box/flexmoe-abc123/d1"
    assert host.tree.writes == [
        (f"{cpuset}/d1/cpuset.cpus", "0-3"),
        (f"{cpuset}/d1/cpuset.mems", "0"),
        (f"{cpuset}/d1/cpuset.cpus", "0,2"),
        (f"{cpu}/cpu.cfs_period_us", "10000"),
        (f"{cpu}/cpu.cfs_quota_us", "5000"),
        (f"{memory}/memory.limit_in_bytes", str(64 * MIB)),
        (f"{memory}/memory.memsw.limit_in_bytes", str(64 * MIB)),
        (f"{memory}/memory.swappiness", "0"),
        ("pids/box/flexmoe-abc123/d1/pids.max", "20"),
    ]


cores = st.floats(LEAST_CORES, 4.0).map(of_cores)


@given(quotas=st.lists(cores, min_size=2, max_size=6))
def test_no_change_of_quota_goes_by_way_of_a_larger_one(
    quotas: list[CpuQuota], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tree = ControlTree(tmp_path_factory.mktemp("v1") / "cpu", patch, CPU)
        group = V1Group("d1", {"cpu": tree.root})
        group.set_cpu(quotas[0])
        for before, after in itertools.pairwise(quotas):
            held = {"cpu.cfs_quota_us": before.quota_us, "cpu.cfs_period_us": before.period_us}
            tree.writes.clear()
            group.set_cpu(after)
            for name, text in tree.writes:
                held[name] = int(text)
                share = held["cpu.cfs_quota_us"] / held["cpu.cfs_period_us"]
                most = max(before.quota_us / before.period_us, after.quota_us / after.period_us)
                assert held["cpu.cfs_quota_us"] >= 1000
                assert share <= most * (1 + 1e-9)
            assert held["cpu.cfs_quota_us"] == after.quota_us
            assert held["cpu.cfs_period_us"] == after.period_us


def test_a_group_above_that_has_less_is_named(host: Host) -> None:
    groups = host.open()
    box = host.tree.root / "cpu,cpuacct/box"
    (box / "cpu.cfs_quota_us").write_text("30000")
    host.tree.refuses["cpu.cfs_quota_us", "5000"] = errno.EINVAL
    with pytest.raises(EmulationError) as caught:
        groups.create("d1", GroupLimits(cpu=CpuQuota(0.5, 10_000)))
    file = box / "flexmoe-abc123/d1/cpu.cfs_quota_us"
    assert str(caught.value) == (
        f"{file} does not take 5000 ({box} is held to 0.3 cores, asked for 0.5 below it): "
        "Invalid argument"
    )
    assert not list(host.tree.root.rglob("d1"))


def test_without_a_count_of_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    del host.tree.template["memory.memsw.limit_in_bytes"]
    for swaps, why in (("a\nb\n", "boot it with swapaccount=1"), ("a\n", "")):
        (tmp_path / "swaps").write_text(swaps)
        monkeypatch.setattr(
            "device_profiles.emulation.control_files.has_swap.__defaults__", (tmp_path / "swaps",)
        )
        groups = host.open()
        assert why in groups.why.get("swap", "")
        assert ("swap" in groups.why) == bool(why)
        assert groups.create("d1", GroupLimits(memory_bytes=MIB)).limits().memory_bytes == MIB
        groups.close()


def test_controllers_that_are_missing(host: Host) -> None:
    host.hierarchies = [h for h in host.hierarchies if not h.controllers & {"cpu", "pids"}]
    groups = host.open()
    assert groups.controllers == {"memory", "cpuset", "freezer"}
    assert groups.create("d1", GroupLimits(memory_bytes=MIB)).limits().cpu is None
    for limits, name in ((GroupLimits(cpu=of_cores(0.5)), "cpu"), (GroupLimits(pids=9), "pids")):
        with pytest.raises(EmulationError, match=f"^{name} cannot be limited: no {name} contr"):
            groups.create("d2", limits)
    groups.close()
    host.hierarchies = [h for h in host.hierarchies if not h.controllers & {"memory"}]
    with pytest.raises(EmulationError, match="no cpu controller of cgroup v1 is mounted"):
        host.open()
    assert not list(host.tree.root.rglob("*flexmoe*"))


def test_a_cpuset_that_cannot_be_filled_is_left_out(host: Host) -> None:
    host.tree.refuses["cpuset.cpus", ""] = errno.EACCES
    groups = host.open()
    assert groups.controllers == {"cpu", "memory", "pids", "freezer"}
    assert "Permission denied; be root" in groups.why["cpuset"]
    assert not list((host.tree.root / "cpuset").rglob("*flexmoe*"))


def test_a_tree_that_is_read_only(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EmulationError) as caught:
        open_v1("abc123", host.belongings, host.hierarchies)
    top = host.tree.root / "cpu,cpuacct/box/flexmoe-abc123"
    assert str(caught.value) == (
        f"cannot make the control group {top}: Read-only file system; mount it writable (in "
        "Docker: --privileged)"
    )
