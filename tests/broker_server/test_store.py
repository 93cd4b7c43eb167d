"""The store: what is written reads back equal, whole rounds only, and clear words for bad files."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_server.books.agreement import Comparison
from broker_server.capacity import Limit
from broker_server.record import BytesRow, ClientRound, Device, RoundRecord, Side, printable
from broker_server.store import Store
from edge_runtime.errors import ConfigError, DataError
from edge_runtime.protocol.ledger import Direction
from tests.broker_server.sample_records import (
    client_round,
    device,
    late_client,
    round_record,
    troubled_record,
)


def nan_as_none(value: Any) -> Any:
    """`value` with None for NaN, so that == compares what was meant."""
    if isinstance(value, dict):
        return {key: nan_as_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_as_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def plain(records: list[RoundRecord]) -> list[Any]:
    return [nan_as_none(asdict(record)) for record in records]


def test_rounds_read_back_equal_after_reopening(tmp_path: Path) -> None:
    written = [round_record(1), troubled_record(2), round_record(3)]
    with Store.create(tmp_path / "runs" / "a") as store:
        for record in written:
            store.write_round(record)
        assert plain(store.records()) == plain(written)
    with Store.open(tmp_path / "runs" / "a") as store:
        assert plain(store.records()) == plain(written)


def test_a_run_is_described_by_what_was_said_last(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        store.describe("rounds = 2\n", {"rounds": 2, "name": "a", "broker": "amqtt"})
        store.describe("rounds = 60\n", {"rounds": 60, "name": "a"})
    with Store.open(tmp_path) as store:
        assert list(store.facts().items()) == [("rounds", 60), ("name", "a")]
    database = sqlite3.connect(tmp_path / "run.sqlite")
    said = database.execute("SELECT value FROM run WHERE key = 'experiment'").fetchall()
    database.close()
    assert said == [("rounds = 60\n",)]


NUMBERS = st.floats(allow_infinity=False, width=64)
COUNTS = st.integers(0, 2**62)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@st.composite
def client_rounds(draw: st.DrawFn, name: str) -> ClientRound:
    experts = sorted(draw(st.sets(st.integers(0, 63), max_size=4)))
    k = len(experts)
    answered, scored = draw(st.booleans()), draw(st.booleans())
    counts = st.lists(COUNTS, min_size=k, max_size=k)
    return ClientRound(
        client=name,
        experts=experts,
        usage=draw(counts) if answered else [],
        loss=draw(st.lists(NUMBERS, min_size=k, max_size=k)) if answered else [],
        hits=draw(counts) if answered else [],
        quality=draw(st.lists(st.floats(0, 9), min_size=k, max_size=k)) if scored else [],
        samples=draw(COUNTS),
        device_accuracy=draw(NUMBERS),
        telemetry=draw(st.dictionaries(WORDS, NUMBERS, max_size=3)),
        status=draw(st.sampled_from(["ok", "late", "failed", "killed", "gone", "rejected"])),
        detail=draw(WORDS),
        codec=draw(WORDS),
        budget_bytes=draw(COUNTS),
        asked=draw(COUNTS),
        capacity=draw(COUNTS),
        limit=draw(st.sampled_from(get_args(Limit))),
        why=draw(WORDS),
    )


@st.composite
def devices(draw: st.DrawFn, name: str) -> Device:
    samples, test_samples, memory = draw(COUNTS), draw(COUNTS), draw(COUNTS)
    cores = draw(st.floats(allow_infinity=False, allow_nan=False))
    trainer, machine, version, board, link = (draw(WORDS) for _ in range(5))
    return Device(
        name, samples, test_samples, trainer, machine, cores, memory, version, board, link
    )


@st.composite
def round_records(draw: st.DrawFn) -> RoundRecord:
    experts = draw(st.integers(0, 5))
    names = draw(st.lists(WORDS, max_size=3, unique=True))
    ways: st.SearchStrategy[Direction] = st.sampled_from(["up", "down"])
    sides: st.SearchStrategy[Side] = st.sampled_from(["server", "device"])
    keys = draw(st.lists(st.tuples(sides, WORDS, ways, WORDS), max_size=4, unique=True))
    figures: dict[str, Any] = {
        key: draw(NUMBERS) for key in ("global_accuracy", "loss", "gap", "round_s")
    }
    return replace(
        round_record(draw(st.integers(1, 2**31))),
        **figures,
        uplink_bytes=draw(COUNTS),
        solver=draw(WORDS),
        load=draw(st.lists(COUNTS, min_size=experts, max_size=experts)),
        usage=draw(st.lists(COUNTS, min_size=experts, max_size=experts)),
        clients=[draw(client_rounds(name)) for name in names],
        bytes=[BytesRow(*key, draw(COUNTS), draw(COUNTS), draw(COUNTS)) for key in keys],
        drops=draw(st.dictionaries(WORDS, COUNTS, max_size=3)),
        events=draw(st.lists(WORDS, max_size=3)),
        devices=[draw(devices(name)) for name in names],
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=round_records())
def test_any_round_reads_back_equal(
    record: RoundRecord, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Store.create(tmp_path_factory.mktemp("run")) as store:
        store.write_round(record)
        assert plain(store.records()) == plain([record])


def test_numbers_of_numpy_are_stored_as_numbers(tmp_path: Path) -> None:
    numpys: dict[str, Any] = {
        "loss": np.float32(0.5),
        "load_cv": np.float64(0.25),
        "gap": np.float32("nan"),
        "load": [np.int64(3), np.int64(4)],
    }
    with Store.create(tmp_path) as store:
        store.write_round(replace(round_record(1), **numpys))
        (record,) = store.records()
    assert (record.loss, record.load_cv, record.load) == (0.5, 0.25, [3, 4])
    assert math.isnan(record.gap)


def test_the_tables_can_be_queried(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        store.write_round(round_record(1))
        store.write_round(troubled_record(2))
    database = sqlite3.connect(tmp_path / "run.sqlite")
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    query = "SELECT round, sum(wire_bytes) FROM bytes WHERE direction = 'up' AND side = 'device' "
    assert dict(database.execute(query + "GROUP BY round")) == {
        1: round_record(1).uplink_bytes,
        2: troubled_record(2).uplink_bytes,
    }
    assert database.execute(
        "SELECT client, expert, usage, quality FROM assignments WHERE round = 2"
    ).fetchall() == [
        ("device-00", 0, 62, 0.6),
        ("device-00", 1, 38, 0.78),
        ("device-01", 0, None, 0.6),
        ("device-01", 1, None, 0.78),
    ]
    assert database.execute("SELECT loss FROM rounds WHERE round = 2").fetchone() == (None,)
    database.close()


def test_a_device_is_kept_as_it_last_described_itself(tmp_path: Path) -> None:
    old = [device("device-00"), device("device-01")]
    moved = replace(old[1], machine="riscv64", memory_available_bytes=2**40)
    with Store.create(tmp_path) as store:
        store.write_round(replace(round_record(1), devices=old))
        store.write_round(replace(round_record(2), devices=[moved]))
        store.write_round(round_record(3))
        assert [record.devices for record in store.records()] == [old[:1], [moved], []]
    database = sqlite3.connect(tmp_path / "run.sqlite")
    found = database.execute("SELECT client, machine, cores, trainer FROM devices").fetchall()
    database.close()
    assert found == [
        ("device-00", "aarch64", 4.0, "executorch"),
        ("device-01", "riscv64", 4.0, "executorch"),
    ]


HOSTILE = "too\nhot\x1b[2J\x9b1m\r\u202e\ud800\0 é"


def test_what_devices_write_is_stored_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    failed = replace(late_client("device-00"), detail=HOSTILE)
    odd = replace(device("device-00"), machine=HOSTILE, trainer="a\nb", version="\x1b]0;x\x07")
    with Store.create(tmp_path) as store:
        written = replace(round_record(1), clients=[failed], events=[HOSTILE], devices=[odd])
        store.write_round(written)
        (record,) = store.records()
    clean = "too hot�[2J�1m ��� é"
    assert (record.clients[0].detail, record.events) == (clean, [clean])
    assert (record.devices[0].machine, record.devices[0].trainer) == (clean, "a b")
    assert record.devices[0].version == "�]0;x�"


@given(st.text(st.characters()))
def test_printable_is_one_line_and_keeps_what_is_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert [c for c in shown if c not in " �"] == [
        c for c in text if c.isprintable() and c not in " �"
    ]


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        assert store.load_checkpoint() is None
        store.write_round(round_record(1), b"one")
        store.write_round(round_record(2), b"two\0")
        store.write_round(round_record(3))
        assert store.load_checkpoint() == (2, b"two\0")
    database = sqlite3.connect(tmp_path / "run.sqlite")
    assert database.execute("SELECT count(*) FROM checkpoint").fetchone() == (1,)
    database.close()


ENDED = [
    Comparison("broker in", "broker received", "server and devices sent", why="no counters"),
    Comparison("up, payload", "server received", "devices sent", 2**40, 7),
]


def test_the_end_of_a_run_adds_to_the_last_round_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    more = BytesRow("device", "device-09", "up", "control", 5, 9, 1)
    last = round_record(2)
    closed = replace(
        last,
        uplink_bytes=last.uplink_bytes + 9,
        egress_bytes=0,
        bytes=sorted([*last.bytes, more]),
        drops={"stale": 3},
    )
    with Store.create(tmp_path) as store:
        store.write_round(round_record(1), b"one")
        store.write_round(last, b"two")
        assert list(store.agreement()) == []
        store.write_final(closed, ENDED)
        store.write_final(closed, ENDED)
    with Store.open(tmp_path) as store:
        assert plain(store.records()) == plain([round_record(1), closed])
        assert store.load_checkpoint() == (2, b"two")
        assert list(store.agreement()) == ENDED


def test_what_was_shown_of_a_round_is_without_the_end_of_the_run(tmp_path: Path) -> None:
    """Of each part of a run that was interrupted and went on."""
    shown = [round_record(1), troubled_record(2), round_record(3)]
    drops = [{"stale": 4}, {"malformed": 2, "stale": 3, "oversized": 1}, {}]
    closed = [
        replace(
            record, downlink_bytes=record.downlink_bytes + 70 * n, egress_bytes=5, drops=dropped
        )
        for n, (record, dropped) in enumerate(zip(shown, drops, strict=True))
    ]
    with Store.create(tmp_path) as store:
        for number in (0, 1):
            store.write_round(shown[number])
            store.write_final(closed[number], [])
            store.write_final(closed[number], ENDED)
        store.write_round(shown[2])
        assert store.rounds() == 3
        assert plain(store.records()) == plain([*closed[:2], shown[2]])
        assert plain(store.finished(store.records())) == plain(shown)
        store.write_round(shown[1])
        assert plain(store.finished(store.records())) == plain(shown[:2])


def test_how_counts_agreed_is_of_the_run_that_ended(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        assert list(store.agreement()) == []
        store.write_round(round_record(1), b"one")
        store.write_final(round_record(1), ENDED)
        store.write_round(round_record(2), b"two")  # it was resumed, and is under way
        assert list(store.agreement()) == []
        store.write_final(round_record(2), ENDED[:1])
        assert list(store.agreement()) == ENDED[:1]
        store.write_round(round_record(2))
        assert list(store.agreement()) == []


def test_a_round_written_again_replaces_it_and_what_came_after(tmp_path: Path) -> None:
    again = replace(troubled_record(2), events=["this time"])
    with Store.create(tmp_path) as store:
        store.write_round(round_record(1), b"one")
        store.write_round(round_record(2))
        store.write_round(round_record(3))
        store.write_round(again)
        assert plain(store.records()) == plain([round_record(1), again])
        assert store.load_checkpoint() == (1, b"one")


def test_a_round_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    twice = replace(round_record(2), clients=[client_round("same"), client_round("same")])
    with Store.create(tmp_path) as store:
        store.write_round(round_record(1), b"one")
        with pytest.raises(sqlite3.IntegrityError):
            store.write_round(twice, b"two")
        assert plain(store.records()) == plain([round_record(1)])
        assert store.load_checkpoint() == (1, b"one")
        store.write_round(round_record(2), b"two")
        assert store.load_checkpoint() == (2, b"two")


def test_a_killed_writer_leaves_whole_rounds(tmp_path: Path) -> None:
    writer = (
        "import sys; from pathlib import Path\n"
        "from broker_server.store import Store\n"
        "from tests.broker_server.sample_records import round_record\n"
        "store = Store.create(Path(sys.argv[1]))\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    store.write_round(round_record(number), b'%d' % number)\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", writer, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    with Store.open(tmp_path) as store:
        records, checkpoint = store.records(), store.load_checkpoint()
    stored = len(records)
    assert stored in (said[-1], said[-1] + 1)
    assert plain(records) == plain([round_record(number) for number in range(1, stored + 1)])
    assert checkpoint == (stored, b"%d" % stored)


def test_others_read_while_a_run_writes(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store, Store.open(tmp_path) as other:
        assert other.records() == []
        store.write_round(round_record(1))
        assert plain(other.records()) == plain([round_record(1)])


def test_a_directory_that_has_a_run_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with Store.create(tmp_path / "run") as store:
        store.write_round(round_record(1))
    with pytest.raises(ConfigError, match=r"holds a run already; .* --resume.* --out"):
        Store.create(tmp_path / "run")
    with Store.open(tmp_path / "run") as store:
        assert len(store.records()) == 1
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"not a directory; .* --out"):
        Store.create(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot be written: .* --out"):
        Store.create(tmp_path / "file" / "below")


def test_a_run_that_never_finished_a_round_gives_its_directory_back(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        store.describe("seed = 1", {"seed": 1})
    with Store.create(tmp_path) as store:
        store.describe("seed = 2", {"seed": 2})
        store.write_round(round_record(1), b"one")
    with Store.open(tmp_path) as store:
        assert (store.facts(), store.load_checkpoint()) == ({"seed": 2}, (1, b"one"))
    database = sqlite3.connect(tmp_path / "run.sqlite")
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_run_that_has_just_begun_is_not_taken_over(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        with pytest.raises(ConfigError, match=r"another run has just begun there .* --out"):
            Store.create(tmp_path)
        store.write_round(round_record(1))
        assert plain(store.records()) == plain([round_record(1)])


def test_what_is_not_our_store_is_not_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE rounds (round)")
    database.close()
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"not the store of a flexmoe run; .* --out"):
        Store.create(tmp_path)
    assert file.read_bytes() == before


def complaint(directory: Path) -> str:
    with pytest.raises(DataError) as caught, Store.open(directory) as store:
        store.records()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(directory) in message
    return message


def test_a_missing_or_foreign_store_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    assert "no run.sqlite there" in complaint(tmp_path)
    assert not file.exists()
    file.touch()
    assert "not the store of a flexmoe run" in complaint(tmp_path)
    file.write_bytes(b"not a database, but long enough to be read as the header of one" * 40)
    assert "cannot be read" in complaint(tmp_path)
    file.unlink()
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE rounds (round)")
    database.close()
    assert "not the store of a flexmoe run" in complaint(tmp_path)
    file.unlink()
    Store.create(tmp_path).close()
    database = sqlite3.connect(file)
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "schema version 99" in complaint(tmp_path)


def test_a_damaged_store_is_one_clear_line(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        for number in range(1, 20):
            store.write_round(round_record(number))
    file = tmp_path / "run.sqlite"
    damaged = bytearray(file.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    file.write_bytes(damaged)
    assert "cannot be read" in complaint(tmp_path)


def test_a_client_round_has_as_many_figures_as_experts() -> None:
    with pytest.raises(ValueError, match="expected 2 of each, or none"):
        replace(client_round("a"), usage=[1])
    with pytest.raises(ValueError, match="expected 2 of each, or none"):
        replace(client_round("a"), hits=[])
    with pytest.raises(ValueError, match="quality: expected 2 numbers, or none"):
        replace(client_round("a"), quality=[0.5, math.nan])
    assert late_client("a").usage == []
