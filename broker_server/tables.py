"""The tables that close a run, as rich renderables of at most 100 columns.

Bytes are wire bytes (whole MQTT packets) unless they are called payload; up is device to server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from broker_server.record import RoundRecord
from broker_server.sink import Facts
from broker_server.totals import drops, final, grouped, left_out, sums
from edge_runtime.ledger import NOBODY, LedgerRow

MOST_DEVICES = 40
"""A table with more devices than this shows the ones with the most bytes, and sums up the rest."""

_BYTES_COLUMNS = ("up", "down", "payload", "not payload", "messages")
_KINDS = ("program", "backbone", "gate", "expert", "message", "connection")


def render(records: Sequence[RoundRecord], facts: Facts) -> list[RenderableType]:
    """The closing tables, at most 100 columns wide."""
    if not records:
        return [Text("No round was finished.")]
    rows = [row for record in records for row in record.bytes]
    tables: list[RenderableType] = [_result(records, facts), _bytes_by_device(rows)]
    tables.append(_bytes_by_kind(rows))
    if any(client.status != "ok" for record in records for client in record.clients):
        tables.append(_left_out_table(records))
    if any(record.drops for record in records):
        tables.append(_drops_table(records))
    return tables


def human_bytes(count: int) -> str:
    """A number of bytes for people: ``512 B``, ``3.4 KiB``, ``12.0 MiB``."""
    if abs(count) < 1024:
        return f"{count} B"
    size = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if abs(size) < 1023.95:  # what would round up to 1024.0
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def figure(value: float | None, digits: int = 4) -> str:
    """A number for people; ``-`` where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _titled(title: str, show_header: bool = True) -> Table:
    """A plain table without columns, set off by an empty line."""
    return Table(
        title=Text(f"\n{title}", style="bold"),
        title_justify="left",
        show_header=show_header,
        box=None,
        pad_edge=False,
    )


def _table(title: str, *columns: str) -> Table:
    """A plain table; the first column is text, the others numbers."""
    table = _titled(title)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _result(records: Sequence[RoundRecord], facts: Facts) -> Table:
    closing = final(records)
    best = closing["best_global_accuracy"]
    rounds, up, down = closing["rounds"], closing["uplink_bytes"], closing["downlink_bytes"]
    name = facts.get("name", "run")
    table = _titled(f"{name}: after round {records[-1].round}", show_header=False)
    lines = [
        ("global accuracy", f"{figure(closing['global_accuracy'])}  (best {figure(best)})"),
        (
            "device accuracy",
            f"{figure(closing['device_accuracy'])}  (mean; own model, own held-out data)",
        ),
        ("training loss", figure(closing["loss"])),
        (
            "load CV",
            f"{figure(closing['load_cv'])} as assigned, {figure(closing['routed_cv'])} as routed, "
            f"{figure(closing['usage_cv'])} as routed in the last round",
        ),
        ("up", f"{human_bytes(up)}  ({human_bytes(round(up / rounds))} a round)"),
        ("down", f"{human_bytes(down)}  ({human_bytes(round(down / rounds))} a round)"),
        (
            "time",
            f"{figure(closing['rounds_s'], 1)} s  "
            f"({figure(closing['rounds_s'] / rounds, 2)} s a round)",
        ),
    ]
    for trainer, share in closing["memory_by_trainer"].items():
        largest, mean, total = (
            figure(share[f"{key}_mib"], 1) for key in ("largest", "mean", "sum")
        )
        what = f"{largest} MiB a device at most, {mean} on average, {total} in all"
        lines.append(("memory", f"{what}  ({share['devices']} {escape(trainer)})"))
    if closing["device_cpu_s"] is not None:
        lines.append(("CPU", f"{figure(closing['device_cpu_s'], 1)} s, all devices together"))
    missed = sum(record.violated_samples > 0 for record in records)
    if missed:
        samples = closing["violated_samples"]
        lines.append(
            ("load bounds", f"missed in {missed} of {rounds} rounds, by {samples} samples")
        )
    for label, value in lines:
        table.add_row(label, value)
    return table


def _bytes_row(table: Table, label: str, rows: Sequence[LedgerRow], style: str = "") -> None:
    total = sums(rows)
    wire = total["uplink_bytes"] + total["downlink_bytes"]
    overhead = 100 * (wire - total["payload_bytes"]) / wire if wire else math.nan
    sizes = [human_bytes(total[key]) for key in ("uplink_bytes", "downlink_bytes", "payload_bytes")]
    table.add_row(
        escape(label), *sizes, f"{figure(overhead, 2)} %", str(total["messages"]), style=style
    )


def _bytes_by_device(rows: Sequence[LedgerRow]) -> Table:
    groups = grouped(rows, "client")
    nobody = groups.pop(NOBODY, [])
    table = _table("Bytes by device", "device", *_BYTES_COLUMNS)
    shown = sorted(groups, key=lambda client: -sum(row.wire_bytes for row in groups[client]))
    rest = shown[MOST_DEVICES:]
    for client in sorted(shown[:MOST_DEVICES]):
        _bytes_row(table, client, groups[client])
    if rest:
        others = [row for client in rest for row in groups[client]]
        _bytes_row(table, f"{len(rest)} others, with fewer bytes each", others)
    if nobody:
        _bytes_row(table, "server's connection", nobody)
    _bytes_row(table, "total", rows, style="bold")
    return table


def _kind_order(kind: str) -> tuple[int, int, str]:
    name, _, expert = kind.partition(":")
    place = _KINDS.index(name) if name in _KINDS else len(_KINDS)
    return place, int(expert) if expert.isdecimal() else 0, kind


def _bytes_by_kind(rows: Sequence[LedgerRow]) -> Table:
    groups = grouped(rows, "kind")
    table = _table("Bytes by kind", "kind", *_BYTES_COLUMNS)
    for kind in sorted(groups, key=_kind_order):
        _bytes_row(table, kind.replace(":", " "), groups[kind])
    _bytes_row(table, "total", rows, style="bold")
    return table


def _left_out_table(records: Sequence[RoundRecord]) -> Table:
    table = _titled("Left out")
    for column in ("device", "why", "rounds", "last detail"):
        table.add_column(column, overflow="fold")
    for client, by_status in left_out(records).items():
        for status, (rounds, detail) in by_status.items():
            table.add_row(escape(client), status, _ranges(rounds), Text(detail))
    return table


def _ranges(rounds: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _drops_table(records: Sequence[RoundRecord]) -> Table:
    table = _table("Dropped messages", "reason", "count")
    for reason, count in drops(records).items():
        table.add_row(Text(reason), str(count))
    return table
