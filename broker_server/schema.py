"""The tables of `run.sqlite`, and how a `RoundRecord` becomes their rows and comes back.

The tables are normalised and meant to be queried with SQL. NaN is NULL.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from broker_server.books.agreement import Agreement, Comparison
from broker_server.record import BytesRow, ClientRound, Device, RoundRecord

SCHEMA_VERSION = 6

_LISTS = ("load", "usage", "clients", "bytes", "drops", "events", "devices")
_ROUND_COLUMNS = tuple(f.name for f in fields(RoundRecord) if f.name not in _LISTS)
_BYTES_COLUMNS = tuple(f.name for f in fields(BytesRow))
_CLIENT_COLUMNS = (
    *("client", "samples", "device_accuracy", "status", "detail"),
    *("codec", "budget_bytes", "asked", "capacity", "limit", "why"),
)
_COMPARISON_COLUMNS = tuple(f.name for f in fields(Comparison))
_DEVICE_COLUMNS = tuple(f.name for f in fields(Device))

BYTES_OF_ROUND = ("uplink_bytes", "downlink_bytes", "egress_bytes", "ingress_bytes")
"""Columns of table ``rounds`` that the end of a run adds to; table ``ends`` tells how much."""

_DROPS = "drops:"  # in table ``ends``, before the reason

_OF_ROUND = "round INTEGER NOT NULL REFERENCES rounds(round) ON DELETE CASCADE"
SCHEMA = f"""
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, global_accuracy REAL, device_accuracy REAL, loss REAL,
    uplink_bytes INTEGER, downlink_bytes INTEGER, egress_bytes INTEGER, ingress_bytes INTEGER,
    load_cv REAL, usage_cv REAL, routed_cv REAL, assign_s REAL, train_s REAL, round_s REAL,
    participants INTEGER, answered INTEGER, objective REAL, bound REAL, gap REAL,
    violated_samples INTEGER, least_violation REAL, solver TEXT);
CREATE TABLE experts ({_OF_ROUND}, expert INTEGER, load INTEGER, usage INTEGER,
    PRIMARY KEY (round, expert));
CREATE TABLE clients ({_OF_ROUND}, client TEXT, samples INTEGER, device_accuracy REAL,
    status TEXT, detail TEXT, codec TEXT, budget_bytes INTEGER, asked INTEGER, capacity INTEGER,
    "limit" TEXT, why TEXT, PRIMARY KEY (round, client));
CREATE TABLE assignments ({_OF_ROUND}, client TEXT, expert INTEGER, usage INTEGER, loss REAL,
    hits INTEGER, quality REAL, PRIMARY KEY (round, client, expert));
CREATE TABLE telemetry ({_OF_ROUND}, client TEXT, key TEXT, value REAL,
    PRIMARY KEY (round, client, key));
CREATE TABLE bytes ({_OF_ROUND}, side TEXT, client TEXT, direction TEXT, kind TEXT,
    payload_bytes INTEGER, wire_bytes INTEGER, messages INTEGER,
    PRIMARY KEY (round, side, client, direction, kind));
CREATE TABLE agreement ({_OF_ROUND}, name TEXT, counted TEXT, expected TEXT, counted_bytes INTEGER,
    expected_bytes INTEGER, why TEXT, PRIMARY KEY (round, name));
CREATE TABLE drops ({_OF_ROUND}, reason TEXT, count INTEGER, PRIMARY KEY (round, reason));
CREATE TABLE events ({_OF_ROUND}, position INTEGER, text TEXT, PRIMARY KEY (round, position));
CREATE TABLE devices ({_OF_ROUND}, client TEXT PRIMARY KEY ON CONFLICT REPLACE, samples INTEGER,
    test_samples INTEGER, trainer TEXT, machine TEXT, cores REAL, memory_available_bytes INTEGER,
    version TEXT, board TEXT, link TEXT);
CREATE TABLE ends ({_OF_ROUND}, what TEXT, amount INTEGER, PRIMARY KEY (round, what));
CREATE TABLE checkpoint ({_OF_ROUND}, data BLOB NOT NULL);
"""


def to_rows(record: RoundRecord) -> dict[str, list[list[Any]]]:
    """A record as rows of each table, parents first, cells in the order of the columns."""
    number = record.round
    rows: dict[str, list[list[Any]]] = {
        "rounds": [[getattr(record, name) for name in _ROUND_COLUMNS]],
        "experts": [
            [number, expert, load, usage]
            for expert, (load, usage) in enumerate(zip(record.load, record.usage, strict=True))
        ],
        "clients": [
            [number, *(getattr(c, name) for name in _CLIENT_COLUMNS)] for c in record.clients
        ],
        "assignments": [
            [number, c.client, expert]
            + ([c.usage[slot], c.loss[slot], c.hits[slot]] if c.usage else [None, None, None])
            + [c.quality[slot] if c.quality else None]
            for c in record.clients
            for slot, expert in enumerate(c.experts)
        ],
        "telemetry": [
            [number, c.client, key, value]
            for c in record.clients
            for key, value in c.telemetry.items()
        ],
        "bytes": [
            [number, *(getattr(row, name) for name in _BYTES_COLUMNS)] for row in record.bytes
        ],
        "drops": [[number, reason, count] for reason, count in record.drops.items()],
        "events": [[number, position, text] for position, text in enumerate(record.events)],
        "devices": [
            [number, *(getattr(device, name) for name in _DEVICE_COLUMNS)]
            for device in record.devices
        ],
    }
    return {table: [[_cell(x) for x in cells] for cells in rows[table]] for table in rows}


def end_amounts(figures: Sequence[int], drops: Mapping[str, int]) -> dict[str, int]:
    """What a round's `BYTES_OF_ROUND` and drops are called in table ``ends``, and how many."""
    counts = {f"{_DROPS}{reason}": count for reason, count in drops.items()}
    return {**dict(zip(BYTES_OF_ROUND, figures, strict=True)), **counts}


def without_end(record: RoundRecord, end: Mapping[str, int]) -> RoundRecord:
    """The figures and drops of a round when it finished; `end` is its part of table ``ends``."""
    figures = {name: getattr(record, name) - end.get(name, 0) for name in BYTES_OF_ROUND}
    drops = Counter(record.drops) - Counter(
        {what.removeprefix(_DROPS): n for what, n in end.items() if what.startswith(_DROPS)}
    )
    return replace(record, **figures, drops=dict(drops))


def comparison_rows(number: int, agreement: Agreement) -> list[list[Any]]:
    """The comparisons after round `number` as rows of table ``agreement``."""
    return [[number, *(getattr(c, name) for name in _COMPARISON_COLUMNS)] for c in agreement]


def to_comparisons(select: Select) -> Agreement:
    """The comparisons of which `select` gives the rows."""
    return [Comparison(*cells) for cells in select(", ".join(_COMPARISON_COLUMNS), "agreement")]


Select = Callable[..., list[Any]]
"""``select(columns, table, order="rowid")``: one round's rows of a table."""


def from_rows(select: Select) -> RoundRecord:
    """The record of which `select` gives the rows."""
    (row,) = select(", ".join(_ROUND_COLUMNS), "rounds")
    experts = select("load, usage", "experts", "expert")
    assigned: dict[str, list[Any]] = {}
    for client, *cells in select("client, expert, usage, loss, hits, quality", "assignments"):
        assigned.setdefault(client, []).append(cells)
    telemetry: dict[str, dict[str, float]] = {}
    for client, key, value in select("client, key, value", "telemetry"):
        telemetry.setdefault(client, {})[key] = _number(value)
    return RoundRecord(
        **{name: _number(cell) for name, cell in zip(_ROUND_COLUMNS, row, strict=True)},
        load=[load for load, _ in experts],
        usage=[usage for _, usage in experts],
        clients=[
            _client(cells, assigned.get(cells[0], []), telemetry.get(cells[0], {}))
            for cells in select(", ".join(f'"{name}"' for name in _CLIENT_COLUMNS), "clients")
        ],
        bytes=[BytesRow(*cells) for cells in select(", ".join(_BYTES_COLUMNS), "bytes")],
        drops=dict(select("reason, count", "drops")),
        events=[text for (text,) in select("text", "events", "position")],
        devices=[Device(*cells) for cells in select(", ".join(_DEVICE_COLUMNS), "devices")],
    )


def _client(
    cells: Sequence[Any],
    assigned: list[tuple[int, int | None, float | None, int | None, float | None]],
    telemetry: dict[str, float],
) -> ClientRound:
    said = dict(zip(_CLIENT_COLUMNS, cells, strict=True))
    answered = [row for row in assigned if row[1] is not None]
    return ClientRound(
        **{**said, "device_accuracy": _number(said["device_accuracy"])},
        experts=[expert for expert, *_ in assigned],
        usage=[usage for _, usage, *_ in answered if usage is not None],
        loss=[_number(loss) for _, _, loss, *_ in answered],
        hits=[hits for *_, hits, _ in answered if hits is not None],
        quality=[quality for *_, quality in assigned if quality is not None],
        telemetry=telemetry,
    )


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _cell(value: Any) -> str | int | float | None:
    """A value as SQLite takes it: numpy's numbers as Python's, NaN as NULL."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return None if math.isnan(value) else float(value)
