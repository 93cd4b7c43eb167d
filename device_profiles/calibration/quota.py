"""A board's share of this host: `CpuQuota`, and how large it has to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from device_profiles.calibration.host_figures import HostFigures
from device_profiles.catalogue.board import Board
from edge_runtime.errors import ConfigError, EmulationError

Ratio = Literal["integer", "gemm"]
"""By which work a core of a board is compared with one of this host."""

PERIOD_US = 10_000
"""A device is held back for less than this at a time; the kernel's usual 100 ms would show."""
LEAST_QUOTA_US = 1_000  # the kernel's own bounds: kernel/sched/core.c, tg_set_cfs_bandwidth
MOST_PERIOD_US = 1_000_000
LEAST_CORES = LEAST_QUOTA_US / MOST_PERIOD_US


@dataclass(frozen=True)
class CpuQuota:
    """So many `cores` of this host, accounted for every `period_us` microseconds."""

    cores: float
    period_us: int = PERIOD_US

    @property
    def quota_us(self) -> int:
        """CPU microseconds a period; at least `LEAST_QUOTA_US` in a quota made by `of_cores`."""
        return round(self.cores * self.period_us)


def of_cores(cores: float) -> CpuQuota:
    """A quota that the kernel accepts: a longer period where the usual one would ask too little.

    `EmulationError` under `LEAST_CORES`.
    """
    if cores < LEAST_CORES:
        raise EmulationError(
            f"a quota of {cores:.2g} cores is under the kernel's least, {LEAST_CORES:g}"
        )
    if cores * PERIOD_US >= LEAST_QUOTA_US:
        return CpuQuota(cores, PERIOD_US)
    return CpuQuota(cores, min(MOST_PERIOD_US, round(LEAST_QUOTA_US / cores)))


def ratio(board: Board, host: HostFigures, kind: Ratio) -> float:
    """A core of the board over one of this host, by integer work or by matrix products."""
    if kind == "integer":
        return board.integer_mips.value / host.integer_mips
    return board.gemm_gflops.value / host.gemm_gflops


def largest_time_scale(board: Board, host: HostFigures, threads: int, kind: Ratio) -> float:
    """The largest time scale, to three digits, at which so many threads of the board fit here."""
    share = ratio(board, host, kind)
    return _three_digits(min(1 / share, host.cores / (share * threads)), math.floor)


def of_board(
    board: Board, host: HostFigures, threads: int, kind: Ratio, time_scale: float = 1.0
) -> CpuQuota:
    """The quota under which each of `threads` is as fast as on the board, times `time_scale`.

    `ConfigError` if the board has fewer cores than that; `EmulationError` if this host is too slow.
    """
    if not (0 < time_scale < math.inf):
        raise ConfigError(f"time_scale: expected a number above 0, got {time_scale:g}")
    if not 1 <= threads <= board.cores.value:
        raise ConfigError(
            f"{board.name}: expected 1 to {board.cores.value:g} threads, one for each core of the "
            f"board, got {threads}; set threads in the fleet"
        )
    share = ratio(board, host, kind)
    cores = share * threads * time_scale
    if share * time_scale > 1 or cores > host.cores:
        fits = largest_time_scale(board, host, threads, kind)
        raise EmulationError(
            f"{board.name}: {_too_much(share, threads, time_scale, host, kind)}; "
            f"the largest time_scale that fits is {fits:g}"
        )
    if cores < LEAST_CORES:
        fits = _three_digits(LEAST_CORES / (share * threads), math.ceil)
        raise EmulationError(
            f"{board.name}: its quota would be {cores:.2g} cores ({kind}), under the kernel's "
            f"least, {LEAST_CORES:g}; the smallest time_scale that fits is {fits:g}"
        )
    return of_cores(cores)


def _too_much(share: float, threads: int, scale: float, host: HostFigures, kind: Ratio) -> str:
    if share * scale > 1:
        what = f"a thread needs {share * scale:.2f} of a core of this host ({kind})"
    else:
        what = (
            f"{threads} threads need {share * threads * scale:.2f} cores ({kind}), this host has "
            f"{host.cores}"
        )
    return f"{what} at time_scale {scale:g}"


def _three_digits(value: float, rounding: Callable[[float], int]) -> float:
    """`value` to three digits, rounded so that it still fits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{rounding(value / unit) * unit:.3g}")
