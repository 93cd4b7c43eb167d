"""Limits and usage read from cgroup trees of both versions, built as the kernel shows them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.cgroup import (
    Limits,
    Usage,
    read_limits,
    read_usage,
    usable_cores,
    usage_of,
)

MIB = 1 << 20
NONE = Limits(None, None, None, None)
V1_UNLIMITED = "9223372036854771712"


class Tree:
    """A cgroup mount and a membership file in a folder of their own."""

    def __init__(self, root: Path) -> None:
        self.mount = root / "cgroup"
        self.mount.mkdir()
        self.membership = root / "membership"

    def group(self, path: str, **files: object) -> None:
        """Make a group; ``memory_max=5`` writes the file ``memory.max``."""
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")

    def limits(self, *lines: str) -> Limits:
        """What a process with this membership may use."""
        self.membership.write_text("".join(f"{line}\n" for line in lines))
        return read_limits(self.mount, self.membership)

    def usage(self, *lines: str) -> Usage:
        """What the group of a process with this membership has used."""
        self.membership.write_text("".join(f"{line}\n" for line in lines))
        return read_usage(self.mount, self.membership)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- version 2 -----------------------------------------------------------------------------------


def test_v2_limits(tree: Tree) -> None:
    tree.group("a", memory_max=64 * MIB, memory_current=10 * MIB, cpu_max="50000 100000")
    assert tree.limits("0::/a") == Limits(64 * MIB, 10 * MIB, 54 * MIB, 0.5)


def test_v2_without_limits(tree: Tree) -> None:
    tree.group("", cgroup_controllers="cpu memory")
    tree.group("a", memory_max="max", memory_current=10 * MIB, cpu_max="max 100000")
    assert tree.limits("0::/a") == NONE


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000", 2.0), ("1500 10000", 0.15), ("25000", 0.25), ("max", None), ("", None)],
)
def test_v2_quota(tree: Tree, text: str, cores: float | None) -> None:
    tree.group("a", cpu_max=text)
    assert tree.limits("0::/a").cpu_cores == cores


def test_v2_the_tightest_on_the_way_up_wins(tree: Tree) -> None:
    tree.group("", memory_max="max", cpu_max="max 100000")
    tree.group("a", memory_max=32 * MIB, memory_current=30 * MIB, cpu_max="100000 100000")
    tree.group("a/b", memory_max="max", memory_current=9 * MIB, cpu_max="25000 100000")
    tree.group("a/b/c", memory_max=40 * MIB, memory_current=8 * MIB, cpu_max="50000 100000")
    tree.group("a/b/c/child", memory_max=1, cpu_max="1000 100000")
    tree.group("a/other", memory_max=1, cpu_max="1000 100000")
    assert tree.limits("0::/a/b/c") == Limits(32 * MIB, 30 * MIB, 2 * MIB, 0.25)


def test_an_ancestor_that_is_full_leaves_less_than_the_own_limit(tree: Tree) -> None:
    """Eight devices in one container: its memory is theirs together."""
    tree.group("box", memory_max=100 * MIB, memory_current=99 * MIB)
    tree.group("box/device", memory_max=50 * MIB, memory_current=10 * MIB)
    assert tree.limits("0::/box/device") == Limits(50 * MIB, 10 * MIB, 1 * MIB, None)


def test_v2_files_that_the_kernel_drops_first_are_not_used_memory(tree: Tree) -> None:
    stat = f"anon {6 * MIB}\ninactive_anon 5\ninactive_file {30 * MIB}\nactive_file 7"
    tree.group("a", memory_max=64 * MIB, memory_current=40 * MIB, memory_stat=stat)
    assert tree.limits("0::/a") == Limits(64 * MIB, 10 * MIB, 54 * MIB, None)


def test_more_cache_than_use_is_nothing_used(tree: Tree) -> None:
    """The kernel writes the two files at different moments."""
    tree.group("a", memory_max=64, memory_current=10, memory_stat="inactive_file 11")
    assert tree.limits("0::/a") == Limits(64, 0, 64, None)


def test_use_above_the_limit_leaves_nothing(tree: Tree) -> None:
    tree.group("a", memory_max=64, memory_current=65)
    assert tree.limits("0::/a").memory_left_bytes == 0


def test_a_limit_without_a_use_file(tree: Tree) -> None:
    tree.group("a", memory_max=64 * MIB)
    assert tree.limits("0::/a") == Limits(64 * MIB, None, 64 * MIB, None)


def test_a_container_sees_its_own_group_as_the_root(tree: Tree) -> None:
    """The membership names the group's path on the host, which is not mounted here."""
    tree.group("", memory_max=16 * MIB, memory_current=MIB, cpu_max="10000 100000")
    expected = Limits(16 * MIB, MIB, 15 * MIB, 0.1)
    for path in ("/", "/docker/0123abcd", "/../other"):
        assert tree.limits(f"0::{path}") == expected


# --- version 1 -----------------------------------------------------------------------------------


def test_v1_limits(tree: Tree) -> None:
    tree.group(
        "memory/a",
        memory_limit_in_bytes=64 * MIB,
        memory_usage_in_bytes=40 * MIB,
        memory_stat=f"cache 1\ninactive_file 3\ntotal_inactive_file {30 * MIB}",
    )
    tree.group("cpu/a", cpu_cfs_quota_us=20000, cpu_cfs_period_us=10000)
    limits = tree.limits("4:memory:/a", "1:cpu:/a", "9:name=systemd:/")
    assert limits == Limits(64 * MIB, 10 * MIB, 54 * MIB, 2.0)


def test_v1_without_limits(tree: Tree) -> None:
    tree.group("memory", memory_limit_in_bytes=V1_UNLIMITED, memory_usage_in_bytes=5 * MIB)
    tree.group("memory/a", memory_limit_in_bytes=V1_UNLIMITED, memory_usage_in_bytes=4 * MIB)
    tree.group("cpu/a", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    assert tree.limits("4:memory:/a", "1:cpu:/a") == NONE


def test_v1_the_tightest_on_the_way_up_wins_for_each_controller(tree: Tree) -> None:
    tree.group("memory", memory_limit_in_bytes=V1_UNLIMITED)
    tree.group("memory/m", memory_limit_in_bytes=90 * MIB, memory_usage_in_bytes=60 * MIB)
    tree.group("memory/m/n", memory_limit_in_bytes=70 * MIB, memory_usage_in_bytes=50 * MIB)
    tree.group("cpu/c", cpu_cfs_quota_us=5000, cpu_cfs_period_us=10000)
    tree.group("cpu/c/d", cpu_cfs_quota_us=8000, cpu_cfs_period_us=10000)
    tree.group("cpu/m", cpu_cfs_quota_us=1, cpu_cfs_period_us=10000)
    limits = tree.limits("4:memory:/m/n", "1:cpu:/c/d")
    assert limits == Limits(70 * MIB, 50 * MIB, 20 * MIB, 0.5)


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_v1_controllers_mounted_together(tree: Tree, folder: str) -> None:
    tree.group(f"{folder}/a", cpu_cfs_quota_us=3000, cpu_cfs_period_us=10000)
    assert tree.limits("2:cpu,cpuacct:/a").cpu_cores == 0.3


def test_both_versions_at_once(tree: Tree) -> None:
    """systemd's hybrid: version 2 is mounted below, the controllers are of version 1."""
    tree.group("memory/a", memory_limit_in_bytes=64 * MIB, memory_usage_in_bytes=MIB)
    tree.group("unified/a", cpu_max="70000 100000")
    limits = tree.limits("4:memory:/a", "0::/a")
    assert limits == Limits(64 * MIB, MIB, 63 * MIB, 0.7)


# --- usage ---------------------------------------------------------------------------------------

V2_GROUP = {
    "cgroup_events": "populated 1",
    "cpu_stat": "usage_usec 2500000\nuser_usec 2000000\nnr_periods 300\nnr_throttled 120\n"
    "throttled_usec 1500000\nnr_bursts 0",
    "memory_current": 40 * MIB,
    "memory_stat": f"anon 6\ninactive_file {30 * MIB}",
    "memory_peak": 50 * MIB,
    "memory_max": 64 * MIB,
    "memory_events": "low 0\noom 3\noom_kill 2\noom_group_kill 0",
    "io_stat": "8:0 rbytes=100 wbytes=7 rios=3 wios=1 dbytes=0 dios=0\n254:16 rbytes=20 wbytes=1",
    "pids_current": 5,
}
USED = Usage(2.5, 300, 120, 1.5, 10 * MIB, 50 * MIB, 64 * MIB, 2, 120, 8, 5)


def make_v1_group(tree: Tree, path: str = "a") -> dict[str, Path]:
    """The same group as `V2_GROUP`, by version 1; its folders by controller."""
    stat = "nr_periods 300\nnr_throttled 120\nthrottled_time 1500000000\nnr_bursts 0"
    tree.group(f"cpu/{path}", cpu_stat=stat)
    tree.group(f"cpuacct/{path}", cpuacct_usage=2_500_000_000)
    tree.group(
        f"memory/{path}",
        memory_usage_in_bytes=40 * MIB,
        memory_stat=f"inactive_file 1\ntotal_inactive_file {30 * MIB}",
        memory_max_usage_in_bytes=50 * MIB,
        memory_limit_in_bytes=64 * MIB,
        memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2",
    )
    served = "8:0 Read 100\n8:0 Write 7\n8:0 Sync 9\n8:0 Total 107\n254:16 Read 20\n254:16 Write 1"
    tree.group(
        f"blkio/{path}", **{"blkio_throttle.io_service_bytes_recursive": f"{served}\nTotal 8"}
    )
    tree.group(f"pids/{path}", pids_current=5)
    return {name: tree.mount / name / path for name in CONTROLLERS}


CONTROLLERS = ("cpu", "cpuacct", "memory", "blkio", "pids")
V1_LINES = [f"{number}:{name}:/a" for number, name in enumerate(CONTROLLERS, 1)]


def test_v2_usage(tree: Tree) -> None:
    tree.group("a", **V2_GROUP)
    assert usage_of({"v2": tree.mount / "a"}) == USED
    assert tree.usage("0::/a") == USED


def test_v1_usage(tree: Tree) -> None:
    folders = make_v1_group(tree)
    assert usage_of(folders) == USED
    assert tree.usage(*V1_LINES, "9:name=systemd:/a") == USED


def test_v1_usage_of_controllers_mounted_together(tree: Tree) -> None:
    tree.group("cpu,cpuacct/a", cpu_stat="nr_periods 3", cpuacct_usage=1_000_000_000)
    assert tree.usage("2:cpu,cpuacct:/a") == Usage(cpu_s=1.0, periods=3)


def test_a_controller_alone_tells_its_own(tree: Tree) -> None:
    folders = make_v1_group(tree)
    assert usage_of({"pids": folders["pids"], "freezer": folders["pids"]}) == Usage(pids=5)


def test_usage_is_that_of_the_own_group_alone(tree: Tree) -> None:
    tree.group("a", **V2_GROUP)
    tree.group("a/b", cgroup_events="populated 1", memory_current=MIB)
    assert tree.usage("0::/a/b") == Usage(memory_bytes=MIB)


def test_of_the_hosts_root_nothing_is_told(tree: Tree) -> None:
    """What version 2 does not have in the root, and version 1 nowhere else."""
    root = {name: text for name, text in V2_GROUP.items() if name != "cgroup_events"}
    tree.group("", **root)
    make_v1_group(tree, "")
    for name in CONTROLLERS:
        (tree.mount / name / "release_agent").touch()
    assert tree.usage("0::/", *(line[:-1] for line in V1_LINES)) == Usage()


def test_a_containers_root_is_its_group(tree: Tree) -> None:
    tree.group("", **V2_GROUP)
    assert tree.usage("0::/docker/0123abcd") == tree.usage("0::/") == USED


def test_a_containers_root_is_its_group_in_version_1_too(tree: Tree) -> None:
    make_v1_group(tree, "")
    assert tree.usage(*(line[:-1] + "docker/0123" for line in V1_LINES)) == USED


def test_of_both_versions_each_tells_what_the_other_does_not(tree: Tree) -> None:
    make_v1_group(tree)
    tree.group("unified/a", cgroup_events="populated 1", cpu_stat="usage_usec 9", memory_peak=1)
    lines = [line for line in V1_LINES if "cpuacct" not in line]
    assert tree.usage(*lines, "0::/a") == dataclasses.replace(USED, cpu_s=9e-6)


def test_a_limit_that_is_none(tree: Tree) -> None:
    tree.group("a", memory_max="max")
    tree.group("memory/a", memory_limit_in_bytes=V1_UNLIMITED)
    assert usage_of({"v2": tree.mount / "a"}).memory_limit_bytes is None
    assert usage_of({"memory": tree.mount / "memory/a"}).memory_limit_bytes is None


@given(st.dictionaries(st.sampled_from(sorted(V2_GROUP)), st.text("0123456789 =:\n-.abrwytes_ok")))
def test_whatever_the_files_hold_it_is_read(files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        tree.group("a", **files)
        usage = usage_of({"v2": tree.mount / "a"})
    told = dataclasses.asdict(usage).values()
    assert all(value is None or value >= 0 for value in told)


def test_no_usage_without_cgroups(tmp_path: Path) -> None:
    assert read_usage(tmp_path / "none", tmp_path / "none") == Usage()


# --- what is not there ---------------------------------------------------------------------------


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "none", tmp_path / "none") == NONE


def test_a_membership_without_a_mount(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/a\n4:memory:/a\n1:cpu:/a\n")
    assert read_limits(tmp_path / "none", tmp_path / "membership") == NONE


def test_files_that_are_missing_or_strange(tree: Tree) -> None:
    tree.group("a", memory_max="", memory_current="many", memory_stat="inactive_file")
    tree.group("memory/a", memory_limit_in_bytes="-1")
    tree.group("cpu/a", cpu_cfs_quota_us=5000)
    assert tree.limits("0::/a", "4:memory:/a", "1:cpu:/a") == NONE


def test_cores_of_this_process(monkeypatch: pytest.MonkeyPatch, tree: Tree) -> None:
    tree.membership.write_text("0::/a\n")
    monkeypatch.setattr(
        "edge_runtime.cgroup.read_limits.__defaults__", (tree.mount, tree.membership)
    )
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores() == affine
    tree.group("a", cpu_max="5000 100000")
    assert usable_cores() == 0.05
    tree.group("a", cpu_max="100000000 100000")
    assert usable_cores() == affine
