"""The tables of bytes, as rich renderables of at most 100 columns.

Bytes are wire bytes (whole MQTT packets) unless they are called payload; up is device to server.
What devices moved is counted at their links (`broker_server.books.link_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from broker_server.books.agreement import TOLERANCE, Agreement
from broker_server.books.link_costs import Budgeted, costs
from broker_server.books.run_bytes import RunBytes, Sums, added
from broker_server.figures import (
    human_bytes,
    human_joules,
    human_seconds,
    percent,
    plain_table,
    titled,
)
from device_profiles.catalogue.profiles import PUBLISHED_LINKS
from edge_runtime.protocol.ledger import CONNECTION, Direction

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
_DIRECTIONS: tuple[Direction, ...] = ("up", "down")
_KINDS = ("program", "backbone", "gate", "expert", "control", CONNECTION)


def by_device(run: RunBytes) -> Table:
    """Each device's link, and the server's own socket."""
    table = plain_table("Bytes by device", "device", *_COLUMNS)
    shown, rest = _most(run)
    for client in shown:
        _row(table, client, added(run.devices[client].values()))
    if rest:
        _row(table, _others(rest), added(_all_of(run, rest)))
    _row(table, "all devices", run.links, style="bold")
    _row(table, "server's socket", run.server)
    return table


def by_kind(run: RunBytes) -> Table:
    """What the devices' links carried, by kind, and what the server sent of it."""
    table = plain_table("Bytes by kind", "kind", *_COLUMNS, "server sent")
    egress = run.egress
    for kind in sorted(run.kinds.keys() | egress.keys(), key=_kind_order):
        mine = run.kinds.get(kind, Sums())
        _row(table, kind.replace(":", " "), mine, human_bytes(egress.get(kind, 0)))
    total = human_bytes(run.server.down.wire_bytes)
    _row(table, "total", run.links, total, style="bold")
    return table


def by_round(run: RunBytes) -> Table:
    """Up, down and what the server sent: payload, and what MQTT adds to it."""
    columns = [name for way in ("up", "down", "server sent") for name in (way, "+ MQTT")]
    table = plain_table("Bytes by round: payload, and what MQTT adds", "round", *columns)
    for one in run.rounds:
        table.add_row(one.name, *_layers(one.links, one.server))
    table.add_row("total", *_layers(run.links, run.server), style="bold")
    return table


def by_client(run: RunBytes) -> Table:
    """Each device's link by direction, as kinds of things; shared are the backbone and the gate."""
    table = titled("Bytes by device and direction")
    table.add_column("device", overflow="fold")
    table.add_column("way", no_wrap=True)
    for column in (*_GROUPS, "total"):
        table.add_column(column, justify="right", no_wrap=True)
    shown, rest = _most(run)
    lines = [(client, [client]) for client in shown]
    for label, clients in lines + ([(_others(rest), rest)] if rest else []):
        for direction in _DIRECTIONS:
            cells = [_wire(_all_of(run, clients, kinds), direction) for kinds in _GROUPS.values()]
            name = escape(label) if direction == "up" else ""
            table.add_row(name, direction, *cells, _wire(_all_of(run, clients), direction))
    return table


def by_expert(run: RunBytes) -> Table:
    """What each expert cost: at the devices' links, and as the server sent it."""
    table = plain_table("Bytes by expert", "expert", *_COLUMNS, "server sent", "devices")
    egress = run.egress
    experts = [kind for kind in run.kinds if kind.startswith("expert:")]
    for kind in sorted(experts, key=_kind_order):
        number = kind.partition(":")[2]
        more = (human_bytes(egress.get(kind, 0)), str(len(run.takers[kind])))
        _row(table, number, run.kinds[kind], *more)
    return table


def budgets(run: RunBytes) -> Table | None:
    """What each device's link may carry in a round, and what it carried; None without budgets."""
    found = run.budgets.found()
    if not found:
        return None
    columns = ("device", "experts", "codec", "asked", "got, mean", "got, most", "over", "last over")
    table = plain_table("Bytes a round: asked and got", *columns)
    table.caption = "whole parts and programs come on top: in the first rounds, and what is new"
    table.caption_justify = "left"
    order = sorted(found, key=lambda client: (-found[client].over, -found[client].last_over))
    rest = [found[client] for client in order[MOST_DEVICES:]]
    for client in sorted(order[:MOST_DEVICES]):
        budget = found[client]
        table.add_row(
            escape(client),
            str(budget.experts),
            escape(budget.codec),
            human_bytes(budget.asked_bytes),
            _known_bytes(budget.mean_bytes),
            _known_bytes(budget.most_bytes),
            *_over([budget]),
        )
    if rest:
        table.add_row(f"{len(rest)} others, over no more often", *[""] * 5, *_over(rest))
    return table


def on_links(run: RunBytes) -> list[RenderableType]:
    """What a device's mean round costs on each class of link; empty if no device had work."""
    typical = run.means.typical()
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
    note = f"mean device: {sizes[0]} a round, of those that it had work in\n"
    note += f"most bytes: {typical.worst_client}, {sizes[1]}"
    return [table, Text(note, style="dim")]


def sources() -> Table:
    """Where the links' constants are from."""
    table = titled("Links: published figures")
    for column in ("link", "figure", "value"):
        table.add_column(column, no_wrap=True, justify="right" if column == "value" else "left")
    table.add_column("from", overflow="fold")
    for link in PUBLISHED_LINKS.values():
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
        return [_agreement_table(agreement), _agreement_notes(agreement)]
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
    table = plain_table("Bytes counted twice", "what", "counted", "expected", "difference", "")
    for comparison in agreement:
        if comparison.why:
            table.add_row(comparison.name, "-", "-", "-", "not compared")
            continue
        share = percent(comparison.difference, 3)
        table.add_row(
            comparison.name,
            f"{comparison.counted_bytes:,}",
            f"{comparison.expected_bytes:,}",
            f"{comparison.difference_bytes:+,} ({share})",
            "agree" if comparison.agrees else "DIFFER",
            style="" if comparison.agrees else "bold red",
        )
    return table


def _agreement_notes(agreement: Agreement) -> Text:
    """Whose counts they are, or why they were not compared."""
    said = [
        f"{c.name}: {f'not compared: {c.why}' if c.why else f'{c.counted} / {c.expected}'}"
        for c in agreement
    ]
    return Text("\n".join(said), style="dim")


def _most(run: RunBytes) -> tuple[list[str], list[str]]:
    """The devices with the most bytes, by name, and the others."""
    moved = {
        client: sum(sums.wire_bytes for sums in families.values())
        for client, families in run.devices.items()
    }
    order = sorted(moved, key=lambda client: (-moved[client], client))
    return sorted(order[:MOST_DEVICES]), order[MOST_DEVICES:]


def _others(rest: Sequence[str]) -> str:
    return f"{len(rest)} others, with fewer bytes each"


def _all_of(
    run: RunBytes, clients: Sequence[str], kinds: Sequence[str] | None = None
) -> Iterator[Sums]:
    """The sums of these devices' links, of all kinds or of some."""
    return (
        sums
        for client in clients
        for kind, sums in run.devices[client].items()
        if kinds is None or kind in kinds
    )


def _wire(sums: Iterable[Sums], direction: Direction) -> str:
    return human_bytes(sum(one.way(direction).wire_bytes for one in sums))


def _over(found: Sequence[Budgeted]) -> list[str]:
    """How many rounds were above their budgets, and which was the last."""
    over, last = sum(one.over for one in found), max(one.last_over for one in found)
    told = f"{over} of {sum(one.rounds for one in found)}"
    return [told, f"round {last}" if last else "never"]


def _known_bytes(count: float) -> str:
    return "-" if math.isnan(count) else human_bytes(round(count))


def _layers(links: Sums, server: Sums) -> list[str]:
    """Payload and MQTT's bytes: up, down, sent by the server."""
    ways = (links.up, links.down, server.down)
    return [human_bytes(count) for way in ways for count in (way.payload_bytes, way.mqtt_bytes)]


def _row(table: Table, label: str, sums: Sums, *more: str, style: str = "") -> None:
    total, wire = sums.as_dict(), sums.wire_bytes
    overhead = (wire - total["payload_bytes"]) / wire if wire else math.nan
    sizes = [human_bytes(total[key]) for key in ("uplink_bytes", "downlink_bytes", "payload_bytes")]
    table.add_row(
        escape(label), *sizes, percent(overhead), str(total["messages"]), *more, style=style
    )


def _kind_order(kind: str) -> tuple[int, int, str]:
    name, _, expert = kind.partition(":")
    place = _KINDS.index(name) if name in _KINDS else len(_KINDS)
    return place, int(expert) if expert.isdecimal() else 0, kind
