"""What this host can enforce, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from device_profiles.calibration.quota import CpuQuota
from device_profiles.emulation import abilities as module
from device_profiles.emulation.abilities import Abilities, find_abilities, lines
from device_profiles.emulation.belongings import Belongings, find_leftovers
from device_profiles.emulation.control_files import find_hierarchies
from device_profiles.emulation.group import Controller, GroupLimits, Kind
from device_profiles.emulation.groups import Groups, open_groups
from device_profiles.emulation.network import NetworkAbilities
from edge_runtime.cgroup import Usage
from edge_runtime.errors import EmulationError

ALL = NetworkAbilities(namespaces=True, tbf=True, netem=True, why="")
UNKNOWN = "`tc qdisc add` failed: Error: Specified qdisc kind is unknown."
BY_GROUPS = ("cpu", "memory", "swap_off", "pids", "cpuset")


class PaperGroup:
    """A group that no kernel stands behind. `rounds`: to what it rounds memory down."""

    def __init__(self, name: str, limits: GroupLimits, join: list[Path], rounds: int) -> None:
        self.name, self.join = name, join
        memory = limits.memory_bytes and limits.memory_bytes // rounds * rounds
        self._limits = GroupLimits(limits.cpu, memory, limits.pids, limits.cpus)

    def set_cpu(self, quota: CpuQuota | None) -> None: ...

    def usage(self) -> Usage:
        return Usage()

    def limits(self) -> GroupLimits:
        return self._limits

    def kill(self) -> None: ...

    def remove(self) -> None: ...


class PaperGroups:
    kind: Kind = "cgroup v2"

    def __init__(
        self, why: Mapping[str, str], join: list[Path] | None = None, rounds: int = 1
    ) -> None:
        self.why, self._join, self._rounds = why, join or [], rounds
        every: tuple[Controller, ...] = ("cpu", "memory", "pids", "cpuset")
        self.controllers: frozenset[Controller] = frozenset(c for c in every if c not in why)

    def create(self, name: str, limits: GroupLimits) -> PaperGroup:
        for controller in limits.needs:
            if controller in self.why:
                raise EmulationError(self.why[controller])
        return PaperGroup(name, limits, self._join, self._rounds)

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("device_profiles.emulation.belongings.default_folder", lambda: tmp_path)
    return tmp_path


def find(groups: Groups | EmulationError, network: NetworkAbilities = ALL) -> Abilities:
    def open_(run: str, belongings: Belongings) -> Groups:
        if isinstance(groups, EmulationError):
            raise groups
        return groups

    return find_abilities(open_, lambda: network)


def test_a_host_that_can_all(notes: Path) -> None:
    found = find(PaperGroups({}))
    assert found == Abilities("cgroup v2", *[True] * 8, why={})
    assert lines(found) == [
        ("CPU", "cgroup v2 quota, period 10 ms", "OK"),
        ("memory", "cgroup v2 limit, swap off", "OK"),
        ("processes", "cgroup v2 limit of pids", "OK"),
        ("choice of cores", "cgroup v2 cpuset", "OK"),
        ("link rate", "tc tbf in network namespaces", "OK"),
        ("link delay, loss", "tc netem in network namespaces", "OK"),
    ]
    assert list(notes.iterdir()) == []


def test_a_host_that_can_nothing(notes: Path) -> None:
    why = "not root, and /a is not delegated"
    network = NetworkAbilities(False, False, False, "network namespaces need root")
    found = find(EmulationError(why), network)
    names = ("namespaces", "tbf", "netem")
    reasons = {**dict.fromkeys(BY_GROUPS, why), **dict.fromkeys(names, network.why)}
    assert found == Abilities(why=reasons)
    assert [(how, verdict) for _, how, verdict in lines(found)] == [
        *[(why, "not enforced")] * 4,
        *[("emulated in user space: network namespaces need root", "in user space")] * 2,
    ]
    assert list(notes.iterdir()) == []


def test_a_kernel_without_netem() -> None:
    found = find(PaperGroups({}), NetworkAbilities(True, True, False, UNKNOWN))
    assert found.why == {"netem": "this kernel has no netem"}
    rate, delay = lines(found)[-2:]
    assert rate == ("link rate", "tc tbf in network namespaces", "OK")
    assert delay == (
        "link delay, loss",
        "emulated in user space: this kernel has no netem",
        "in user space",
    )


def test_without_tbf_netem_is_of_no_use() -> None:
    found = find(PaperGroups({}), NetworkAbilities(True, False, False, UNKNOWN))
    assert found.why == {"tbf": UNKNOWN, "netem": UNKNOWN}
    assert [how for _, how, _ in lines(found)[-2:]] == [f"emulated in user space: {UNKNOWN}"] * 2


def test_controllers_and_swap_that_are_missing() -> None:
    found = find(PaperGroups({"cpu": "no cpu here", "swap": "this kernel counts no swap"}))
    assert (found.cpu, found.memory, found.swap_off, found.pids) == (False, True, False, True)
    assert found.why == {"cpu": "no cpu here", "swap_off": "this kernel counts no swap"}
    assert lines(found)[:2] == [
        ("CPU", "no cpu here", "not enforced"),
        ("memory", "cgroup v2 limit, swap stays on: this kernel counts no swap", "OK"),
    ]


def test_a_limit_that_the_kernel_does_not_take_as_it_is() -> None:
    found = find(PaperGroups({}, rounds=100 << 20))
    assert not found.memory and not found.swap_off and found.cpu
    assert found.why["memory"] == f"asked for {64 << 20}, the kernel says 0"


def test_a_group_that_nobody_can_enter(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    found = find(PaperGroups({}, join=[missing]))
    assert not (found.cpu or found.memory or found.pids or found.cpuset)
    said = f"cannot enter {missing}: No such file or directory"
    assert found.why["cpu"] == f"a process in its group does not run: {said}"


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")
    found = find(PaperGroups({}))
    assert found.groups == "" and not found.cpu
    assert found.why["memory"] == "only Linux has control groups"


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups of their own need root")
def test_this_host(notes: Path) -> None:
    runs = []

    def open_(run: str, belongings: Belongings) -> Groups:
        runs.append(run)
        return open_groups(run, belongings)

    found = find_abilities(open_, lambda: ALL)
    assert len(lines(found)) == 6
    assert {name for name in BY_GROUPS if not getattr(found, name)} == set(found.why)
    (run,) = runs
    assert not [h for h in find_hierarchies() if list(h.own.glob(f"flexmoe-{run}*"))]
    assert list(notes.iterdir()) == [] and find_leftovers(notes) == []
