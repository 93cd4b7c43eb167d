"""The sections of an experiment that say which boards its devices are, and how they are held."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from broker_server.field_types import MOST, Section
from device_profiles.fleet.availability import parse_availability
from edge_runtime.errors import ConfigError
from edge_runtime.trainers import MAX_THREADS


def _availability(spec: str) -> str:
    try:
        parse_availability(spec, None)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("availability: expected ")) from None
    return spec


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


AvailabilitySpec = Annotated[str, AfterValidator(_availability)]


class Fleet(Section):
    """Devices of one kind: a board, its link, when it is there. `flexmoe run` emulates them."""

    profile: str = Field(
        description="The board: a name of `flexmoe profiles list`, or a .toml file of your own; a "
        "relative path starts at the experiment file's folder."
    )
    link: str = Field(
        default="",
        description="Class of their link: a name of `flexmoe profiles list` or a .toml file; "
        "empty: the board's usual one.",
    )
    count: int = Field(default=1, ge=1, le=MOST, description="How many devices.")
    experts_per_device: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="k asked of each; 0: as model.experts_per_device says.",
    )
    memory_mib: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="Memory of each, MiB, enforced; 0: what the board's profile leaves for us.",
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=MAX_THREADS,
        description="Threads of a training step; its CPU quota is for as many cores of the board.",
    )
    availability: AvailabilitySpec = Field(
        default="always",
        description="When they are there, in seconds: always, arrive(from,to), depart(from,to), "
        "churn(on,off) with mean times, joined by +; or trace(FILE.csv): time, device, on or off.",
    )
    leave: Literal["goodbye", "cut"] = Field(
        default="goodbye",
        description="How they leave: with a goodbye, or cut off, as by a loss of power.",
    )


Fleets = Annotated[tuple[Fleet, ...], BeforeValidator(_as_tuple)]


class Emulation(Section):
    """How close `flexmoe run` comes to the boards and links of its fleets."""

    enforce: Literal["strict", "best-effort", "off"] = Field(
        default="strict",
        description="strict: CPU and memory are held by the kernel, or the run does not start; "
        "best-effort: with what this host has, and every report says what it has not; off: plain "
        "processes.",
    )
    cpu: Literal["phases", "integer", "gemm"] = Field(
        default="phases",
        description="Which ratio of the board's cores to this host's: that of matrix products "
        "while a device trains and of integer work else, or one of them all the time.",
    )
    time_scale: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Seconds of the testbed in one second here: CPU, rates, delays, availability "
        "and deadlines are scaled alike, and reports tell the testbed's.",
    )
    restart_s: float = Field(
        default=2.0,
        ge=0,
        description="Seconds until a device that was killed by its memory limit, or ended with an "
        "error, is started again; longer each time that it ends soon.",
    )
    check: bool = Field(
        default=True,
        description="Measure before the first round how close CPU and links come (some seconds).",
    )
