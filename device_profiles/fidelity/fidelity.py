"""How close the emulation comes: what was asked of the kernel, and what hogs got in its places.

All seconds and rates are those of this host: with a time scale in them.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from device_profiles.emulation.groups import GroupLimits, Groups
from device_profiles.emulation.testbed import Testbed
from device_profiles.fidelity.hog_runs import (
    Direction,
    Got,
    Transfer,
    cpu_hog,
    cpu_share,
    memory_at_kill,
    transfer_s,
)
from device_profiles.fleet.fleet_plan import DevicePlan
from edge_runtime.errors import EmulationError
from edge_runtime.turn import Phase

_MIB = 1024 * 1024
_SPARE = 2  # a memory hog may take at most one part in so many of what is free


@dataclass(frozen=True)
class Fidelity:
    """Asked and got of one kind of place, `profile` being board+link; None: not enforced.

    CPU in cores of this host, by phase: `cpu` in phase work, `train_cpu` in phase train. Rates in
    bit/s of TCP payload. `memory_killed`: the memory was measured at a kill, else the kernel was
    asked for its limit. `disturbed`: other load on this host was in the way of a measurement.
    """

    profile: str
    cpu_asked: float | None
    cpu_got: float | None
    train_cpu_asked: float | None
    train_cpu_got: float | None
    memory_asked_mib: float | None
    memory_got_mib: float | None
    up_asked_bps: float | None
    up_got_bps: float | None
    down_asked_bps: float | None
    down_got_bps: float | None
    enforcement: str
    memory_killed: bool = False
    disturbed: bool = False


@dataclass(frozen=True)
class _Effort:
    """How much to measure: CPU in `windows` of `window_s` or so many `periods`, each link for
    `link_s` or `packets`, but at most `link_most_s`; whether to have a memory hog killed."""

    window_s: float
    windows: int
    periods: int
    link_s: float
    packets: int
    link_most_s: float
    kill: bool


def probe(plans: Sequence[DevicePlan], testbed: Testbed, seconds: float = 0.5) -> list[Fidelity]:
    """A short look at each kind of place, before the devices come; memory limits are read back."""
    effort = _Effort(seconds, 1, 20, 2 * seconds, packets=8, link_most_s=12 * seconds, kill=False)
    return _fidelity(plans, testbed, effort)


def measure(plans: Sequence[DevicePlan], testbed: Testbed, seconds: float = 4.0) -> list[Fidelity]:
    """Each kind of place at length; `seconds` for each CPU quota and, at least, each link."""
    effort = _Effort(seconds / 5, 5, 40, seconds, packets=24, link_most_s=15 * seconds, kill=True)
    return _fidelity(plans, testbed, effort)


def _fidelity(plans: Sequence[DevicePlan], testbed: Testbed, effort: _Effort) -> list[Fidelity]:
    """One row for each kind, in the order of `plans`."""
    kinds = {_kind(plan): plan for plan in reversed(plans)}
    plans = [plan for plan in plans if kinds[_kind(plan)] is plan]
    with tempfile.TemporaryDirectory(prefix="flexmoe-fidelity-") as folder:
        hogs = _Hogs(testbed, effort, Path(folder))
        links = hogs.links(plans)
        return [hogs.row(plan, links) for plan in plans]


def _kind(plan: DevicePlan) -> Hashable:
    """Equal for devices whose places are alike: the seed of what is lost makes no difference."""
    memory = plan.threads, plan.memory_mib
    return plan.board.name, plan.link.name, *memory, tuple(plan.quotas.items()), _link(plan)


def _link(plan: DevicePlan) -> Hashable:
    return replace(plan.shape, seed=0)


class _Hogs:
    """Measures each thing once, however many kinds of places share it."""

    def __init__(self, testbed: Testbed, effort: _Effort, folder: Path) -> None:
        self._testbed = testbed
        self._effort = effort
        self._folder = folder
        self._numbers = itertools.count()
        self._cpu: dict[Hashable, Mapping[Phase, Got]] = {}
        self._memory: dict[int, tuple[float, bool]] = {}

    def row(self, plan: DevicePlan, links: Mapping[tuple[Hashable, Direction], Got]) -> Fidelity:
        """All of one kind of place."""
        groups = self._testbed.groups
        limits = self._testbed.limits(plan.name)
        cpu: Mapping[Phase, Got] = {}
        if groups is not None and limits is not None and limits.cpu is not None:
            cpu = self._cpu_of(plan, groups)
        memory: tuple[float | None, bool] = None, False
        if groups is not None and limits is not None and limits.memory_bytes is not None:
            memory = self._memory_of(limits.memory_bytes, groups)
        up, down = (links.get((_link(plan), way)) for way in _WAYS)
        work, train = cpu.get("work"), cpu.get("train")
        return Fidelity(
            profile=f"{plan.board.name}+{plan.link.name}",
            cpu_asked=plan.quotas["work"].cores if work else None,
            cpu_got=work.value if work else None,
            train_cpu_asked=plan.quotas["train"].cores if train else None,
            train_cpu_got=train.value if train else None,
            memory_asked_mib=plan.memory_mib if memory[0] is not None else None,
            memory_got_mib=memory[0],
            up_asked_bps=plan.shape.up_bps if up else None,
            up_got_bps=up.value if up else None,
            down_asked_bps=plan.shape.down_bps if down else None,
            down_got_bps=down.value if down else None,
            enforcement=self._enforcement(plan),
            memory_killed=memory[1],
            disturbed=any(got.disturbed for got in (work, train, up, down) if got is not None),
        )

    def links(self, plans: Sequence[DevicePlan]) -> Mapping[tuple[Hashable, Direction], Got]:
        """What each shape of a link let through; all links at once, one way after the other."""
        kinds = {_link(plan): plan for plan in plans}
        found: dict[tuple[Hashable, Direction], Got] = {}
        for way in _WAYS:
            with contextlib.ExitStack() as under_way:
                transfers: dict[Hashable, Transfer] = {}
                for kind, plan in kinds.items():
                    if (plan.shape.up_bps if way == "up" else plan.shape.down_bps) > 0:
                        transfers[kind] = transfer = self._transfer(plan, way)
                        under_way.callback(transfer.close)
                for kind, transfer in transfers.items():
                    if (got := transfer.rate()) is not None:
                        found[kind, way] = got
        return found

    def _transfer(self, plan: DevicePlan, way: Direction) -> Transfer:
        network, effort, shape = self._testbed.network, self._effort, plan.shape
        rate_bps = shape.up_bps if way == "up" else shape.down_bps
        return Transfer(
            way,
            shape,
            self._testbed.host,
            network.namespace(plan.name) if network is not None else None,
            network.left(plan.name) if network is not None else shape,
            transfer_s(rate_bps, effort.link_s, effort.packets, effort.link_most_s),
            self._log(),
        )

    def _cpu_of(self, plan: DevicePlan, groups: Groups) -> Mapping[Phase, Got]:
        kind = tuple(plan.quotas.items()), plan.threads
        if kind not in self._cpu:
            group = groups.create(f"hog-{next(self._numbers)}", GroupLimits())
            try:
                with cpu_hog(group, plan.threads, self._log()):
                    effort = self._effort.window_s, self._effort.windows, self._effort.periods
                    known: dict[Hashable, Got] = {}
                    for quota in plan.quotas.values():
                        if quota not in known:
                            known[quota] = cpu_share(group, quota, plan.threads, *effort)
                    self._cpu[kind] = {phase: known[q] for phase, q in plan.quotas.items()}
            finally:
                group.remove()
        return self._cpu[kind]

    def _memory_of(self, limit_bytes: int, groups: Groups) -> tuple[float, bool]:
        """MiB, and whether they were measured: a hog never takes what this host has not free."""
        if limit_bytes not in self._memory:
            got = limit_bytes
            kill = self._effort.kill and _SPARE * limit_bytes < psutil.virtual_memory().available
            if kill:
                got = self._kill(limit_bytes, groups)
            self._memory[limit_bytes] = got / _MIB, kill
        return self._memory[limit_bytes]

    def _kill(self, limit_bytes: int, groups: Groups) -> int:
        limits = GroupLimits(memory_bytes=limit_bytes)
        group = groups.create(f"hog-{next(self._numbers)}", limits)
        try:
            peak_bytes = memory_at_kill(group, limit_bytes, self._log())
        finally:
            group.remove()
        if peak_bytes is None:
            raise EmulationError(
                f"the kernel did not end a process that takes more than its {limit_bytes} bytes; "
                "is swap in use that groups cannot turn off? (flexmoe doctor)"
            )
        return peak_bytes

    def _log(self) -> Path:
        """A file that no process has written to."""
        return self._folder / f"{next(self._numbers)}.log"

    def _enforcement(self, plan: DevicePlan) -> str:
        groups, network = self._testbed.groups, self._testbed.network
        limits = self._testbed.limits(plan.name)
        kind = groups.kind if groups is not None else ""
        cpu = kind if limits is not None and limits.cpu is not None else "not enforced"
        memory = kind if limits is not None and limits.memory_bytes is not None else "not enforced"
        user = "emulated in user space"
        rate = "tc tbf" if network is not None else user
        parts = [f"cpu: {cpu}", f"memory: {memory}", f"link: {rate}"]
        if plan.shape.delay_s or plan.shape.loss:
            left = network is None or network.left(plan.name) is not None
            parts.append(f"delay: {user if left else 'tc netem'}")
        return ", ".join(parts)


_WAYS: tuple[Literal["up"], Literal["down"]] = ("up", "down")
