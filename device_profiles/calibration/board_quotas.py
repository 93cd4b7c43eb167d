"""What stands for each board on one host: `BoardQuotas`, as a table and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from device_profiles.calibration.host_figures import HostFigures
from device_profiles.calibration.quota import CpuQuota, Ratio, largest_time_scale, of_board, ratio
from device_profiles.catalogue.board import Board
from edge_runtime.errors import EmulationError

KINDS: tuple[Ratio, ...] = ("integer", "gemm")
_WIDTH = 100
_HEADS = ("board", "integer", "quota of period", "GEMM", "quota of period", "threads", "scale")


@dataclass(frozen=True)
class BoardQuotas:
    """One board on a host.

    `ratios` are its core over the host's, `quotas` those of one thread, for the kinds of work that
    fit. `threads` is how many fit at once in life's time; `time_scale` the largest for one thread.
    `why` it does not fit, or is not run on; empty if it can be emulated.
    """

    board: Board
    ratios: dict[Ratio, float]
    quotas: dict[Ratio, CpuQuota]
    threads: int
    time_scale: float
    why: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """As `flexmoe profiles calibrate --json` prints it."""
        kinds: dict[str, Any] = {}
        for kind in KINDS:
            kinds[kind] = {"ratio": self.ratios[kind]}
            if (quota := self.quotas.get(kind)) is not None:
                kinds[kind] |= {"quota_us": quota.quota_us, "period_us": quota.period_us}
        most = {"threads": self.threads, "largest_time_scale": self.time_scale}
        return {"fits": not self.why, **kinds, **most, "why": list(self.why)}


def quotas_of(board: Board, host: HostFigures, host_memory_mib: float) -> BoardQuotas:
    """What stands for a core of `board`, for each kind of work."""
    why = []
    if not board.supported:
        why.append(f"flexmoe does not run on it: {board.unsupported_because}")
    if board.memory_mib.value > host_memory_mib:
        why.append(
            f"its {board.memory_mib.value:g} MiB are more than the {host_memory_mib:.0f} MiB of "
            "this host"
        )
    quotas: dict[Ratio, CpuQuota] = {}
    for kind in KINDS:
        try:
            quotas[kind] = of_board(board, host, 1, kind)
        except EmulationError as error:
            why.append(str(error).removeprefix(f"{board.name}: "))
    ratios = {kind: ratio(board, host, kind) for kind in KINDS}
    fit = int(min(board.cores.value, host.cores / max(ratios.values())))
    scale = min(largest_time_scale(board, host, 1, kind) for kind in KINDS)
    return BoardQuotas(board, ratios, quotas, fit if scale >= 1 else 0, scale, why)


def to_text(host: HostFigures, rows: Iterable[BoardQuotas]) -> str:
    """The host and the boards, at most 100 columns wide if their names allow it."""
    lines = [
        f"this host: {host.cpu}, {host.architecture}, cores for us: {host.cores}, "
        f"kernels: {host.isa}",
        f"  integer, one thread  {host.integer_mips:10,.0f}  MIPS, on the scale of 7z b -mmt1",
        f"  GEMM, one thread     {host.gemm_gflops:10,.1f}  GFLOP/s, fp32",
        f"  memory copy          {host.memory_mb_s:10,.0f}  MB/s",
        "",
        "one core of each board here: its share of a core, and the quota, in ms",
    ]
    rows = list(rows)
    table = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_HEADS))]
    for cells in table:
        first, *others = (
            f"{cell:{'<' if not i else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines.append("threads: of the board that fit here; scale: the largest time_scale of one thread")
    for row in rows:
        for why in row.why:
            note = f"{row.board.name} cannot be emulated: {why}"
            lines += textwrap.wrap(note, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _cells(row: BoardQuotas) -> tuple[str, ...]:
    cells = [row.board.name]
    for kind in KINDS:
        quota = row.quotas.get(kind)
        cells.append(f"{row.ratios[kind]:.3f}")
        cells.append(
            f"{quota.quota_us / 1000:.3f} of {quota.period_us / 1000:.1f}" if quota else "-"
        )
    return (*cells, str(row.threads), f"{row.time_scale:g}")
