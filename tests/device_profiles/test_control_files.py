"""Where control groups are found, and which version is chosen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.emulation import groups as module
from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.control_files import (
    Hierarchy,
    cpu_list,
    cpus_of,
    find_hierarchies,
    has_swap,
)
from device_profiles.emulation.groups import open_groups
from edge_runtime.errors import EmulationError


class Host:
    """Mounts and memberships as the kernel lists them, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounts = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw"]

    def mount(self, where: str, kind: str, options: str, root: str = "/") -> Path:
        folder = self.folder / where
        folder.mkdir(parents=True)
        shown = str(folder).replace(" ", "\\040")
        self.mounts.append(f"35 22 0:3{len(self.mounts)} {root} {shown} rw shared:9 - {kind} "
                           f"{kind} rw,{options}")  # fmt: skip
        return folder

    def find(self, *memberships: str) -> list[Hierarchy]:
        files = self.folder / "mountinfo", self.folder / "membership"
        for file, lines in zip(files, (self.mounts, memberships), strict=True):
            file.write_text("".join(f"{line}\n" for line in lines))
        return find_hierarchies(*files)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_both_versions_and_controllers_mounted_together(host: Host) -> None:
    cpu = host.mount("cg/cpu,cpuacct", "cgroup", "cpu,cpuacct")
    memory = host.mount("cg/mem ory", "cgroup", "memory")
    systemd = host.mount("cg/systemd", "cgroup", "name=systemd")
    unified = host.mount("cg/unified", "cgroup2", "nsdelegate")
    for folder in (memory / "a/b", unified / "u"):
        folder.mkdir(parents=True)
    found = host.find("4:name=systemd:/", "3:cpuacct,cpu:/", "2:memory:/a/b", "0::/u")
    assert found == [
        Hierarchy(1, frozenset({"cpu", "cpuacct"}), cpu, cpu),
        Hierarchy(1, frozenset({"memory"}), memory, memory / "a/b"),
        Hierarchy(1, frozenset({"name=systemd"}), systemd, systemd),
        Hierarchy(2, frozenset(), unified, unified / "u"),
    ]


def test_in_a_container_the_top_of_the_mount_stands_for_a_group_outside(host: Host) -> None:
    bound = host.mount("memory", "cgroup", "memory", root="/docker/1f")
    outside = host.mount("pids", "cgroup", "pids", root="/docker/1f")
    gone = host.mount("unified", "cgroup2", "rw")
    (bound / "ours").mkdir()
    found = host.find("3:memory:/docker/1f/ours", "2:pids:/other", "0::/no/such")
    assert [h.own for h in found] == [bound / "ours", outside, gone]


def test_of_two_mounts_the_one_that_shows_our_group(host: Host) -> None:
    host.mount("first", "cgroup2", "rw", root="/elsewhere")
    second = host.mount("second", "cgroup2", "rw")
    (second / "u").mkdir()
    assert [h.own for h in host.find("0::/u")] == [second / "u"]


def test_no_control_groups_at_all(host: Host) -> None:
    assert host.find() == []
    assert find_hierarchies(host.folder / "none", host.folder / "none") == []


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cores(cpus: set[int]) -> None:
    assert cpus_of(cpu_list(cpus)) == cpus


def test_lists_of_cores_as_the_kernel_writes_them() -> None:
    assert cpus_of("0-3,5,8-9") == {0, 1, 2, 3, 5, 8, 9}


def test_swap(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    assert not has_swap(swaps)
    swaps.write_text("Filename Type Size Used Priority\n")
    assert not has_swap(swaps)
    swaps.write_text("Filename Type Size Used Priority\n/dev/sdb partition 9 0 -2\n")
    assert has_swap(swaps)


@pytest.mark.parametrize(
    ("in_two", "in_one", "tried"),
    [
        ("cpu memory pids", ["cpu", "memory"], ["v2"]),
        ("memory", ["memory"], ["v2"]),
        ("memory pids", ["cpu", "memory"], ["v1"]),
        ("", ["cpu", "memory"], ["v1"]),
        (None, ["cpu"], ["v1"]),
        ("cpu memory", [], ["v2"]),
        ("", [], []),
        (None, [], []),
    ],
)
def test_which_version_is_used(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    in_two: str | None,
    in_one: list[str],
    tried: list[str],
) -> None:
    """The one with more of CPU and memory; where it does not let us, the other."""
    memberships = []
    for name in in_one:
        host.mount(name, "cgroup", name)
        memberships.append(f"1:{name}:/")
    if in_two is not None:
        unified = host.mount("unified", "cgroup2", "rw")
        for file, text in (("controllers", in_two), ("subtree_control", ""), ("procs", "")):
            (unified / f"cgroup.{file}").write_text(text)
        memberships.append("0::/")
    opened = []

    def refuse(version: str) -> object:
        def open_(*_: object) -> None:
            opened.append(version)
            raise EmulationError(f"no {version}")

        return open_

    monkeypatch.setattr(module, "open_v1", refuse("v1"))
    monkeypatch.setattr(module, "open_v2", refuse("v2"))
    with pytest.raises(EmulationError) as caught:
        open_groups("abc123", Belongings("abc123", host.folder / "notes"), host.find(*memberships))
    assert opened[:1] == tried
    assert opened[1:] == (["v1"] if opened[:1] == ["v2"] and in_one else [])
    said = [f"no {version}" for version in opened]
    if in_two == "":
        said.insert(0, f"cgroup v2 at {host.folder / 'unified'} is without cpu and memory")
    assert str(caught.value) == ("; ".join(said) or "no control groups are mounted here")


def test_this_host_shows_our_groups() -> None:
    for hierarchy in find_hierarchies():
        assert str(os.getpid()) in (hierarchy.own / "cgroup.procs").read_text().split()
