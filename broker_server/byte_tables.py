"""The tables of bytes, as rich renderables of at most 100 columns.

Bytes are wire bytes (whole MQTT packets) unless they are called payload; up is device to server.
What devices moved is counted at their links (`broker_server.link_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from broker_server.agreement import TOLERANCE, Agreement
from broker_server.figures import (
    human_bytes,
    human_joules,
    human_seconds,
    percent,
    plain_table,
    titled,
)
from broker_server.link_bytes import (
    all_link_rows,
    grouped,
    link_rows,
    server_rows,
    sums,
)
from broker_server.link_costs import budgeted, costs, typical_rounds
from broker_server.record import BytesRow, RoundRecord
from device_profiles.link_class import LINKS
from edge_runtime.ledger import CONNECTION

MOST_DEVICES = 40
"""A table with more devices than this shows the ones with the most bytes, and sums up the rest."""

_COLUMNS = ("up", "down", "payload", "MQTT", "messages")
_GROUPS = {
    "program": ("program",),
    "shared": ("backbone", "gate"),
    "experts": ("expert",),
    "messages": ("control",),
    "connection": (CONNECTION,),
}
_KINDS = ("program", "backbone", "gate", "expert", "control", CONNECTION)


def by_device(records: Sequence[RoundRecord]) -> Table:
    """Each device's link, and the server's own socket."""
    rows = all_link_rows(records)
    groups = grouped(rows, "client")
    table = plain_table("Bytes by device", "device", *_COLUMNS)
    shown = sorted(groups, key=lambda client: -sum(row.wire_bytes for row in groups[client]))
    rest = shown[MOST_DEVICES:]
    for client in sorted(shown[:MOST_DEVICES]):
        _row(table, client, groups[client])
    if rest:
        others = [row for client in rest for row in groups[client]]
        _row(table, f"{len(rest)} others, with fewer bytes each", others)
    _row(table, "all devices", rows, style="bold")
    _row(table, "server's socket", server_rows(records))
    return table


def by_kind(records: Sequence[RoundRecord]) -> Table:
    """What the devices' links carried, by kind, and what the server sent of it."""
    rows, sent = all_link_rows(records), _sent(records)
    groups, egress = grouped(rows, "kind"), grouped(sent, "kind")
    table = plain_table("Bytes by kind", "kind", *_COLUMNS, "server sent")
    for kind in sorted(groups | egress, key=_kind_order):
        mine = groups.get(kind, [])
        _row(table, kind.replace(":", " "), mine, _wire(egress.get(kind, ())))
    _row(table, "total", rows, _wire(sent), style="bold")
    return table


def by_round(records: Sequence[RoundRecord]) -> Table:
    """Up, down and what the server sent: payload, and what MQTT adds to it."""
    columns = [name for way in ("up", "down", "server sent") for name in (way, "+ MQTT")]
    table = plain_table("Bytes by round: payload, and what MQTT adds", "round", *columns)
    for record in records:
        table.add_row(str(record.round), *_layers(link_rows(record.bytes), _sent([record])))
    table.add_row("total", *_layers(all_link_rows(records), _sent(records)), style="bold")
    return table


def by_client(records: Sequence[RoundRecord]) -> Table:
    """Each device's link by direction, as kinds of things; shared are the backbone and the gate."""
    table = titled("Bytes by device and direction")
    table.add_column("device", overflow="fold")
    table.add_column("way", no_wrap=True)
    for column in (*_GROUPS, "total"):
        table.add_column(column, justify="right", no_wrap=True)
    for client, rows in grouped(all_link_rows(records), "client").items():
        for direction in ("up", "down"):
            mine = [row for row in rows if row.direction == direction]
            cells = [
                _wire([row for row in mine if row.kind.partition(":")[0] in kinds])
                for kinds in _GROUPS.values()
            ]
            name = escape(client) if direction == "up" else ""
            table.add_row(name, direction, *cells, _wire(mine))
    return table


def by_expert(records: Sequence[RoundRecord]) -> Table:
    """What each expert cost: at the devices' links, and as the server sent it."""
    groups = {
        kind: rows
        for kind, rows in grouped(all_link_rows(records), "kind").items()
        if kind.startswith("expert:")
    }
    egress = grouped(_sent(records), "kind")
    table = plain_table("Bytes by expert", "expert", *_COLUMNS, "server sent", "devices")
    for kind in sorted(groups, key=_kind_order):
        rows = groups[kind]
        clients = len({row.client for row in rows})
        number = kind.partition(":")[2]
        _row(table, number, rows, _wire(egress.get(kind, ())), str(clients))
    return table


def budgets(records: Sequence[RoundRecord]) -> Table | None:
    """What each device's link may carry in a round, and what it carried; None without budgets."""
    found = budgeted(records)
    if not found:
        return None
    table = plain_table(
        "Bytes a round: asked and got", "device", "codec", "asked", "got, mean", "got, most", "over"
    )
    for client, budget in found.items():
        table.add_row(
            escape(client),
            escape(budget.codec),
            human_bytes(budget.asked_bytes),
            human_bytes(round(budget.mean_bytes)),
            human_bytes(round(budget.most_bytes)),
            f"{budget.over} of {budget.rounds}",
        )
    return table


def on_links(records: Sequence[RoundRecord]) -> list[RenderableType]:
    """What a device's mean round costs on each class of link; empty if no device had work."""
    typical = typical_rounds(records)
    if typical is None:
        return []
    columns = ("mean device", "", "most bytes", "")
    table = plain_table("What a round's bytes cost a device on other links", "link", *columns)
    for link, mean, worst in costs(typical):
        table.add_row(
            link.title,
            human_seconds(mean.seconds),
            human_joules(mean.joules),
            human_seconds(worst.seconds),
            human_joules(worst.joules),
        )
    sizes = [
        f"{human_bytes(round(one.up_bytes))} up, {human_bytes(round(one.down_bytes))} down"
        for one in (typical.mean, typical.worst)
    ]
    note = f"mean device: {sizes[0]} a round; most bytes: {typical.worst_client}, {sizes[1]}"
    return [table, Text(note, style="dim")]


def sources() -> Table:
    """Where the links' constants are from."""
    table = titled("Links: published figures")
    for column in ("link", "figure", "value"):
        table.add_column(column, no_wrap=True, justify="right" if column == "value" else "left")
    table.add_column("from", overflow="fold")
    for link in LINKS.values():
        title, said = link.title, ""
        for name, figure in link.figures.items():
            source = "as above" if figure.source == said else figure.source
            assumed = "ASSUMED: " if figure.assumed else ""
            table.add_row(title, name, f"{figure.value:,.10g}", Text(f"{assumed}{source}"))
            title, said = "", figure.source
    return table


def agreement_lines(agreement: Agreement) -> list[RenderableType]:
    """One line if all counts that can be compared agree, else a table; empty without any."""
    if not agreement:
        return []
    if any(comparison.agrees is False for comparison in agreement):
        return [_agreement_table(agreement)]
    said = []
    if agreed := [comparison for comparison in agreement if comparison.agrees]:
        most = percent(max(comparison.difference for comparison in agreed), 3)
        which = "all counts" if len(agreed) == len(agreement) else _names(agreed)
        said.append(f"{which} agree within {percent(TOLERANCE, 1)} (at most {most} apart)")
    for why in dict.fromkeys(comparison.why for comparison in agreement if comparison.why):
        names = _names([comparison for comparison in agreement if comparison.why == why])
        said.append(f"not compared: {names} ({why})")
    return [Text(f"\nBytes: {'; '.join(said)}")]


def _names(agreement: Agreement) -> str:
    return ", ".join(comparison.name for comparison in agreement)


def _agreement_table(agreement: Agreement) -> Table:
    table = titled("Bytes counted twice")
    for column in ("what", "counted", "expected", "difference", ""):
        table.add_column(column, justify="left" if column in ("what", "") else "right")
    for comparison in agreement:
        what = Text(f"{comparison.name}: {comparison.counted} / {comparison.expected}")
        if comparison.why:
            table.add_row(what, "-", "-", "-", Text(f"not compared: {comparison.why}"))
            continue
        share = percent(comparison.difference, 3)
        table.add_row(
            what,
            f"{comparison.counted_bytes:,}",
            f"{comparison.expected_bytes:,}",
            f"{comparison.difference_bytes:+,} ({share})",
            "agree" if comparison.agrees else "DIFFER",
            style="" if comparison.agrees else "bold red",
        )
    return table


def _sent(records: Sequence[RoundRecord]) -> list[BytesRow]:
    """What the server sent."""
    return [row for row in server_rows(records) if row.direction == "down"]


def _wire(rows: Sequence[BytesRow]) -> str:
    return human_bytes(sum(row.wire_bytes for row in rows))


def _layers(links: Sequence[BytesRow], sent: Sequence[BytesRow]) -> list[str]:
    """Payload and MQTT's bytes: up, down, sent by the server."""
    up = [row for row in links if row.direction == "up"]
    down = [row for row in links if row.direction == "down"]
    return [
        human_bytes(sum(figures))
        for rows in (up, down, sent)
        for figures in ([r.payload_bytes for r in rows], [r.mqtt_bytes for r in rows])
    ]


def _row(table: Table, label: str, rows: Sequence[BytesRow], *more: str, style: str = "") -> None:
    total = sums(rows)
    wire = total["uplink_bytes"] + total["downlink_bytes"]
    overhead = (wire - total["payload_bytes"]) / wire if wire else math.nan
    sizes = [human_bytes(total[key]) for key in ("uplink_bytes", "downlink_bytes", "payload_bytes")]
    table.add_row(
        escape(label), *sizes, percent(overhead), str(total["messages"]), *more, style=style
    )


def _kind_order(kind: str) -> tuple[int, int, str]:
    name, _, expert = kind.partition(":")
    place = _KINDS.index(name) if name in _KINDS else len(_KINDS)
    return place, int(expert) if expert.isdecimal() else 0, kind
