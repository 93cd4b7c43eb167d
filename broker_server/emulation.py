"""An experiment's fleets on this host: plans, testbed, devices; and what to report of all that."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from broker_server.brokers.broker import CHOICES, LOOPBACK, Broker
from broker_server.experiment import Experiment
from device_profiles.calibration import calibration
from device_profiles.calibration.host_figures import HostFigures
from device_profiles.emulation.abilities import Abilities, find_abilities
from device_profiles.emulation.belongings import find_others
from device_profiles.emulation.network import LinkCounters
from device_profiles.emulation.place import Place
from device_profiles.emulation.testbed import Testbed, Wanted, enforcement, missing
from device_profiles.fidelity import fidelity
from device_profiles.fidelity.fidelity import Fidelity
from device_profiles.fleet.device_names import device_names
from device_profiles.fleet.fleet import Fleet, FleetSettings, Member
from device_profiles.fleet.fleet_plan import DevicePlan, plan_fleet
from edge_runtime.cgroup import read_limits, usable_cores
from edge_runtime.errors import EmulationError
from edge_runtime.program_cache import cache_root

log = logging.getLogger("flexmoe.server")

_MIB = 1024 * 1024
NOTHING_ENFORCED = 'nothing is enforced (emulation.enforce = "off")'


@dataclass
class Emulation:
    """What stands for the boards of an experiment: nothing but plans if `testbed` is None."""

    experiment: Experiment
    plans: Sequence[DevicePlan]
    host: HostFigures | None = None
    abilities: Abilities | None = None
    testbed: Testbed | None = None
    fidelity: list[Fidelity] = field(default_factory=list)
    before: Mapping[str, LinkCounters] = field(default_factory=dict)  # what the check moved

    @property
    def broker_host(self) -> str:
        """The address on which a broker of our own has to listen."""
        return self.testbed.host if self.testbed is not None else LOOPBACK

    @property
    def time_scale(self) -> float:
        """How many seconds of life pass in one second here."""
        return self.experiment.emulation.time_scale if self.host is not None else 1.0

    def held_s(self, client: str) -> float:
        """How long a device has waited for this host's cores, in seconds here."""
        return self.testbed.held_s(client) if self.testbed is not None else 0.0

    def end_turn(self, client: str) -> None:
        """Take the turn from a device that is not awaited any more."""
        if self.testbed is not None:
            self.testbed.end_turn(client)

    @property
    def to_check(self) -> bool:
        """Whether there is something to measure before the first round."""
        return self.testbed is not None and self.experiment.emulation.check

    def check(self) -> None:
        """Measure how close the places come to what was asked for."""
        if self.testbed is not None:
            self.fidelity = fidelity.probe(self.plans, self.testbed)
            self.before = self.testbed.counters()

    def fleet(self, shards: Mapping[str, Path], broker: Broker, directory: Path) -> Fleet:
        """The devices, each in its place."""
        settings, train = self.experiment.emulation, self.experiment.train
        cache = directory / "cache"  # a board's own disk, empty when the run begins
        members = [self._member(plan, shards[plan.name], cache) for plan in self.plans]
        return Fleet(
            members or self._plain_members(shards),
            FleetSettings(
                host=broker.host,
                port=broker.port,
                federation=self.experiment.broker.federation,
                trainer=train.trainer,
                log_directory=directory / "log",
                state_directory=directory / "state",
                time_scale=self.time_scale,
                restart_s=settings.restart_s if self.plans else None,
            ),
        )

    def lines(self) -> list[str]:
        """How the boards are emulated, for people to read; nothing if there are none."""
        if not self.plans:
            return []
        lines = []
        if self.abilities is not None:
            how = enforcement(self.abilities, self._own_broker)
            lines.append("emulation: " + "; ".join(f"{what}: {by}" for what, by in how.items()))
        if self.testbed is not None and find_others():
            lines.append(
                "another run emulates boards on this host now: both count on all of its cores, so "
                "neither is what it says"
            )
        return [*lines, *(f"NOT ENFORCED: {why}" for why in self.not_enforced)]

    def facts(self) -> dict[str, Any]:
        """What to say of the emulation before the first round; nothing without fleets."""
        if not self.plans:
            return {}
        settings = self.experiment.emulation
        how = enforcement(self.abilities, self._own_broker) if self.abilities else {}
        return {
            "enforce": settings.enforce,
            "cpu": settings.cpu,
            "time_scale": self.time_scale,
            "enforcement": how,
            "not_enforced": list(self.not_enforced),
            "other_runs": len(find_others()) if self.testbed is not None else 0,
            "host": asdict(self.host) if self.host is not None else None,
            "fleets": _fleet_facts(self.experiment, self.plans),
            "fidelity": [asdict(row) for row in self.fidelity],
        }

    def closing_facts(self) -> dict[str, Any]:
        """The same after the last round, with what the host's side has counted."""
        facts = self.facts()
        if facts and self.testbed is not None:
            facts["turn_waits_s"] = {
                name: round(waited * self.time_scale, 3)
                for name, waited in self.testbed.waits().items()
                if waited
            }
            facts["interfaces"] = {
                name: asdict(counters.since(self.before.get(name)))
                for name, counters in self.testbed.counters().items()
            }
        return facts

    @property
    def not_enforced(self) -> Sequence[str]:
        """What of the boards nothing holds the devices to, with the reasons."""
        return missing(self.abilities) if self.abilities is not None else [NOTHING_ENFORCED]

    @property
    def _own_broker(self) -> bool:
        return self.experiment.broker.address in CHOICES

    def _plain_members(self, shards: Mapping[str, Path]) -> list[Member]:
        """Devices of an experiment without fleets."""
        threads, members = self.experiment.train.threads, []
        for number, (name, shard) in enumerate(shards.items()):
            link = self.experiment.wire.link_of(number)
            options = ["--link", link] if link else []
            options += ["--threads", str(threads)] if threads else []
            members.append(Member(name=name, shard=shard, options=options))
        return members

    def _member(self, plan: DevicePlan, shard: Path, cache: Path) -> Member:
        testbed, seed = self.testbed, self.experiment.seed
        place = testbed.place(plan.name) if testbed is not None else Place()
        options = ["--board", plan.board.name, "--link", plan.link.name]
        options += ["--threads", str(plan.threads), "--cache", str(cache / plan.name)]
        return Member(
            name=plan.name,
            shard=shard,
            options=options,
            place=place,
            changes=plan.availability.changes(seed, plan.number, plan.name),
            cut=plan.leave == "cut",
            kills=(lambda: testbed.kills(plan.name)) if testbed is not None else lambda: 0,
            memory=f"{plan.memory_mib} MiB",
        )


def plan_emulation(experiment: Experiment) -> Emulation:
    """The plans, and what this host can enforce of them; nothing is made yet.

    `ConfigError` or `EmulationError` if the fleets cannot be emulated as asked.
    """
    settings, names = experiment.emulation, device_names(experiment.data.devices)
    if not experiment.emulated:
        return Emulation(experiment, plan_fleet(experiment.fleet, names, None))
    host = calibration.of_this_host(cache_root())
    memory_bytes = read_limits().memory_bytes or psutil.virtual_memory().total
    memory_mib = min(memory_bytes, psutil.virtual_memory().total) // _MIB
    plans = plan_fleet(experiment.fleet, names, host, settings.cpu, settings.time_scale, memory_mib)
    abilities = find_abilities()
    lacking = missing(abilities)
    if lacking and settings.time_scale != 1:
        raise EmulationError(
            f"emulation.time_scale = {settings.time_scale:g} needs CPU and memory that are held by "
            f"the kernel: {'; '.join(lacking)}; see flexmoe doctor, or leave the time scale at 1"
        )
    if lacking and settings.enforce == "strict":
        raise EmulationError(
            f"this host cannot enforce the boards: {'; '.join(lacking)}; see flexmoe doctor, or "
            'set emulation.enforce = "best-effort" to run without'
        )
    return Emulation(experiment, plans, host, abilities)


@contextlib.contextmanager
def opened(emulation: Emulation) -> Iterator[Emulation]:
    """The emulation with its testbed, until the end of the context."""
    if emulation.host is None or emulation.abilities is None:
        yield emulation
        return
    wanted = {
        plan.name: Wanted(plan.quotas, plan.memory_mib * _MIB, plan.shape)
        for plan in emulation.plans
    }
    emulation.testbed = testbed = Testbed(
        wanted,
        emulation.abilities,
        usable_cores(),
        emulation.experiment.emulation.time_scale,
        emulation.experiment.broker.address in CHOICES,
    )
    try:
        yield emulation
    finally:
        if left := testbed.close():
            said = "what the emulation made could not be removed: %s; try flexmoe profiles clean"
            log.warning(said, "; ".join(left))


def _fleet_facts(experiment: Experiment, plans: Sequence[DevicePlan]) -> list[dict[str, Any]]:
    """Each fleet, with what stands for its board here."""
    facts, first = [], 0
    for fleet in experiment.fleet:
        plan, first = plans[first], first + fleet.count
        facts.append(
            {
                "board": plan.board.name,
                "link": plan.link.name,
                "count": fleet.count,
                "threads": plan.threads,
                "memory_mib": plan.memory_mib,
                "cpu_ratios": dict(plan.ratios),
                "cpu_quotas": {phase: quota.cores for phase, quota in plan.quotas.items()},
                "availability": fleet.availability,
                "leave": plan.leave,
            }
        )
    return facts
