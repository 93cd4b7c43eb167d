"""Version 2's files: where a run may have its groups, what is written, in which order."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from device_profiles.calibration.quota import CpuQuota, of_cores
from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.cgroup_v2 import V2Groups, open_v2
from device_profiles.emulation.control_files import Hierarchy
from device_profiles.emulation.group import GroupLimits
from edge_runtime.errors import EmulationError
from tests.device_profiles.control_tree import ControlTree

MIB = 1 << 20
ME = str(os.getpid())
OTHER = "5000001"  # over the kernel's most, and so never a process
TEMPLATE = {
    "cgroup.controllers": "cpuset cpu io memory pids",
    "cgroup.subtree_control": "",
    "cgroup.type": "domain",
    "cgroup.procs": "",
    "cgroup.kill": "",
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 2500000",
    "memory.max": "max",
    "memory.swap.max": "max",
    "pids.max": "max",
    "cpuset.cpus": "",
}


class Host:
    """A host with the tree ``/slice/own``: we are in ``own``."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.tree = ControlTree(folder / "cgroup", patch, TEMPLATE)
        self.root, self.slice = self.tree.root, self.tree.root / "slice"
        self.own = self.slice / "own"
        (self.root / "cgroup.type").unlink()
        self.tree.make(self.slice)
        self.tree.make(self.own)
        (self.own / "cgroup.procs").write_text(f"{ME}\n")
        self.belongings = Belongings("abc123", folder)

    def open(self, own: Path | None = None, mount: Path | None = None) -> V2Groups:
        hierarchy = Hierarchy(2, frozenset(), mount or self.root, own or self.own)
        return open_v2("abc123", self.belongings, hierarchy)

    def set(self, group: Path, file: str, text: str) -> None:
        (group / file).write_text(text)

    def noted(self) -> list[str]:
        return self.belongings.path.read_text().splitlines()[1:]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_at_the_root_of_all_nobody_has_to_move(host: Host) -> None:
    host.set(host.root, "cgroup.procs", f"{OTHER}\n{ME}\n")
    groups = host.open(own=host.root)
    names = ("cpu", "memory", "pids", "cpuset", "io")
    assert host.tree.writes == [
        (f"{group}cgroup.subtree_control", f"+{name}")
        for name in names
        for group in ("", "flexmoe-abc123/")
    ]
    assert groups.controllers == {"cpu", "memory", "pids", "cpuset", "freezer"}
    assert groups.leaf is None
    assert host.noted() == [f"group {host.root / 'flexmoe-abc123'}"]
    groups.close()
    assert not list(host.root.rglob("flexmoe*"))
    assert host.tree.read("cgroup.procs").split() == [OTHER, ME]


def test_every_write_of_a_group(host: Host) -> None:
    groups = host.open(own=host.root)
    host.tree.writes.clear()
    limits = GroupLimits(CpuQuota(0.5, 10_000), 64 * MIB, 20, frozenset({0, 1, 3}))
    group = groups.create("d1", limits)
    assert host.tree.writes == [
        (f"flexmoe-abc123/d1/{file}", text)
        for file, text in (
            ("cpuset.cpus", "0,1,3"),
            ("cpu.max", "5000 10000"),
            ("memory.max", str(64 * MIB)),
            ("memory.swap.max", "0"),
            ("pids.max", "20"),
        )
    ]
    assert group.limits() == limits
    host.set(group.folder, "cpuset.cpus", "0-1,3")
    assert group.limits().cpus == {0, 1, 3}
    assert group.join == [group.folder / "cgroup.procs"]
    assert group.usage().cpu_s == 2.5
    host.tree.writes.clear()
    group.set_cpu(CpuQuota(0.002, 500_000))
    group.set_cpu(None)
    assert [text for _, text in host.tree.writes] == ["1000 500000", "max"]
    assert group.limits().cpu is None
    assert groups.create("d2", GroupLimits()).limits() == GroupLimits()


def test_in_a_scope_of_our_own_we_make_room_and_come_back(host: Host) -> None:
    groups = host.open()
    leaf = host.own / "flexmoe-abc123-self"
    assert groups.leaf == leaf
    assert host.noted() == [f"group {host.own / 'flexmoe-abc123'}", f"leaf {leaf}"]
    assert host.tree.writes[0] == (str((leaf / "cgroup.procs").relative_to(host.root)), ME)
    assert (host.own / "cgroup.procs").read_text() == ""
    assert set(host.tree.read("slice/own/cgroup.subtree_control").split()) >= {"cpu", "memory"}
    group = groups.create("d1", GroupLimits(memory_bytes=MIB))
    host.set(group.folder, "cgroup.procs", f"{OTHER}\n")
    groups.close()
    assert host.tree.read("slice/own/cgroup.procs") == ME
    assert host.tree.read("slice/own/cgroup.subtree_control") == ""
    assert not list(host.root.rglob("flexmoe*"))


def test_the_janitor_brings_us_back_as_well(host: Host) -> None:
    host.open().create("d1", GroupLimits())
    assert host.belongings.remove_all() == []
    assert host.tree.read("slice/own/cgroup.procs") == ME
    assert not list(host.root.rglob("flexmoe*"))


def test_all_that_a_container_sees_may_be_moved(host: Host) -> None:
    host.set(host.own, "cgroup.procs", f"{OTHER}\n{ME}\n")
    groups = host.open(mount=host.own)
    assert host.tree.read("slice/own/flexmoe-abc123-self/cgroup.procs").split() == [OTHER, ME]
    groups.close()
    assert sorted(host.tree.read("slice/own/cgroup.procs").split()) == sorted([OTHER, ME])


def test_strangers_are_not_moved_but_gone_around(host: Host) -> None:
    host.set(host.own, "cgroup.procs", f"{OTHER}\n{ME}\n")
    groups = host.open()
    assert groups.folder == host.slice / "flexmoe-abc123"
    assert groups.leaf is None
    assert host.tree.read("slice/own/cgroup.procs").split() == [OTHER, ME]
    groups.close()


def test_what_limits_us_limits_the_devices(host: Host) -> None:
    """No way around strangers where the own group is limited."""
    host.set(host.own, "cgroup.procs", f"{OTHER}\n{ME}\n")
    for file, limit in (("memory.max", "1000000"), ("cpu.max", "50000 100000")):
        host.set(host.own, file, limit)
        with pytest.raises(EmulationError) as caught:
            host.open()
        assert str(caught.value) == (
            f"{host.own} has processes in it and is not delegated: try systemd-run --user --scope "
            "-p Delegate=yes flexmoe ..."
        )
        host.set(host.own, file, "max")
    assert host.tree.writes == []
    assert not list(host.root.rglob("flexmoe*"))


def test_controllers_that_are_not_passed_down_are_taken_further_up(host: Host) -> None:
    host.set(host.own, "cgroup.controllers", "memory pids")
    assert host.open().folder == host.slice / "flexmoe-abc123"


def test_with_memory_alone(host: Host) -> None:
    for group in (host.root, host.slice, host.own):
        host.set(group, "cgroup.controllers", "memory pids")
    groups = host.open()
    assert groups.controllers == {"memory", "pids", "freezer"}
    assert groups.why["cpu"] == f"cgroup v2 at {host.own} has no cpu controller"
    with pytest.raises(EmulationError, match=r"^cpu cannot be limited: cgroup v2 at .* has no cpu"):
        groups.create("d1", GroupLimits(cpu=of_cores(0.5)))
    assert not (groups.folder / "d1").exists()


def test_without_controllers(host: Host) -> None:
    for group in (host.root, host.slice, host.own):
        host.set(group, "cgroup.controllers", "")
    with pytest.raises(EmulationError, match=f"^cgroup v2 at {host.own} is without cpu and memory"):
        host.open()


def test_one_controller_that_is_refused_takes_no_other_with_it(host: Host) -> None:
    host.tree.refuses["cgroup.subtree_control", "+cpu"] = errno.EINVAL
    groups = host.open()
    assert groups.controllers == {"memory", "pids", "cpuset", "freezer"}
    assert "does not take '+cpu': Invalid argument" in groups.why["cpu"]
    groups.close()
    host.tree.refuses["cgroup.subtree_control", "+memory"] = errno.EBUSY
    with pytest.raises(EmulationError, match=r"does not take '\+cpu'"):
        host.open()
    assert host.tree.read("slice/own/cgroup.procs") == ME
    assert not list(host.root.rglob("flexmoe*"))


def test_a_process_that_cannot_be_moved(host: Host) -> None:
    host.tree.refuses["cgroup.procs", ""] = errno.EACCES
    with pytest.raises(EmulationError, match=f"cannot move process {ME} into .*be root, or have"):
        host.open()
    assert not list(host.root.rglob("flexmoe*"))
    assert host.tree.read("slice/own/cgroup.procs") == ME


def test_kill_before_linux_5_14_freezes_first(host: Host) -> None:
    del host.tree.template["cgroup.kill"]
    host.tree.template["cgroup.freeze"] = "0"
    group = host.open().create("d1", GroupLimits())
    host.tree.writes.clear()
    group.kill()
    assert host.tree.writes == []
    host.set(group.folder, "cgroup.procs", f"{OTHER}\n")
    frozen: list[str] = []
    original = os.kill

    def kill(pid: int, number: int) -> None:
        frozen.append((group.folder / "cgroup.freeze").read_text())
        host.set(group.folder, "cgroup.procs", "")
        original(pid, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", kill)
        group.kill()
    assert frozen == ["1"]
    assert [text for path, text in host.tree.writes if path.endswith("freeze")] == ["1", "0"]


def test_without_swap_files(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del host.tree.template["memory.swap.max"]
    for swaps, said in (("a\nb\n", {"swap": "this kernel counts no swap"}), ("a\n", {})):
        (tmp_path / "swaps").write_text(swaps)
        monkeypatch.setattr(
            "device_profiles.emulation.control_files.has_swap.__defaults__", (tmp_path / "swaps",)
        )
        groups = host.open()
        assert groups.why == said
        assert groups.create("d1", GroupLimits(memory_bytes=MIB)).limits().memory_bytes == MIB
        groups.close()
