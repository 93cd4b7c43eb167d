"""`flexmoe bytes`: tables, rows for programs, and one line where there is nothing to show."""

from __future__ import annotations

import csv
import importlib
import io
import re
import sqlite3
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker_server.books.agreement import Comparison
from broker_server.books.bytes_command import COLUMNS, TABLES, tidy_rows
from broker_server.books.link_bytes import link_rows
from broker_server.cli import main
from broker_server.record import RoundRecord
from broker_server.store import Store
from device_profiles.catalogue.profiles import PUBLISHED_LINKS
from edge_runtime.errors import ConfigError, DataError
from tests.broker_server.sample_records import round_record

RECORDS = [round_record(1), round_record(2)]
AGREED = [Comparison("up, payload", "server received", "devices sent", 7, 7)]
TITLES = ["Bytes by round", "Bytes by kind", "Bytes by device", "Bytes by expert"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stored(tmp_path / "run", RECORDS, AGREED)


def stored(folder: Path, records: list[RoundRecord], agreement: list[Comparison]) -> Path:
    with Store.create(folder) as store:
        for record in records:
            store.write_round(record)
        if agreement:
            store.write_final(records[-1], agreement)
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(["bytes", *arguments]) == 0
    out = capsys.readouterr().out.splitlines()
    assert max(map(len, out)) <= 100
    return out


def cells(lines: list[str], title: str, label: str) -> list[str]:
    """The cells of a row of the table whose title begins so."""
    begin = next(number for number, line in enumerate(lines) if line.startswith(title))
    return re.split(r" {2,}", next(x for x in lines[begin + 1 :] if x.startswith(label)))


def test_all_tables_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(run))
    titles = [line for line in lines if line.startswith("Bytes by")]
    assert [title.startswith(one) for title, one in zip(titles, TITLES, strict=True)] == [True] * 4
    # Two devices, 15000 payload bytes each way; 10 packets with 25 bytes around and 10
    # acknowledgements of 4; a connection of 70 up and 30 down.
    assert cells(lines, "Bytes by round", "1")[1:5] == ["29.3 KiB", "720 B", "29.3 KiB", "640 B"]
    sent = sum(row.payload_bytes for row in round_record(1).bytes if row.side == "server"
               and row.direction == "down")  # fmt: skip
    assert sent == 10_000 + 2 * 5_000
    assert cells(lines, "Bytes by round", "1")[5] == "19.5 KiB"
    assert cells(lines, "Bytes by round", "total")[1] == "58.6 KiB"
    # Backbone and gate are 1000 and 2000 bytes; experts are 3000 and 4000.
    device = cells(lines, "Bytes by device", "device-00")[1:]
    assert device == ["up", "0 B", "6.1 KiB", "13.9 KiB", "9.9 KiB", "140 B", "30.0 KiB"]
    assert cells(lines, "Bytes by expert", "1")[-1] == "2"
    assert any("LoRa" in line for line in lines)
    assert "Bytes: all counts agree within 0.1 % (at most 0.000 % apart)" in lines


@pytest.mark.parametrize("by", list(TABLES))
def test_one_table_is_printed_alone(run: Path, capsys: pytest.CaptureFixture[str], by: str) -> None:
    lines = printed(capsys, str(run), "--by", by)
    titles = [line for line in lines if line.startswith("Bytes by")]
    assert len(titles) == 1 and titles[0].startswith(TITLES[list(TABLES).index(by)])


def test_an_unknown_table_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--by day: expected one of round, kind, client, expert"):
        main(["bytes", str(tmp_path), "--by", "day"])


def test_sources_are_printed_on_demand(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not any("ASSUMED" in line for line in printed(capsys, str(run)))
    text = " ".join(" ".join(printed(capsys, str(run), "--links")).split())
    assert "ASSUMED: " in text
    assert all(link.title in text for link in PUBLISHED_LINKS.values())
    assert "5,470" in text


def test_the_rows_hold_everything_that_the_store_holds() -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in tidy_rows(RECORDS)]
    assert len(rows) == sum(len(record.bytes) for record in RECORDS)
    sums: dict[Any, int] = defaultdict(int)
    for row in rows:
        assert int(row["wire_bytes"] or 0) == int(row["payload_bytes"] or 0) + int(
            row["mqtt_bytes"] or 0
        )
        sums[row["round"], row["side"], row["direction"]] += int(row["wire_bytes"] or 0)
        expert = str(row["kind"]).partition(":")[2]
        assert row["expert"] == (int(expert) if expert else None)
    for record in RECORDS:
        assert sums[record.round, "server", "down"] == record.egress_bytes
        assert sums[record.round, "device", "down"] == record.downlink_bytes
        assert sum(r.wire_bytes for r in link_rows(record.bytes)) == (
            record.uplink_bytes + record.downlink_bytes
        )


def test_rows_as_csv(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [["" if x is None else str(x) for x in row] for row in tidy_rows(RECORDS)]
    assert list(csv.reader(printed(capsys, str(run), "--csv", "-"))) == [list(COLUMNS), *expected]
    file = tmp_path / "rows.csv"
    assert main(["bytes", str(run), "--csv", str(file)]) == 0
    assert list(csv.reader(io.StringIO(file.read_text()))) == [list(COLUMNS), *expected]
    with pytest.raises(DataError, match=r"missing/x.csv: cannot be written"):
        main(["bytes", str(run), "--csv", str(tmp_path / "missing" / "x.csv")])


@pytest.mark.parametrize("option", [["--by", "round"], ["--links"]])
@pytest.mark.parametrize("rows", ["--csv", "--parquet"])
def test_options_of_tables_are_refused_with_rows(
    run: Path, tmp_path: Path, option: list[str], rows: str
) -> None:
    file = tmp_path / "rows"
    with pytest.raises(ConfigError, match=f"{option[0]}: is for tables"):
        main(["bytes", str(run), rows, str(file), *option])
    assert not file.exists()


def test_parquet_without_pyarrow_is_one_clear_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow.*pip install pyarrow.*--csv"):
        main(["bytes", str(run), "--parquet", str(tmp_path / "rows.parquet")])


def test_rows_as_parquet(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "rows.parquet"
    assert main(["bytes", str(run), "--parquet", str(file)]) == 0
    table = importlib.import_module("pyarrow.parquet").read_table(file)
    assert table.column_names == list(COLUMNS)
    assert [tuple(row.values()) for row in table.to_pylist()] == list(tidy_rows(RECORDS))


def test_a_run_under_way_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.create(tmp_path) as store:
        with pytest.raises(DataError, match="no round is finished yet"):
            main(["bytes", str(tmp_path)])
        store.write_round(replace(round_record(1), clients=[]), b"one")
        lines = printed(capsys, str(tmp_path))
        assert cells(lines, "Bytes by round", "total")[1] == "29.3 KiB"
        assert not any(line.startswith("Bytes:") for line in lines)


def test_what_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run.sqlite there"):
        main(["bytes", str(tmp_path)])
    Store.create(tmp_path).close()
    database = sqlite3.connect(tmp_path / "run.sqlite")
    database.execute("PRAGMA user_version = 3")
    database.close()
    with pytest.raises(DataError, match=r"schema version 3; .* use the release that wrote it"):
        main(["bytes", str(tmp_path)])
