"""Asked and got: the figures made of measurements, and real hogs in real places."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.calibration.quota import CpuQuota, of_cores
from device_profiles.catalogue.profiles import find_board, find_link
from device_profiles.emulation.abilities import Abilities, find_abilities
from device_profiles.emulation.group import Group
from device_profiles.emulation.testbed import Testbed, Wanted
from device_profiles.fidelity import fidelity, hog_runs
from device_profiles.fidelity.fidelity import Fidelity
from device_profiles.fidelity.hog_runs import Got, Transfer, cpu_share, steady_rate, transfer_s
from device_profiles.fleet.availability import parse_availability
from device_profiles.fleet.fleet_plan import DevicePlan
from edge_runtime.cgroup import Usage
from edge_runtime.transport.shape import Shape

MIB = 1024 * 1024
QUICK = fidelity._Effort(0.1, 1, 10, 0.3, packets=4, link_most_s=1.0, kill=True)


def plan(
    name: str, shape: Shape, memory_mib: int = 48, work: float = 0.2, train: float = 0.05
) -> DevicePlan:
    return DevicePlan(
        name=name,
        number=0,
        board=find_board("pi-zero-2w"),
        link=find_link("lte-m"),
        threads=1,
        memory_mib=memory_mib,
        ratios={"work": work, "train": train},
        quotas=MappingProxyType({"work": of_cores(work), "train": of_cores(train)}),
        shape=shape,
        availability=parse_availability("always", None),
        leave="goodbye",
    )


def wanted(plans: Sequence[DevicePlan]) -> dict[str, Wanted]:
    return {p.name: Wanted(p.quotas, p.memory_mib * MIB, p.shape) for p in plans}


@pytest.fixture(scope="module")
def abilities() -> Abilities:
    if os.geteuid() != 0:
        pytest.skip("control groups and namespaces need root")
    found = find_abilities()
    if not (found.cpu and found.memory and found.namespaces and found.tbf):
        pytest.skip(f"not all can be enforced here: {dict(found.why)}")
    return found


def test_hogs_in_real_places_get_what_was_asked_for(abilities: Abilities) -> None:
    # The second is a device of the same kind: what its link loses has another seed.
    plans = [plan("a", Shape(4e6, 2e6)), plan("b", Shape(4e6, 2e6, seed=9))]
    plans.append(plan("c", Shape(1e6, 1e6, delay_s=0.01), memory_mib=64))
    with Testbed(wanted(plans), abilities, 2.0) as testbed:
        rows = fidelity._fidelity(plans, testbed, QUICK)
        probed = fidelity._fidelity(plans, testbed, replace(QUICK, kill=False))
        assert all(testbed.kills(p.name) == 0 for p in plans)
        assert testbed.groups is not None
        kind = testbed.groups.kind
    first, other = rows
    assert (first.profile, first.memory_killed) == ("pi-zero-2w+lte-m", True)
    assert (first.memory_asked_mib, first.memory_got_mib) == (48, 48.0)
    assert (other.memory_asked_mib, other.memory_got_mib) == (64, 64.0)
    assert (first.up_asked_bps, first.down_asked_bps) == (4e6, 2e6)
    assert first.up_got_bps is not None and 2e6 < first.up_got_bps < 4.8e6
    assert first.down_got_bps is not None and 1e6 < first.down_got_bps < 2.4e6
    assert (first.cpu_asked, first.train_cpu_asked) == (0.2, 0.05)
    # Other load may take of what a quota allows, but nothing gives more.
    assert first.cpu_got is not None and 0 < first.cpu_got < 0.3
    assert first.train_cpu_got is not None and 0 < first.train_cpu_got < 0.12
    assert first.enforcement == f"cpu: {kind}, memory: {kind}, link: tc tbf"
    how = "tc netem" if abilities.netem else "emulated in user space"
    assert other.enforcement == f"{first.enforcement}, delay: {how}"
    assert [(row.memory_got_mib, row.memory_killed) for row in probed] == [
        (48.0, False),
        (64.0, False),
    ]


@pytest.fixture
def nothing_enforced() -> Iterator[tuple[list[DevicePlan], Testbed]]:
    plans = [plan("a", Shape(800e3, 0, delay_s=0.01))]
    nothing = Abilities(
        groups="",
        cpu=False,
        memory=False,
        swap_off=False,
        pids=False,
        cpuset=False,
        namespaces=False,
        tbf=False,
        netem=False,
        why={},
    )
    with Testbed(wanted(plans), nothing, 2.0) as testbed:
        yield plans, testbed


def test_what_is_not_enforced_has_no_figures_and_a_link_has_those_of_user_space(
    nothing_enforced: tuple[list[DevicePlan], Testbed],
) -> None:
    (row,) = fidelity._fidelity(*nothing_enforced, QUICK)
    assert row.up_got_bps is not None and 400e3 < row.up_got_bps < 1e6
    assert row == Fidelity(
        profile="pi-zero-2w+lte-m",
        cpu_asked=None,
        cpu_got=None,
        train_cpu_asked=None,
        train_cpu_got=None,
        memory_asked_mib=None,
        memory_got_mib=None,
        up_asked_bps=800e3,
        up_got_bps=row.up_got_bps,
        down_asked_bps=None,  # no limit was asked for
        down_got_bps=None,
        enforcement="cpu: not enforced, memory: not enforced, link: emulated in user space, "
        "delay: emulated in user space",
        disturbed=row.disturbed,
    )


class Clock:
    """Stands for the module `time`: it passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class HeldGroup:
    """A group whose hog gets `cores`, in bursts of a tick of 4 ms, as the kernel gives them.

    `slow` is what it still gets of that after three seconds; `held` the share of its periods that
    end by the quota.
    """

    def __init__(self, clock: Clock, slow: float = 1.0, held: float = 1.0) -> None:
        self._clock, self._slow, self._held = clock, slow, held
        self.quota = of_cores(1.0)

    def set_cpu(self, quota: CpuQuota | None) -> None:
        assert quota is not None
        self.quota = quota

    def usage(self) -> Usage:
        now_s, cycle_s = self._clock.now_s, 0.004 / self.quota.cores
        bursts, rest_s = divmod(now_s, cycle_s)
        used_s = bursts * 0.004 + min(rest_s, 0.004)
        if now_s > 3.0:
            used_s -= (used_s - 3.0 * self.quota.cores) * (1 - self._slow)
        periods = int(now_s * 1e6 / self.quota.period_us)
        throttled = int(self._held * periods)
        return Usage(cpu_s=used_s, periods=periods, throttled_periods=throttled)


@pytest.mark.parametrize("cores", [0.011, 0.025, 0.13, 0.36])
def test_a_share_is_exact_though_the_kernel_gives_it_in_ticks(
    monkeypatch: pytest.MonkeyPatch, cores: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(hog_runs, "time", clock)
    group = HeldGroup(clock)
    got = cpu_share(cast(Group, group), of_cores(cores), 1, 0.2, 5, 40)
    assert group.quota == of_cores(cores)
    assert got.value == pytest.approx(cores, rel=0.01)
    assert not got.disturbed


@pytest.mark.parametrize(("slow", "held"), [(0.5, 1.0), (1.0, 0.5)], ids=["slower", "not held"])
def test_a_hog_that_other_load_kept_from_its_quota_was_disturbed(
    monkeypatch: pytest.MonkeyPatch, slow: float, held: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(hog_runs, "time", clock)
    group = cast(Group, HeldGroup(clock, slow, held))
    assert cpu_share(group, of_cores(0.36), 1, 1.0, 5, 40).disturbed


def test_a_link_that_lets_nothing_through_has_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hog_runs, "_command", lambda *_: ["false"])
    shape = Shape(1e6, 1e6)
    transfer = Transfer("down", shape, "127.0.0.1", None, None, 0.1, tmp_path / "log")
    assert transfer.rate() is None


@given(
    rate_bps=st.floats(1e3, 1e9),
    burst_bytes=st.integers(0, 100_000),
    packets=st.integers(8, 60),
)
def test_a_rate_is_that_after_the_burst(rate_bps: float, burst_bytes: int, packets: int) -> None:
    each_s = 8 * 1448 / rate_bps
    arrivals = [(0.0, 1448), (1e-9, 1448 + burst_bytes)]
    arrivals += [(n * each_s, arrivals[1][1] + n * 1448) for n in range(1, packets)]
    got = steady_rate(arrivals, 0.25 * packets * each_s)
    assert got is not None
    assert got.value == pytest.approx(rate_bps, rel=1e-6)
    assert not got.disturbed


def test_a_rate_that_changes_on_the_way_was_disturbed() -> None:
    arrivals = [(n / 10, 1000 * n) for n in range(20)]
    assert steady_rate(arrivals, 0.5) == Got(pytest.approx(80e3), False)
    stopped = arrivals[:12] + [(at_s + 1.0, bytes_) for at_s, bytes_ in arrivals[12:]]
    got = steady_rate(stopped, 0.5)
    assert got is not None and got.disturbed


@pytest.mark.parametrize("arrivals", [[], [(0.0, 5)], [(0.0, 5), (0.1, 9)], [(0.0, 5)] * 4])
def test_too_few_arrivals_are_no_rate(arrivals: list[tuple[float, int]]) -> None:
    assert steady_rate(arrivals, 0.0) is None


def test_a_slow_link_is_looked_at_for_as_long_as_its_packets_take() -> None:
    assert transfer_s(94.4e6, 1.0, 24, 15.0) == 1.0
    assert transfer_s(26e3, 1.0, 24, 15.0) == pytest.approx(24 * 1448 * 8 / 26e3)
    assert transfer_s(5470, 1.0, 24, 15.0) == 15.0
