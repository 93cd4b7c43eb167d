"""The closing lines of an emulated run: what was asked of each profile and what it got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from broker_server.figures import plain_table

_HELD = ("cpu", "memory", "link", "delay")


def emulation_tables(facts: Mapping[str, Any]) -> list[RenderableType]:
    """From the fact ``emulation`` of a run; nothing for a run without fleets."""
    emulation = facts.get("emulation")
    if not emulation:
        return []
    tables: list[RenderableType] = []
    if emulation.get("fidelity"):
        tables.append(_fidelity(emulation["fidelity"], emulation["time_scale"]))
    return [*tables, *(Text(line) for line in _lines(emulation))]


def _fidelity(rows: Sequence[Mapping[str, Any]], time_scale: float) -> Table:
    title = "Emulation: asked and got"
    if time_scale != 1:
        title += f", on this host: CPU and rates are {time_scale:g} times the board's"
    table = plain_table(title, "profile", "CPU, cores", "training", "memory", "up", "down")
    for row in rows:
        table.add_row(
            row["profile"] + "*" * row["disturbed"],
            _pair(row["cpu_asked"], row["cpu_got"], _cores),
            _pair(row["train_cpu_asked"], row["train_cpu_got"], _cores),
            _pair(row["memory_asked_mib"], row["memory_got_mib"], _mib),
            _pair(row["up_asked_bps"], row["up_got_bps"], _rate),
            _pair(row["down_asked_bps"], row["down_got_bps"], _rate),
        )
    return table


def _lines(emulation: Mapping[str, Any]) -> list[str]:
    how = emulation.get("enforcement", {})
    lines = []
    if how:
        lines.append("enforced: " + "; ".join(f"{key}: {how[key]}" for key in _HELD if key in how))
    lines += [f"NOT ENFORCED: {why}" for why in emulation.get("not_enforced", [])]
    if emulation.get("cpu") and how:
        lines.append(f"CPU ratios: {_RATIOS[emulation['cpu']]}")
    if emulation.get("time_scale", 1) != 1:
        scale = f"time scale {emulation['time_scale']:g}"
        lines.append(f"{scale}: seconds are the testbed's, but CPU seconds this host's")
    if any(row["disturbed"] for row in emulation.get("fidelity", [])):
        lines.append("*: disturbed by other load on this host while it was measured")
    waits = emulation.get("turn_waits_s")
    if waits is not None:
        total, most = sum(waits.values()), max(waits, key=waits.__getitem__, default="")
        said = "no device had to wait for this host's cores"
        if total >= 0.05:
            said = (
                f"{len(waits)} devices waited {total:.1f} s in all for this host's cores, {most} "
                f"the longest, {waits[most]:.1f} s: that is in no figure of theirs"
            )
        lines.append(f"turns: {said}")
    interfaces = emulation.get("interfaces")
    if interfaces:
        drops = sum(counters["down_drops"] for counters in interfaces.values())
        lines.append(f"queues: {drops} packets to devices dropped at full queues")
    return lines


_RATIOS = {
    "phases": "by matrix products while a device trains, by integer work else",
    "integer": "by integer work (matrix products of small ARM cores are slower than that)",
    "gemm": "by matrix products (integer work is slowed down as much)",
}


def _pair(asked: float | None, got: float | None, unit: Any) -> str:
    if asked is None:
        return "not held"
    return f"{unit(asked)} / {unit(got)}" if got is not None else f"{unit(asked)} / ?"


def _cores(value: float) -> str:
    return f"{value:.3f}"


def _mib(value: float) -> str:
    return f"{value:.0f} MiB"


def _rate(bps: float) -> str:
    return f"{bps / 1e6:.1f}M" if bps >= 1e6 else f"{bps / 1e3:.0f}k"
