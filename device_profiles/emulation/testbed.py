"""`Testbed`: places for the devices of one fleet, enforced as far as this host can."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_profiles.calibration.quota import CpuQuota
from device_profiles.emulation.abilities import Abilities
from device_profiles.emulation.belongings import Belongings, make_run_token
from device_profiles.emulation.groups import Group, GroupLimits, Groups, open_groups
from device_profiles.emulation.janitor import Janitor
from device_profiles.emulation.network import LinkCounters, Network
from device_profiles.emulation.place import Place
from device_profiles.emulation.turnstile import Turnstile
from edge_runtime.cgroup import Usage
from edge_runtime.errors import EmulationError
from edge_runtime.transport.shape import Shape
from edge_runtime.turn import Phase

LOOPBACK = "127.0.0.1"
MOST_PIDS = 64
"""Of processes and threads in a device's group; a device has about four threads."""
SPARE_CORES = 0.2
"""Of this host's, that turns leave to the server, the broker and the system."""


@dataclass(frozen=True)
class Wanted:
    """What one device is to be held to: CPU by phase, memory, and the shape of its link."""

    quotas: Mapping[Phase, CpuQuota]
    memory_bytes: int
    shape: Shape


class Testbed:
    """Makes the places, and removes all of it on `close`. A context manager."""

    __test__ = False  # pytest takes every Test... for tests

    def __init__(
        self,
        wanted: Mapping[str, Wanted],
        abilities: Abilities,
        cores: float,
        time_scale: float = 1.0,
        own_broker: bool = True,
    ) -> None:
        """`wanted` by the device's name; `cores` are this host's.

        Without a broker of our own, links are emulated in user space: a namespace leads nowhere
        else. `EmulationError` if something cannot be made; nothing is left then.
        """
        self._abilities = abilities
        self._time_scale = time_scale
        self._wanted = dict(wanted)
        self._cleanup = contextlib.ExitStack()
        self._groups: dict[str, Group] = {}
        self._subtree: Groups | None = None
        self._network: Network | None = None
        self._turnstile: Turnstile | None = None
        self._left: list[str] = []
        try:
            self._make(cores, own_broker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def host(self) -> str:
        """The address that the devices reach this host's broker by."""
        return self._network.host if self._network is not None else LOOPBACK

    @property
    def groups(self) -> Groups | None:
        """The control groups, if there are any."""
        return self._subtree

    @property
    def network(self) -> Network | None:
        """The devices' network, if links are shaped by the kernel."""
        return self._network

    def place(self, name: str) -> Place:
        """Where the device `name` is to run."""
        group, options = self._groups.get(name), list[str]()
        left: Shape | None = self._wanted[name].shape
        if self._network is not None:
            left = self._network.left(name)
        if left is not None:
            options += ["--shape", str(left)]
        if self._turnstile is not None:
            options += ["--turns", str(self._turnstile.path)]
        if self._time_scale != 1.0:
            options += ["--time-scale", repr(self._time_scale)]
        return Place(
            join=tuple(group.join) if group is not None else (),
            netns=self._network.namespace(name) if self._network is not None else None,
            options=tuple(options),
        )

    def usage(self, name: str) -> Usage | None:
        """What the kernel says of the device's group."""
        group = self._groups.get(name)
        return group.usage() if group is not None else None

    def limits(self, name: str) -> GroupLimits | None:
        """What the kernel holds the device to, read back."""
        group = self._groups.get(name)
        return group.limits() if group is not None else None

    def kills(self, name: str) -> int:
        """How many processes of the device its memory limit has killed."""
        usage = self.usage(name)
        return (usage.memory_kills or 0) if usage is not None else 0

    def held_s(self, name: str) -> float:
        """How long the device has waited for its turns until now, in seconds of this host."""
        return self._turnstile.waited_s(name) if self._turnstile is not None else 0.0

    def waits(self) -> Mapping[str, float]:
        """`held_s` of all devices."""
        return self._turnstile.waits() if self._turnstile is not None else {}

    def end_turn(self, name: str) -> None:
        """Take from the device the turn that it has or waits for."""
        if self._turnstile is not None:
            self._turnstile.end_turn(name)

    def counters(self) -> Mapping[str, LinkCounters]:
        """What the devices' interfaces moved and dropped, if they have one."""
        return self._network.counters() if self._network is not None else {}

    def close(self) -> list[str]:
        """Remove all that was made; what could not be removed."""
        self._cleanup.close()
        return self._left

    def _make(self, cores: float, own_broker: bool) -> None:
        can = self._abilities
        largest = max(q.cores for want in self._wanted.values() for q in want.quotas.values())
        if can.cpu and largest > cores:
            raise EmulationError(
                f"a device wants {largest:.2f} cores, this host has {cores:g}; choose fewer "
                "threads, a smaller board or a smaller emulation.time_scale"
            )
        belongings = Belongings(make_run_token())
        try:
            janitor = Janitor(belongings)
        except BaseException:
            belongings.remove_all()
            raise
        self._cleanup.callback(lambda: self._left.extend(janitor.close()))
        if can.cpu or can.memory:
            self._subtree = open_groups(belongings.run, belongings)
            for name, want in self._wanted.items():
                self._groups[name] = self._subtree.create(name, self._limits(want))
        if can.namespaces and can.tbf and own_broker:
            shapes = {name: want.shape for name, want in self._wanted.items()}
            self._network = Network.open(belongings.run, shapes, belongings, can.netem)
        if can.cpu:
            self._open_turnstile(max(largest, cores - SPARE_CORES), belongings)

    def _limits(self, want: Wanted) -> GroupLimits:
        can = self._abilities
        return GroupLimits(
            cpu=want.quotas["work"] if can.cpu else None,
            memory_bytes=want.memory_bytes if can.memory else None,
            pids=MOST_PIDS if can.pids else None,
        )

    def _open_turnstile(self, cores: float, belongings: Belongings) -> None:
        folder = Path(tempfile.gettempdir()) / f"flexmoe-turns-{belongings.run}"
        belongings.note("folder", folder)
        folder.mkdir(mode=0o700)
        turnstile = Turnstile(
            folder / "turns",
            cores,
            {
                name: {phase: quota.cores for phase, quota in want.quotas.items()}
                for name, want in self._wanted.items()
            },
            self._granted,
        )
        self._turnstile = turnstile
        self._cleanup.callback(turnstile.close)

    def _granted(self, name: str, phase: Phase | None) -> None:
        """A device begins a phase, or has ended all: its group gets the quota that goes with it."""
        quotas = self._wanted[name].quotas
        if quotas["work"] != quotas["train"]:
            self._groups[name].set_cpu(quotas[phase or "work"])


def enforcement(abilities: Abilities, own_broker: bool = True) -> dict[str, str]:
    """What is enforced how, in a word or two: ``cpu``, ``memory``, ``link``, ``delay``."""
    nothing = "not enforced"
    tbf = abilities.namespaces and abilities.tbf and own_broker
    user = "emulated in user space"
    return {
        "cpu": abilities.groups if abilities.cpu else nothing,
        "memory": abilities.groups if abilities.memory else nothing,
        "link": "tc tbf" if tbf else user,
        "delay": "tc netem" if tbf and abilities.netem else user,
    }


def missing(abilities: Abilities) -> Sequence[str]:
    """What a strict emulation needs and this host cannot do, with the reasons."""
    return [
        f"{what}: {abilities.why.get(what, 'this host cannot')}"
        for what, can in (("cpu", abilities.cpu), ("memory", abilities.memory))
        if not can
    ]
