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

from broker_server.books.agreement import Agreement, Comparison
from broker_server.books.byte_tables import MOST_DEVICES
from broker_server.figures import human_bytes, human_joules, human_seconds
from broker_server.record import BytesRow, RoundRecord
from broker_server.report import write_report
from broker_server.tables import render
from device_profiles.catalogue.link_class import cost
from device_profiles.catalogue.profiles import PUBLISHED_LINKS
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


def report(
    directory: Path, records: Sequence[RoundRecord], agreement: Agreement = (), **facts: Any
) -> Any:
    path = write_report(directory, records, {**FACTS, **facts}, agreement)
    assert path == directory / "report.json"
    assert [entry.name for entry in directory.iterdir()] == ["report.json"]
    return strictly(path.read_text(encoding="utf-8"))


def shown(records: Sequence[RoundRecord], width: int = 100, agreement: Agreement = ()) -> list[str]:
    paper = Console(file=io.StringIO(), width=width)
    with paper.capture() as capture:
        paper.print(*render(records, FACTS, agreement), sep="\n")
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
        assert entry["capacities"]["device-01"] == {
            "asked": 3,
            "k": 2,
            "limit": "memory",
            "why": "3 need 21 MiB, its limit of 64 MiB leaves 18",
        }
    assert written["final"]["global_accuracy"] == 0.75
    assert written["final"]["uplink_bytes"] == 2 * round_record(1).uplink_bytes
    assert written["final"]["bytes_by_kind"]["expert:1"] == {
        "uplink_bytes": 2 * 2 * 4058,
        "downlink_bytes": 2 * 2 * 4058,
        "payload_bytes": 2 * 2 * 2 * 4000,
        "messages": 2 * 2 * 2 * 2,
    }
    # A frame leaves the server once, and it acknowledges the devices' two packets.
    assert written["final"]["egress_bytes_by_kind"]["expert:1"] == 2 * (4050 + 2 * 8)
    assert written["final"]["egress_bytes"] == 2 * round_record(1).egress_bytes
    assert written["final"]["budgets"] == {}


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
    # A device moves 1000, 2000, ... 5000 payload bytes in 2 packets with 50 bytes around, and as
    # many acknowledgements, each way and round; its connection takes 70 bytes up and 30 down.
    up, down = 2 * (15_000 + 5 * 58 + 70), 2 * (15_000 + 5 * 58 + 30)
    payload = 2 * 2 * 15_000
    overhead = f"{100 * (up + down - payload) / (up + down):.2f} %"
    expected = [human_bytes(up), human_bytes(down), human_bytes(payload), overhead, "40"]
    assert row(lines, "Bytes by device", "device-00") == ["device-00", *expected]
    assert row(lines, "Bytes by kind", "expert 1")[:3] == ["expert 1", "15.9 KiB", "15.9 KiB"]
    total = row(lines, "Bytes by kind", "total")
    assert total[1:-1] == row(lines, "Bytes by device", "all devices")[1:]
    assert total[1:3] == [human_bytes(2 * up), human_bytes(2 * down)]
    egress = human_bytes(2 * round_record(1).egress_bytes)
    assert total[-1] == row(lines, "Bytes by device", "server's socket")[2] == egress
    head = "quickstart: after round 2"
    assert row(lines, head, "up")[1] == human_bytes(2 * up)
    assert row(lines, head, "server")[1] == f"{egress} sent"
    assert row(lines, head, "global")[1] == "0.7500"
    assert "Left out" not in lines
    assert "Dropped messages" not in lines


def test_budgets_have_a_table_where_there_are_any(tmp_path: Path) -> None:
    up, down = 15_000 + 5 * 58 + 70, 15_000 + 5 * 58 + 30
    first, second = round_record(1), round_record(2)
    more = BytesRow("device", "device-00", "down", "program", 50_000, 50_000, 0)
    tight = [replace(c, codec="int4+zip", budget_bytes=40_000) for c in first.clients[:1]]
    rounds = [
        replace(first, clients=[*tight, first.clients[1]]),
        replace(second, clients=[*tight, second.clients[1]], bytes=[*second.bytes, more]),
    ]
    lines = shown(rounds)
    title = "Bytes a round: asked and got"
    mean, most = up + down + 25_000, up + down + 50_000
    assert row(lines, title, "device-00")[1:] == [
        str(len(first.clients[0].experts)), "int4+zip", human_bytes(40_000), human_bytes(mean),
        human_bytes(most), "1 of 2", "round 2",
    ]  # fmt: skip
    assert title not in shown([first])
    assert report(tmp_path, rounds)["final"]["budgets"] == {
        "device-00": {
            "experts": len(first.clients[0].experts),
            "codec": "int4+zip",
            "asked_bytes": 40_000,
            "mean_bytes": mean,
            "most_bytes": most,
            "rounds": 2,
            "over": 1,
            "last_over": 2,
        }
    }


def test_rounds_without_a_report_that_counts_are_not_judged(tmp_path: Path) -> None:
    """Their bytes come with the account of a later report."""
    own = replace(client_round("device-00"), budget_bytes=40_000)
    late = replace(late_client("device-00"), budget_bytes=40_000)
    more = BytesRow("device", "device-00", "down", "gate", 50_000, 50_000, 0)
    double = [*round_record(2).bytes, more]
    rounds = [
        replace(round_record(1), clients=[late], bytes=double),
        replace(round_record(2), clients=[own], bytes=double),
        replace(round_record(3), clients=[own]),
    ]
    got = report(tmp_path, rounds)["final"]["budgets"]["device-00"]
    assert (got["rounds"], got["over"], got["last_over"]) == (1, 0, 0)
    assert got["mean_bytes"] == got["most_bytes"] == 30_000 + 10 * 58 + 100
    judged = report(tmp_path, [rounds[1]])["final"]["budgets"]["device-00"]
    assert (judged["rounds"], judged["over"]) == (1, 1)
    never = report(tmp_path, rounds[:1])["final"]["budgets"]["device-00"]
    assert (never["rounds"], never["mean_bytes"], never["most_bytes"]) == (0, None, None)
    cells = row(shown(rounds[:1]), "Bytes a round: asked and got", "device-00")
    assert cells[-4:] == ["-", "-", "0 of 0", "never"]


def test_rounds_without_work_cost_nothing_in_the_mean(tmp_path: Path) -> None:
    idle = replace(round_record(2), clients=[])
    links = report(tmp_path, [round_record(1), idle])["final"]["links"]
    assert links == report(tmp_path, [round_record(1)])["final"]["links"]


def test_a_mean_round_is_priced_on_each_link(tmp_path: Path) -> None:
    """device-01 took 60000 bytes more in round 1, and sat round 2 out."""
    up, down = 15_000 + 5 * 58 + 70, 15_000 + 5 * 58 + 30
    more = BytesRow("device", "device-01", "down", "program", 60_000, 60_000, 0)
    first = round_record(1)
    rounds = [
        replace(first, bytes=[*first.bytes, more]),
        replace(round_record(2, ("device-00",))),
    ]
    final = report(tmp_path, rounds)["final"]["links"]
    assert final["mean_round"] == {"up_bytes": up, "down_bytes": down + 30_000}
    worst = {"client": "device-01", "up_bytes": up, "down_bytes": down + 60_000}
    assert final["worst_round"] == worst
    expected = cost(PUBLISHED_LINKS["lora"], up, down + 60_000)
    assert final["costs"]["lora"]["worst"] == asdict(expected)
    assert list(final["costs"]) == list(PUBLISHED_LINKS)
    line = row(shown(rounds), "What a round's bytes cost a device on other links", "LoRa")
    assert line[3:] == [human_seconds(expected.seconds), human_joules(expected.joules)]
    assert "other links" not in "\n".join(shown([replace(rounds[0], clients=[])]))


GOOD = [
    Comparison("broker in", "broker received", "server and devices sent", 100_000, 100_099),
    Comparison("up, payload", "server received", "devices sent", 7, 7),
]
BAD = Comparison("down, frames", "devices received", "server planned", 1_000_000, 900_000)
NONE = Comparison("broker out", "broker sent", "server and devices received", why="no counters")


def test_one_line_says_that_counts_agree() -> None:
    rounds = [round_record(1)]
    assert shown(rounds, agreement=GOOD)[-1] == (
        "Bytes: all counts agree within 0.1 % (at most 0.099 % apart)"
    )
    assert shown(rounds, agreement=[*GOOD, NONE])[-2:] == [
        "Bytes: broker in, up, payload agree within 0.1 % (at most 0.099 % apart); not compared: "
        "broker out",
        "(no counters)",
    ]
    assert shown(rounds, agreement=[NONE])[-1] == "Bytes: not compared: broker out (no counters)"
    assert not any(line.startswith("Bytes:") for line in shown(rounds))


def test_counts_that_differ_are_a_table(tmp_path: Path) -> None:
    lines = shown([round_record(1)], agreement=[*GOOD, NONE, BAD])
    title = "Bytes counted twice"
    assert row(lines, title, "down, frames") == [
        "down, frames", "1,000,000", "900,000", "+100,000 (10.000 %)", "DIFFER",
    ]  # fmt: skip
    assert "down, frames: devices received / server planned" in lines
    assert row(lines, title, "up, payload")[-1] == "agree"
    assert row(lines, title, "broker out")[1:] == ["-", "-", "-", "not compared"]
    assert "broker out: not compared: no counters" in lines
    (*_, none, bad) = report(tmp_path, [round_record(1)], [*GOOD, NONE, BAD])["final"]["agreement"]
    assert (none["agrees"], none["difference"], none["why"]) == (None, None, "no counters")
    assert (bad["agrees"], bad["difference_bytes"], bad["difference"]) == (False, 100_000, 0.1)


def test_titles_stay_on_one_line() -> None:
    assert "Dropped messages" in shown([replace(round_record(1), drops={"late": 1})])


def test_kinds_come_in_the_order_of_a_round() -> None:
    record = round_record(1)
    kinds = ["control", "expert:10", "zebra", "gate", "expert:9", "program", "backbone"]
    bytes_ = [BytesRow("device", "device-00", "down", kind, 1, 2, 1) for kind in kinds]
    lines = shown([replace(record, bytes=bytes_)])
    table = lines[lines.index("Bytes by kind") + 2 :]
    assert [re.split(r" {2,}", line)[0] for line in table[:8]] == [
        "program", "backbone", "gate", "expert 9", "expert 10", "control", "zebra", "total",
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
    assert max(map(len, shown([round_record(1)], width=80))) <= 80
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00001, "0.01 ms"),
        (0.0426, "43 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.99, "10.0 s"),
        (119.7, "120 s"),
        (120, "2.0 min"),
        (4500, "75 min"),
        (44 * 3600, "44 h"),
        (72 * 3600, "3 days"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (0, "0 µJ"),
        (1.5e-6, "1.5 µJ"),
        (0.00042, "420 µJ"),
        (0.00346, "3.5 mJ"),
        (0.25, "250 mJ"),
        (0.9996, "1.0 J"),
        (1234, "1234 J"),
    ],
)
def test_energies_for_people(joules: float, text: str) -> None:
    assert human_joules(joules) == text
