"""`Abilities`: what this host can hold a device to, found by doing it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

from device_profiles.calibration.quota import PERIOD_US, CpuQuota
from device_profiles.emulation.belongings import Belongings, make_run_token
from device_profiles.emulation.group import Controller, Group, GroupLimits, Groups
from device_profiles.emulation.groups import open_groups
from device_profiles.emulation.network import NetworkAbilities, can_shape
from device_profiles.fleet.process import LEASH
from edge_runtime.errors import EmulationError

OK = "OK"
IN_USER_SPACE = "in user space"
NOT_ENFORCED = "not enforced"
_TRIAL_S = 30.0
_MEMORY = 64 << 20
_BY_GROUPS = ("cpu", "memory", "swap_off", "pids", "cpuset")


@dataclass(frozen=True)
class Abilities:
    """`groups`: "cgroup v2", "cgroup v1" or "" for none. `swap_off`: memory cannot leave for swap.
    `why`: the reason for each thing that is missing, by the name of its field."""

    groups: str = ""
    cpu: bool = False
    memory: bool = False
    swap_off: bool = False
    pids: bool = False
    cpuset: bool = False
    namespaces: bool = False
    tbf: bool = False
    netem: bool = False
    why: Mapping[str, str] = field(default_factory=dict)


def find_abilities(
    open_: Callable[[str, Belongings], Groups] = open_groups,
    shape: Callable[[], NetworkAbilities] = can_shape,
) -> Abilities:
    """Try all of it in groups and namespaces that are removed at once; takes part of a second."""
    network, found = shape(), _try_groups(open_)
    links = {"namespaces": network.namespaces, "tbf": network.tbf, "netem": network.netem}
    unknown = network.tbf and "qdisc kind is unknown" in network.why
    reason = "this kernel has no netem" if unknown else network.why
    return replace(
        found,
        namespaces=network.namespaces,
        tbf=network.tbf,
        netem=network.netem,
        why={**found.why, **{name: reason for name, can in links.items() if not can}},
    )


def lines(abilities: Abilities) -> list[tuple[str, str, str]]:
    """What is enforced, how or why not, and the verdict: one line for each thing."""
    groups, why = abilities.groups, abilities.why
    swap = "swap off" if abilities.swap_off else f"swap stays on: {why.get('swap_off', '')}"
    period = f"{groups} quota, period {PERIOD_US // 1000} ms"
    rows = [
        _enforced("CPU", abilities.cpu, period, why.get("cpu")),
        _enforced("memory", abilities.memory, f"{groups} limit, {swap}", why.get("memory")),
        _enforced("processes", abilities.pids, f"{groups} limit of pids", why.get("pids")),
        _enforced("choice of cores", abilities.cpuset, f"{groups} cpuset", why.get("cpuset")),
    ]
    shaped = abilities.namespaces and abilities.tbf
    reason = why.get("namespaces") or why.get("tbf")
    rows.append(_shaped("link rate", shaped, "tc tbf in network namespaces", reason))
    delayed = shaped and abilities.netem
    how = "tc netem in network namespaces"
    rows.append(_shaped("link delay, loss", delayed, how, reason or why.get("netem")))
    return rows


def _enforced(what: str, can: bool, how: str, why: str | None) -> tuple[str, str, str]:
    return (what, how, OK) if can else (what, why or "this host cannot", NOT_ENFORCED)


def _shaped(what: str, can: bool, how: str, why: str | None) -> tuple[str, str, str]:
    if can:
        return what, how, OK
    return what, f"emulated in user space: {why or 'this host cannot'}", IN_USER_SPACE


def _try_groups(open_: Callable[[str, Belongings], Groups]) -> Abilities:
    """What control groups can do, by a group with all limits and a process in it."""
    if sys.platform != "linux":
        return Abilities(why=dict.fromkeys(_BY_GROUPS, "only Linux has control groups"))
    belongings: Belongings | None = None
    try:
        belongings = Belongings(make_run_token())
        return _judge(open_(belongings.run, belongings))
    except EmulationError as error:
        return Abilities(why=dict.fromkeys(_BY_GROUPS, str(error)))
    finally:
        if belongings is not None:
            belongings.remove_all()


def _judge(groups: Groups) -> Abilities:
    trials: dict[Controller, GroupLimits] = {
        "cpu": GroupLimits(cpu=CpuQuota(0.2, PERIOD_US)),
        "memory": GroupLimits(memory_bytes=_MEMORY),
        "pids": GroupLimits(pids=8),
        "cpuset": GroupLimits(cpus=frozenset({min(os.sched_getaffinity(0))})),
    }
    why: dict[str, str] = {c: _try_limit(groups, c, limits) for c, limits in trials.items()}
    why["swap_off"] = why["memory"] or groups.why.get("swap", "")
    return Abilities(
        groups=groups.kind,
        cpu=not why["cpu"],
        memory=not why["memory"],
        swap_off=not why["swap_off"],
        pids=not why["pids"],
        cpuset=not why["cpuset"],
        why={name: reason for name, reason in why.items() if reason},
    )


def _try_limit(groups: Groups, name: str, limits: GroupLimits) -> str:
    """Nothing if a process runs under this limit, else why not."""
    group: Group | None = None
    try:
        group = groups.create(f"try-{name}", limits)
        got = group.limits()
        for part in fields(limits):
            asked, held = getattr(limits, part.name), getattr(got, part.name)
            if asked not in (None, held):
                return f"asked for {asked}, the kernel says {held}"
        return _try_process(group)
    except EmulationError as error:
        return str(error)
    finally:
        if group is not None:
            with contextlib.suppress(EmulationError):
                group.remove()


def _try_process(group: Group) -> str:
    """Nothing if a process can enter the group and run there, else what it says."""
    command = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid())]
    command += [word for file in group.join for word in ("--join", str(file))]
    command += ["--", sys.executable, "-I", "-S", "-c", ""]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TRIAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a process in its group does not run: {error}"
    if run.returncode == 0:
        return ""
    said = (run.stderr.strip().splitlines() or [f"it ends with code {run.returncode}"])[-1]
    return f"a process in its group does not run: {said}"
