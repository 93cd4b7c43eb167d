"""`report.json`: a run for programs. For people there are the closing tables, in `tables`."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from broker_server.books.agreement import Agreement
from broker_server.books.run_bytes import RunBytes
from broker_server.record import RoundRecord
from broker_server.sink import Facts
from broker_server.totals import devices, final
from edge_runtime.errors import DataError

FILE_NAME = "report.json"

_ROUND_KEYS = [f.name for f in fields(RoundRecord) if f.name not in ("clients", "bytes", "devices")]


def write_report(
    directory: Path,
    records: Sequence[RoundRecord],
    facts: Facts,
    agreement: Agreement = (),
    run: RunBytes | None = None,
) -> Path:
    """Write `report.json`: the facts, ``final`` and ``rounds``; NaN is null. Returns its path.

    The facts ``rounds`` and ``devices`` (how many were asked for) become ``rounds_planned`` and
    ``devices_planned``; ``devices`` describes those that came. Without `run` the bytes are those of
    the records. Raises `DataError` if the file
    cannot be written.
    """
    head: dict[str, Any] = {"name": None, "seed": None}
    for key, value in facts.items():
        head[f"{key}_planned" if key in ("rounds", "devices") else key] = value
    found = devices(records)
    if found:
        head["devices"] = [asdict(device) for device in found]
    head["final"] = final(records, RunBytes.of(records) if run is None else run, agreement)
    rounds = ",\n  ".join(_json(_round(record)) for record in records)
    text = f'{_json(head, indent=1)[:-2]},\n "rounds": [\n  {rounds}\n ]\n}}\n'
    path = Path(directory) / FILE_NAME
    replace_file(path, text)
    return path


def replace_file(path: Path, text: str) -> None:
    """Write the whole file, or leave what was there; `DataError` if it cannot be written."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _round(record: RoundRecord) -> dict[str, Any]:
    return {
        **{key: getattr(record, key) for key in _ROUND_KEYS},
        "left_out": {c.client: c.status for c in record.clients if c.status != "ok"},
        "assignments": {c.client: c.experts for c in record.clients},
        "capacities": {
            c.client: {"asked": c.asked, "k": c.capacity, "limit": c.limit, "why": c.why}
            for c in record.clients
        },
    }


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    """`value` in what JSON has: no NaN or infinity, no numpy numbers, no tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
