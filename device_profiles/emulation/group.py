"""`Group` and `Groups`: the contract of control groups, the same for both versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from device_profiles.calibration.quota import LEAST_QUOTA_US, MOST_PERIOD_US, CpuQuota
from edge_runtime.cgroup import Usage
from edge_runtime.errors import EmulationError

Kind = Literal["cgroup v2", "cgroup v1"]
Controller = Literal["cpu", "memory", "pids", "cpuset", "freezer"]


@dataclass(frozen=True)
class GroupLimits:
    """What a group is held to; None: not limited. `cpus` are the numbers of the cores allowed."""

    cpu: CpuQuota | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    cpus: frozenset[int] | None = None

    @property
    def needs(self) -> list[Controller]:
        """The controllers that it takes to hold a group to this."""
        wanted: dict[Controller, object] = {
            "cpu": self.cpu,
            "memory": self.memory_bytes,
            "pids": self.pids,
            "cpuset": self.cpus,
        }
        return [controller for controller, limit in wanted.items() if limit is not None]


class Group(Protocol):
    """One control group, with its limits set before a process can enter."""

    @property
    def name(self) -> str: ...

    @property
    def join(self) -> Sequence[Path]:
        """Files into all of which a process writes its id, in this order, to enter."""
        ...

    def set_cpu(self, quota: CpuQuota | None) -> None:
        """Change the quota, never by way of a larger one; `EmulationError` if it is refused."""
        ...

    def usage(self) -> Usage: ...

    def limits(self) -> GroupLimits:
        """Read back from the kernel, which rounds memory down to pages."""
        ...

    def kill(self) -> None:
        """Kill all processes in it and wait until they are gone, at most some seconds."""
        ...

    def remove(self) -> None:
        """Kill and remove; `EmulationError` if the kernel does not let go of it."""
        ...


class Groups(Protocol):
    """The groups of one run, below one of its own."""

    @property
    def kind(self) -> Kind: ...

    @property
    def controllers(self) -> frozenset[Controller]: ...

    @property
    def why(self) -> Mapping[str, str]:
        """Of each controller that is missing, and of "swap" where it cannot be off."""
        ...

    def create(self, name: str, limits: GroupLimits) -> Group:
        """`EmulationError` if there is one of that name, a controller is missing, or the kernel
        refuses a limit; nothing is left then."""
        ...

    def close(self) -> None:
        """Kill what is inside and remove all; `EmulationError` if something is left."""
        ...


def check_quota(quota: CpuQuota) -> None:
    """`EmulationError` if no kernel takes it: of its rules it tells only "invalid argument"."""
    if quota.quota_us < LEAST_QUOTA_US:
        raise EmulationError(
            f"a CPU quota of {quota.quota_us} us is under the kernel's least, {LEAST_QUOTA_US} us"
        )
    if quota.period_us > MOST_PERIOD_US:
        raise EmulationError(
            f"a CPU period of {quota.period_us} us is over the kernel's most, {MOST_PERIOD_US} us"
        )


def refuse_missing(limits: GroupLimits, groups: Groups) -> None:
    """`EmulationError` if the groups lack a controller for these limits."""
    for controller in limits.needs:
        if controller not in groups.controllers:
            why = groups.why.get(controller, "there is no such controller")
            raise EmulationError(f"{controller} cannot be limited: {why}")
