"""`flexmoe bytes`: where a run's bytes went, as tables for people or rows for programs."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import rich.console
from rich.console import RenderableType

from broker_server.books import byte_tables
from broker_server.books.run_bytes import RunBytes
from broker_server.console import print_tables
from broker_server.record import RoundRecord
from broker_server.store import Store
from edge_runtime.errors import ConfigError, DataError

STDOUT = "-"

COLUMNS = (
    *("round", "side", "client", "direction", "kind", "expert"),
    *("payload_bytes", "mqtt_bytes", "wire_bytes", "messages"),
)
"""Of the rows for programs; `expert` is empty for kinds that are of no expert."""

TABLES: Mapping[str, Callable[[RunBytes], RenderableType]] = MappingProxyType(
    {
        "round": byte_tables.by_round,
        "kind": byte_tables.by_kind,
        "client": byte_tables.by_client,
        "expert": byte_tables.by_expert,
    }
)


def show_or_write(
    directory: Path, by: str | None, links: bool, csv_file: str | None, parquet_file: Path | None
) -> None:
    """Print tables, or write rows if there is a file for them: rows have no other options."""
    if csv_file is None and parquet_file is None:
        show(directory, by, links)
        return
    if by is not None or links:
        raise ConfigError(
            f"{'--links' if by is None else '--by'}: is for tables, but --csv and --parquet write "
            "all rows; leave one of them out"
        )
    if csv_file is not None:
        write_csv(directory, csv_file)
    if parquet_file is not None:
        write_parquet(directory, parquet_file)


def show(directory: Path, by: str | None = None, links: bool = False) -> None:
    """Print the tables of a run's bytes: all, or the one `by`; with `links` the constants' sources.

    A run may be under way: its finished rounds are shown.
    """
    if by is not None and by not in TABLES:
        raise ConfigError(f"--by {by}: expected one of {', '.join(TABLES)}")
    with Store.open(directory) as store:
        records, agreement = _records(store, directory), store.agreement()
    run = RunBytes.of(records)
    tables = [table(run) for name, table in TABLES.items() if by in (None, name)]
    if by is None:
        asked = byte_tables.budgets(run)
        tables += [asked] if asked is not None else []
        tables += byte_tables.on_links(run)
        tables += byte_tables.agreement_lines(agreement)
    if links:
        tables.append(byte_tables.sources())
    print_tables(tables, rich.console.Console(highlight=False))


def write_csv(directory: Path, path: str) -> None:
    """Write the rows to a CSV file, or to standard output if `path` is ``-``."""
    with Store.open(directory) as store:
        records = _records(store, directory)
    if path == STDOUT:
        _csv(records, sys.stdout)
        return
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            _csv(records, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def write_parquet(directory: Path, path: Path) -> None:
    """Write the rows to a Parquet file; `ConfigError` if pyarrow is not there."""
    with Store.open(directory) as store:
        records = _records(store, directory)
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ConfigError(
            "--parquet needs pyarrow, which is not installed; install it with: pip install pyarrow "
            "(or use --csv)"
        ) from None
    words = ("side", "client", "direction", "kind")
    types = [(name, arrow.string() if name in words else arrow.int64()) for name in COLUMNS]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in tidy_rows(records)]
    try:
        parquet.write_table(arrow.Table.from_pylist(rows, schema=arrow.schema(types)), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from None


def tidy_rows(records: Sequence[RoundRecord]) -> Iterator[tuple[str | int | None, ...]]:
    """One row for each round, side, client, direction and kind; as `COLUMNS`."""
    for record in records:
        for row in record.bytes:
            expert = row.kind.partition(":")[2]
            yield (
                *(record.round, row.side, row.client, row.direction, row.kind),
                int(expert) if expert else None,
                *(row.payload_bytes, row.mqtt_bytes, row.wire_bytes, row.messages),
            )


def _csv(records: Sequence[RoundRecord], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(tidy_rows(records))


def _records(store: Store, directory: Path) -> list[RoundRecord]:
    records = store.records()
    if not records:
        raise DataError(f"{directory}: no round is finished yet; try again after the first one")
    return records
