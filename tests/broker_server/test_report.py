"""`report.json` and the closing tables, against sums done by hand."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from broker_server.record import RoundRecord
from broker_server.report import write_report
from broker_server.tables import MOST_DEVICES, human_bytes, render
from edge_runtime.errors import DataError
from tests.broker_server.sample_records import (
    client_round,
    device,
    late_client,
    round_record,
    troubled_record,
)

FACTS = {"name": "quickstart", "seed": 7, "rounds": 30, "policy": "flex_moe"}
ISSUE_KEYS = [
    "round",
    "global_accuracy",
    "device_accuracy",
    "loss",
    "uplink_bytes",
    "downlink_bytes",
    "load_cv",
    "usage_cv",
    "assign_s",
    "train_s",
    "round_s",
]


def strictly(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def report(directory: Path, records: Sequence[RoundRecord], **facts: Any) -> Any:
    path = write_report(directory, records, {**FACTS, **facts})
    assert path == directory / "report.json"
    assert [entry.name for entry in directory.iterdir()] == ["report.json"]
    return strictly(path.read_text(encoding="utf-8"))


def shown(records: Sequence[RoundRecord], width: int = 100) -> list[str]:
    paper = Console(file=io.StringIO(), width=width)
    with paper.capture() as capture:
        paper.print(*render(records, FACTS), sep="\n")
    return [line.rstrip() for line in capture.get().splitlines()]


def row(lines: Sequence[str], title: str, label: str) -> list[str]:
    """The cells of the row `label` of the table `title`; cells are at least two blanks apart."""
    below = lines[lines.index(title) :]
    line = next(line for line in below if line.startswith(label))
    return re.split(r" {2,}", line)


def test_the_report_has_the_rounds_with_the_keys_that_were_promised(tmp_path: Path) -> None:
    records = [round_record(1), round_record(2)]
    written = report(tmp_path, records)
    assert (written["name"], written["seed"], written["rounds_planned"]) == ("quickstart", 7, 30)
    assert written["policy"] == "flex_moe"
    for entry, record in zip(written["rounds"], records, strict=True):
        assert [key for key in entry if key in ISSUE_KEYS] == ISSUE_KEYS
        for key in (*ISSUE_KEYS, "routed_cv", "gap", "violated_samples", "least_violation"):
            assert entry[key] == getattr(record, key)
        assert entry["assignments"] == {"device-00": [0, 1], "device-01": [0, 1]}
    assert written["final"]["global_accuracy"] == 0.75
    assert written["final"]["uplink_bytes"] == 2 * round_record(1).uplink_bytes
    assert written["final"]["bytes_by_kind"]["expert:1"] == {
        "uplink_bytes": 2 * 2 * 4050,
        "downlink_bytes": 2 * 2 * 4050,
        "payload_bytes": 2 * 2 * 2 * 4000,
        "messages": 2 * 2 * 2 * 2,
    }


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "gap": math.inf,
        "least_violation": math.nan,
        "load_cv": np.float32("nan"),
        "load": [np.int64(5), np.int64(6)],
    }
    written = report(
        tmp_path,
        [round_record(1), troubled_record(2), replace(round_record(3), **odd)],
        seed=np.int64(9),
    )
    assert written["seed"] == 9
    assert written["rounds"][1]["global_accuracy"] is None
    assert written["rounds"][1]["left_out"] == {"device-01": "late"}
    assert written["rounds"][1]["drops"] == {"malformed": 2, "stale": 1}
    for key in ("gap", "least_violation", "load_cv"):
        assert written["rounds"][2][key] is None
    assert written["rounds"][2]["load"] == [5, 6]
    assert written["final"]["left_out"] == {"device-01": {"late": 1}}


def test_the_head_says_what_the_run_ran_on(tmp_path: Path) -> None:
    newer = replace(device("device-01"), machine="riscv64")
    written = report(
        tmp_path,
        [
            replace(round_record(1), devices=[device("device-01"), device("device-00")]),
            replace(round_record(2), devices=[newer]),
        ],
        devices=3,
    )
    assert written["devices_planned"] == 3
    assert written["devices"] == [asdict(device("device-00")), asdict(newer)]
    assert "devices" not in written["rounds"][0]
    assert "devices" not in report(tmp_path, [round_record(1)], devices=3)


def test_the_fleets_memory_and_cpu_time_are_shown(tmp_path: Path) -> None:
    """Each device counts once, with its highest peak."""
    first = replace(round_record(1), devices=[device("device-00"), device("device-01")])
    bigger = replace(client_round("device-01"), telemetry={"cpu_s": 2.25, "peak_rss_mib": 500.5})
    odd = replace(round_record(2), clients=[bigger, late_client("device-00")])
    lines = shown([first, odd])
    assert row(lines, "quickstart: after round 2", "memory")[1:] == [
        "500.5 MiB a device at most, 445.4 on average, 890.8 in all",
        "(2 executorch)",
    ]
    assert row(lines, "quickstart: after round 2", "CPU")[1] == "5.2 s, all devices together"
    closing = report(tmp_path, [first, odd])["final"]
    assert (closing["device_peak_rss_mib"], closing["device_mean_rss_mib"]) == (500.5, 445.375)
    assert (closing["fleet_rss_mib"], closing["device_cpu_s"]) == (890.75, 5.25)
    assert closing["memory_by_trainer"] == {
        "executorch": {
            "devices": 2,
            "largest_mib": 500.5,
            "mean_mib": 445.375,
            "sum_mib": 890.75,
        }
    }


def test_memory_is_told_by_trainer(tmp_path: Path) -> None:
    described = [replace(device("device-00"), trainer="native"), device("device-01")]
    small = replace(client_round("device-00"), telemetry={"cpu_s": 1.0, "peak_rss_mib": 40.0})
    mixed = replace(round_record(1), devices=described, clients=[small, client_round("device-01")])
    lines = [line for line in shown([mixed]) if line.startswith("memory")]
    assert [line.split("(")[1] for line in lines] == [
        "1 executorch)",
        "1 native)",
    ]
    assert "40.0 MiB a device" in lines[1]
    sums = report(tmp_path, [mixed])["final"]["memory_by_trainer"]
    assert {name: share["sum_mib"] for name, share in sums.items()} == {
        "executorch": 390.25,
        "native": 40.0,
    }


def test_devices_that_tell_nothing_take_no_line(tmp_path: Path) -> None:
    silent = replace(round_record(1), clients=[late_client("device-00")])
    assert not any(line.startswith(("memory", "CPU")) for line in shown([silent]))
    closing = report(tmp_path, [silent])["final"]
    assert closing["device_peak_rss_mib"] is closing["fleet_rss_mib"] is None
    assert closing["memory_by_trainer"] == {}


def test_a_report_can_be_written_again_and_without_rounds(tmp_path: Path) -> None:
    assert report(tmp_path, [round_record(1)])["final"]["rounds"] == 1
    empty = report(tmp_path, [])
    assert (empty["final"], empty["rounds"]) == ({"rounds": 0}, [])
    with pytest.raises(DataError, match="cannot be written"):
        write_report(tmp_path / "missing", [], FACTS)


def test_the_tables_add_up() -> None:
    lines = shown([round_record(1), round_record(2)])
    # A device moves 1000, 2000, ... 5000 payload bytes and 5 x 50 more, each way and round.
    each_way, payload = 2 * (15_000 + 250), 2 * 2 * 15_000
    overhead = f"{100 * (2 * each_way - payload) / (2 * each_way):.2f} %"
    expected = [human_bytes(each_way), human_bytes(each_way), human_bytes(payload), overhead, "40"]
    assert row(lines, "Bytes by device", "device-00") == ["device-00", *expected]
    assert row(lines, "Bytes by device", "server's") == [
        "server's connection", "180 B", "0 B", "0 B", "100.00 %", "0",
    ]  # fmt: skip
    assert row(lines, "Bytes by kind", "expert 1")[:3] == ["expert 1", "15.8 KiB", "15.8 KiB"]
    total = row(lines, "Bytes by kind", "total")
    assert total == row(lines, "Bytes by device", "total")
    assert total[1:3] == [human_bytes(4 * 15_250 + 180), human_bytes(4 * 15_250)]
    assert row(lines, "quickstart: after round 2", "global")[1] == "0.7500"
    assert "Left out" not in lines
    assert "Dropped messages" not in lines


def test_kinds_come_in_the_order_of_a_round() -> None:
    record = round_record(1)
    kinds = ["message", "expert:10", "zebra", "gate", "expert:9", "program", "backbone"]
    bytes_ = [replace(record.bytes[-1], kind=kind) for kind in kinds]
    lines = shown([replace(record, bytes=bytes_)])
    table = lines[lines.index("Bytes by kind") + 2 :]
    assert [re.split(r" {2,}", line)[0] for line in table[:8]] == [
        "program", "backbone", "gate", "expert 9", "expert 10", "message", "zebra", "total",
    ]  # fmt: skip


def test_what_went_wrong_is_listed() -> None:
    gone = replace(late_client("device-01"), status="gone", detail="[red]power[/red] lost")
    rounds = [troubled_record(number) for number in (2, 3, 4, 7)]
    rounds.append(replace(round_record(8), clients=[gone]))
    lines = shown(rounds)
    detail = "no answer by the deadline of 120 s"
    assert row(lines, "Left out", "device-01  late") == ["device-01", "late", "2-4, 7", detail]
    assert row(lines, "Left out", "device-01  gone") == [
        "device-01", "gone", "8", "[red]power[/red] lost",
    ]  # fmt: skip
    assert row(lines, "Dropped messages", "malformed") == ["malformed", "8"]
    assert "missed in 4 of 5 rounds, by 480 samples" in "\n".join(lines)


def test_the_tables_fit_100_columns_and_sum_up_a_crowd() -> None:
    names = tuple(f"{'a-very-long-name-of-a-device-' * 2}{number:04d}" for number in range(60))
    record = round_record(1, names)
    bytes_ = [
        replace(r, payload_bytes=r.payload_bytes + 2**40, wire_bytes=r.wire_bytes + 2**40)
        for r in record.bytes
    ]
    late = replace(late_client(names[0]), detail="x" * 300)
    lines = shown([replace(record, bytes=bytes_, clients=[late])], width=100)
    assert max(map(len, lines)) <= 100
    table = lines[lines.index("Bytes by device") : lines.index("Bytes by kind")]
    assert f"{60 - MOST_DEVICES} others" in "\n".join(table)
    assert shown([])[0] == "No round was finished."


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (12 * 2**20, "12.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text
