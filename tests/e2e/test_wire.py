"""What travels in whole runs: programs once in a fleet's life, and the same on every broker."""

from __future__ import annotations

import csv
import io
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_broker
from tests.e2e.brokers import Mosquitto
from tests.e2e.conftest import PAIR, PAIR_ROUNDS, QuietRun
from tests.e2e.processes import (
    Run,
    Workshop,
    established,
    learned,
    read_report,
    select,
    settings,
)

SHORT: dict[str, object] = {**PAIR, "rounds": 2}


# --- the tables --------------------------------------------------------------------------------


def test_the_csv_adds_up_to_the_report(
    workshop: Workshop, quiet_run: QuietRun, broker_kind: str
) -> None:
    run = quiet_run(broker_kind)
    end = workshop.call("bytes", run.directory, "--csv", "-")
    assert (end.code, end.err) == (0, "")
    sums: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for row in csv.DictReader(io.StringIO(end.out)):
        wire_bytes = int(row["wire_bytes"])
        assert wire_bytes == int(row["payload_bytes"]) + int(row["mqtt_bytes"])
        assert row["expert"] == row["kind"].partition(":")[2]
        sums[row["side"], row["direction"]] += wire_bytes
        if (row["side"], row["direction"]) == ("server", "down"):
            kinds[row["kind"]] += wire_bytes
    final = run.report["final"]
    assert sums == {
        ("device", "up"): final["uplink_bytes"],
        ("device", "down"): final["downlink_bytes"],
        ("server", "down"): final["egress_bytes"],
        ("server", "up"): final["ingress_bytes"],
    }
    assert kinds == final["egress_bytes_by_kind"]


# --- programs ----------------------------------------------------------------------------------


def program_bytes(directory: Path) -> dict[tuple[str, str], int]:
    """Payload bytes of programs by side and client."""
    query = """SELECT side, client, sum(payload_bytes) FROM bytes
        WHERE kind = 'program' AND payload_bytes > 0 GROUP BY side, client"""
    return {(side, client): size for side, client, size in select(directory, query)}


def run_short(workshop: Workshop, experiment: Path, out: Path) -> Path:
    end = workshop.call("run", experiment, *settings(SHORT), out=out)
    assert (end.code, end.err) == (0, "")
    assert read_report(out)["final"]["drops"] == {}
    return out


def test_programs_travel_once_in_a_fleets_life(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    workshop.cache = tmp_path / "programs"
    first = run_short(workshop, experiment, tmp_path / "first")
    sent = program_bytes(first)
    assert set(sent) == {("server", "*"), ("device", "device-00"), ("device", "device-01")}
    assert len(set(sent.values())) == 1  # once for both

    second = run_short(workshop, experiment, tmp_path / "second")
    assert program_bytes(second) == {}

    kept = workshop.cache / "devices" / "default" / "device-00"
    for damaged in (path for path in kept.iterdir() if path.is_file()):
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    third = run_short(workshop, experiment, tmp_path / "third")
    size = sent["server", "*"]
    assert program_bytes(third) == {("server", "*"): size, ("device", "device-00"): size}
    assert learned(read_report(first)) == learned(read_report(second))
    assert learned(read_report(first)) == learned(read_report(third))


# --- brokers -----------------------------------------------------------------------------------


@pytest.fixture
def by_hand(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mosquitto]:
    require_broker("mosquitto")
    broker = Mosquitto(tmp_path, *getattr(request, "param", ()))
    yield broker
    broker.kill()


@pytest.mark.parametrize(
    ("by_hand", "retains"),
    [((), True), (("retain_available false",), False)],
    ids=["retains", "does not retain"],
    indirect=["by_hand"],
)
def test_a_broker_that_keeps_nothing_gives_the_same(
    by_hand: Mosquitto,
    retains: bool,
    workshop: Workshop,
    experiment: Path,
    pair_run: Run,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    changes = {**PAIR, "broker": by_hand.address}
    end = workshop.call("run", experiment, *settings(changes), out=out)
    assert (end.code, end.err) == (0, "")
    report = read_report(out)
    assert learned(report) == learned(pair_run.report)
    assert report["final"]["drops"] == {}
    assert all(comparison["agrees"] for comparison in report["final"]["agreement"])
    # Without retained chunks the devices ask for each: that is messages, not frames.
    asked = """SELECT sum(messages) FROM bytes WHERE side = 'device' AND kind = 'control'
        AND direction = 'up'"""
    more = select(out, asked)[0][0] - pair_run.select(asked)[0][0]
    assert (more > 5) != retains


def test_a_server_that_is_killed_goes_on_with_the_devices_that_are_there(
    by_hand: Mosquitto, workshop: Workshop, experiment: Path, pair_run: Run, tmp_path: Path
) -> None:
    """The round that was under way begins again; devices that did its work say so again."""
    shards, out = tmp_path / "shards", tmp_path / "out"
    assert workshop.call("data", experiment, *settings(PAIR), out=shards).code == 0
    command = ("server", experiment, *settings(PAIR), "--broker", by_hand.address)
    killed = workshop.start(*command, out=out)
    devices = []
    for name in ("device-00", "device-01"):
        options = ("--broker", by_hand.address, "--id", name, "--data", shards / f"{name}.npz")
        devices.append(workshop.start("device", *options))
    killed.wait_for(lambda: killed.rounds() >= 3)
    killed.signal(signal.SIGKILL)
    assert killed.finish().code == -signal.SIGKILL
    assert killed.rounds() < PAIR_ROUNDS
    assert all(established(device.pid, by_hand.port) for device in devices)
    again = workshop.call(*command, "--resume", out=out)
    assert (again.code, again.err) == (0, "")
    for device in devices:
        assert device.finish().code == 0
    report = read_report(out)
    assert learned(report) == learned(pair_run.report)
    assert report["final"]["left_out"] == {}
