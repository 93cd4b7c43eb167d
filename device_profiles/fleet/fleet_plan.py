"""What each device of a fleet is: its board and link, and what of this host stands for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from device_profiles.calibration.host_figures import HostFigures
from device_profiles.calibration.quota import CpuQuota, Ratio, of_board
from device_profiles.catalogue.board import Board
from device_profiles.catalogue.link_class import LinkClass
from device_profiles.catalogue.profiles import find_board, find_link
from device_profiles.fleet.availability import Availability, parse_availability
from edge_runtime.errors import ConfigError
from edge_runtime.transport.shape import Shape
from edge_runtime.turn import Phase

NEEDED_MIB = 32
"""The least memory limit under which a device of ours starts, connects and trains something small
(`benchmarks/device_memory.py`)."""

Leave = Literal["goodbye", "cut"]
CpuMode = Literal["phases", "integer", "gemm"]
RATIOS: Mapping[CpuMode, Mapping[Phase, Ratio]] = {
    "phases": {"work": "integer", "train": "gemm"},
    "integer": {"work": "integer", "train": "integer"},
    "gemm": {"work": "gemm", "train": "gemm"},
}


class FleetSpec(Protocol):
    """Devices of one kind, as an experiment asks for them."""

    @property
    def profile(self) -> str: ...
    @property
    def link(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def availability(self) -> str: ...
    @property
    def leave(self) -> Leave: ...


@dataclass(frozen=True)
class DevicePlan:
    """One device. `quotas` and `shape` are those of this host: with the time scale in them.

    `ratios` are the board's cores over this host's, by phase.
    """

    name: str
    number: int
    board: Board
    link: LinkClass
    threads: int
    memory_mib: int
    ratios: Mapping[Phase, float]
    quotas: Mapping[Phase, CpuQuota]
    shape: Shape
    availability: Availability
    leave: Leave

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for devices that are emulated alike."""
        shape = replace(self.shape, seed=0)
        quotas = tuple(self.quotas.items())
        return self.board.name, self.link.name, self.threads, self.memory_mib, quotas, shape


def plan_fleet(
    specs: Iterable[FleetSpec],
    names: Sequence[str],
    host: HostFigures | None,
    cpu: CpuMode = "phases",
    time_scale: float = 1.0,
    host_memory_mib: int | None = None,
    folder: Path | None = None,
) -> list[DevicePlan]:
    """A plan for each of `names`, fleet by fleet in order.

    `host` is what this host can do, with `host_memory_mib`; None: nothing is to be enforced, and
    plans have no quotas. `folder` is where relative paths of profiles start. `ConfigError` or
    `EmulationError` name what is unknown, not supported, or does not fit.
    """
    plans: list[DevicePlan] = []
    for spec in specs:
        board, link = _profiles(spec, folder)
        memory_mib = spec.memory_mib or int(board.memory_mib.value)
        quotas: dict[Phase, CpuQuota] = {}
        if host is not None:
            _check_memory(board, memory_mib, host_memory_mib)
            quotas = {
                phase: of_board(board, host, spec.threads, ratio, time_scale)
                for phase, ratio in RATIOS[cpu].items()
            }
        cores = spec.threads * time_scale
        ratios = {phase: quota.cores / cores for phase, quota in quotas.items()}
        availability = parse_availability(spec.availability, folder)
        for _ in range(spec.count):
            number = len(plans)
            shape = Shape(
                up_bps=link.up_rate.value,
                down_bps=link.down_rate.value,
                delay_s=link.latency_s.value,
                loss=link.loss.value,
                seed=number,
            )
            plans.append(
                DevicePlan(
                    name=names[number],
                    number=number,
                    board=board,
                    link=link,
                    threads=spec.threads,
                    memory_mib=memory_mib,
                    ratios=ratios,
                    quotas=quotas,
                    shape=shape.scaled(time_scale),
                    availability=availability,
                    leave=spec.leave,
                )
            )
    _check_traces(plans)
    return plans


def _profiles(spec: FleetSpec, folder: Path | None) -> tuple[Board, LinkClass]:
    board = find_board(spec.profile, folder)
    if not board.supported:
        raise ConfigError(
            f"{board.name}: flexmoe does not run on this board: {board.unsupported_because}; "
            "choose another profile (flexmoe profiles list)"
        )
    return board, find_link(spec.link or board.link, folder)


def _check_memory(board: Board, memory_mib: int, host_memory_mib: int | None) -> None:
    if memory_mib < NEEDED_MIB:
        raise ConfigError(
            f"{board.name}: memory_mib = {memory_mib} is under the {NEEDED_MIB} MiB that a device "
            "needs before it trains anything; give it more"
        )
    if host_memory_mib is not None and memory_mib > host_memory_mib:
        raise ConfigError(
            f"{board.name}: memory of {memory_mib} MiB is more than the {host_memory_mib} MiB of "
            "this host; set a smaller memory_mib for this fleet"
        )


def _check_traces(plans: Sequence[DevicePlan]) -> None:
    """A trace that names none of its fleet's devices is a mistake."""
    for availability in dict.fromkeys(plan.availability for plan in plans):
        mine = [plan for plan in plans if plan.availability == availability]
        named = availability.devices()
        if named and not any({plan.name, str(plan.number)} & named for plan in mine):
            raise ConfigError(
                f"{availability.spec}: names none of the devices {mine[0].name} to "
                f"{mine[-1].name}, but {', '.join(sorted(named)[:3])}; write the devices' names "
                "or numbers into its column device"
            )
