"""Emulated boards with real control groups, namespaces and kills, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_profiles.emulation.abilities import find_abilities
from device_profiles.emulation.belongings import default_folder
from tests.e2e.processes import Finished, Workshop, read_report, select

ROUNDS = 5
# Two boards that stay, one that comes and goes, and two that are asked for more than their memory
# holds: the batch makes a step large.
FLEETS = f"""
name = "boards"
rounds = {ROUNDS}
[data]
dataset = "digits"
partition = "dirichlet(1.0)"
[model]
experts = 8
experts_per_device = 2
[train]
epochs = 2
batch = 2048
[round]
deadline_s = 60
quorum = 0.2
[emulation]
restart_s = 0.5
cpu = "integer"
[[fleet]]
profile = "pi-5"
link = "ethernet"
count = 2
memory_mib = 64
[[fleet]]
profile = "pi-4b"
link = "lte-m"
memory_mib = 64
availability = "trace(TRACE)"
[[fleet]]
profile = "pi-5"
link = "wifi"
count = 2
memory_mib = 32
experts_per_device = 8
"""
TRACE = "time,device,state\n3,device-02,off\n5,device-02,on\n9,device-02,off\n10,device-02,on\n"


def _cannot() -> str:
    """Why boards cannot be emulated by the kernel here, if they cannot."""
    abilities = find_abilities()
    lacking = {what for what in ("cpu", "memory", "tbf") if not getattr(abilities, what)}
    return "; ".join(f"{what}: {abilities.why.get(what)}" for what in sorted(lacking))


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    if why := _cannot():
        pytest.skip(why)


def remains() -> set[str]:
    """Everything of emulations that is on this host now: groups, namespaces, interfaces, notes."""
    found = {str(path) for path in Path("/sys/fs/cgroup").glob("**/flexmoe-*") if path.is_dir()}
    if shutil.which("ip"):
        for what in ("netns", "link"):
            listed = subprocess.run(["ip", "-o", what], capture_output=True, text=True).stdout
            found |= {f"{what} {line}" for line in listed.splitlines() if "flexmoe" in line}
        links = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True).stdout
        found |= {link["ifname"] for link in json.loads(links) if link["ifname"][:2] == "fm"}
    notes = default_folder()
    found |= {str(path) for path in (notes.iterdir() if notes.is_dir() else ())}
    return found | {str(path) for path in Path(tempfile.gettempdir()).glob("flexmoe-*")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """What the test leaves on this host is what it found there; other runs may go on meanwhile."""
    before = remains()
    yield
    assert remains() - before == set()


def told(out: Path, key: str) -> list[tuple[Any, ...]]:
    """What devices reported under `key`, with their names."""
    return select(out, f"SELECT client, value FROM telemetry WHERE key = '{key}'")


class Boards:
    """The run of `FLEETS`, once for all tests."""

    def __init__(self, out: Path, end: Finished, left: list[str], remained: set[str]) -> None:
        self.out, self.end, self.left, self.remained = out, end, left, remained
        self.report: dict[str, Any] = read_report(out)
        self.events = [event for r in self.report["rounds"] for event in r["events"]]


@pytest.fixture(scope="module")
def boards(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    folder = tmp_path_factory.mktemp("boards")
    (folder / "trace.csv").write_text(TRACE)
    file = folder / "boards.toml"
    file.write_text(FLEETS.replace("TRACE", "trace.csv"))
    workshop, before = Workshop(folder / "commands", "boards", cache), remains()
    end = workshop.call("run", file, out=folder / "out")
    assert end.code == 0, end.err + end.out
    yield Boards(folder / "out", end, workshop.left(), remains() - before)
    workshop.clear()


def test_every_round_is_complete_and_nothing_is_left(boards: Boards) -> None:
    assert boards.report["final"]["rounds"] == ROUNDS
    assert boards.left == [] and boards.remained == set()
    assert boards.end.err == ""


def test_each_device_ran_in_a_group_of_its_own_with_its_own_limit(boards: Boards) -> None:
    expected = {f"device-0{n}": 32.0 if n > 2 else 64.0 for n in range(5)}
    assert dict(told(boards.out, "memory_limit_mib")) == expected
    for client, peak_mib in told(boards.out, "memory_peak_mib"):
        assert 0 < peak_mib <= expected[client]
    moved = told(boards.out, "interface_up_bytes")
    assert len(moved) >= ROUNDS and all(count > 0 for _, count in moved)


def test_a_kill_for_memory_is_seen_as_such_named_and_lowers_what_a_device_is_given(
    boards: Boards,
) -> None:
    rows = select(
        boards.out,
        "SELECT client, round, status, capacity, detail FROM clients "
        "WHERE client IN ('device-03', 'device-04') ORDER BY client, round",
    )
    killed = [row for row in rows if row[2] == "killed"]
    assert {client for client, *_ in killed} == {"device-03", "device-04"}
    assert all("killed by its memory limit" in detail for *_, detail in killed)
    for client, number, _, capacity, _ in killed:
        later = [row for row in rows if row[0] == client and row[1] > number]
        assert all(row[3] < capacity for row in later)
        assert any(row[2] == "ok" for row in later)  # it came back, and took part
    for client in ("device-03", "device-04"):
        assert any(
            f"{client} was killed by its memory limit of 32 MiB, starts again" in event
            for event in boards.events
        )
    assert not any(row[2] == "late" for row in rows)


def test_a_device_that_leaves_and_comes_back_is_named_and_loses_nothing(boards: Boards) -> None:
    assert any("device-02 left" in event for event in boards.events)
    assert any("device-02 came" in event for event in boards.events)
    query = "SELECT DISTINCT capacity FROM clients WHERE client = 'device-02'"
    capacities = select(boards.out, query)
    assert capacities == [(2,)]


def test_the_report_says_what_was_asked_what_was_got_and_how(boards: Boards) -> None:
    emulation = boards.report["emulation"]
    assert emulation["not_enforced"] == [] and emulation["enforce"] == "strict"
    assert emulation["enforcement"]["link"] == "tc tbf"
    rows = {row["profile"]: row for row in emulation["fidelity"]}
    assert rows.keys() == {"pi-5+ethernet", "pi-4b+lte-m", "pi-5+wifi"}
    for row in rows.values():
        assert row["memory_got_mib"] == row["memory_asked_mib"]
        assert row["cpu_got"] > 0 and row["train_cpu_got"] > 0
    assert "Emulation: asked and got" in boards.end.out
    assert "Devices by board" in boards.end.out
    by_board = {(row["board"], row["link"]): row for row in boards.report["final"]["boards"]}
    assert by_board["pi-5", "wifi"]["kills"] >= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_whatever_ends_a_run_everything_of_it_is_removed(
    number: int, workshop: Workshop, tmp_path: Path, nothing_left: None
) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    file = tmp_path / "boards.toml"
    file.write_text(FLEETS.replace("TRACE", "trace.csv"))
    settings = ["--set", "rounds=1000", "--set", "train.batch=32", "--set", "emulation.check=false"]
    settings += ["--set", "emulation.cpu=phases"]
    run = workshop.start("run", file, *settings, out=tmp_path / "out")
    run.wait_for(lambda: run.rounds() >= 1)
    assert remains()
    os.kill(run.pid, number)
    run.process.wait(60)
    assert workshop.left(patience_s=30) == []  # the janitor too


def test_slow_links_run_faster_than_life_and_tell_lifes_seconds(
    workshop: Workshop, tmp_path: Path, nothing_left: None
) -> None:
    scale = 4.0
    file = tmp_path / "slow.toml"
    file.write_text(
        f"""
        name = "slow"
        rounds = 2
        [data]
        dataset = "digits"
        [emulation]
        time_scale = {scale}
        check = false
        [[fleet]]
        profile = "pi-zero-2w"
        link = "nb-iot"
        count = 2
        memory_mib = 64
        """
    )
    end = workshop.call("run", file, out=tmp_path / "out")
    assert end.code == 0, end.err
    report = read_report(tmp_path / "out")
    assert report["emulation"]["time_scale"] == scale
    # A device cannot have received its bytes in less of its life than its link takes for them.
    nb_iot_bps, burst_bytes = 26_000, 4_000
    fetched = dict(told(tmp_path / "out", "fetch_bytes")[:2])
    seconds = dict(told(tmp_path / "out", "fetch_s")[:2])
    for client in ("device-00", "device-01"):
        assert seconds[client] >= 8 * (fetched[client] - burst_bytes) / nb_iot_bps > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("fleet.0.profile=pi-6", "no such board; did you mean pi-5"),
        ("fleet.0.memory_mib=8", "under the"),
        ("emulation.time_scale=50", "largest time_scale that fits"),
        ("fleet.0.availability=trace(none.csv)", "none.csv"),
    ],
)
def test_what_cannot_be_emulated_is_one_line_before_anything_starts(
    change: str, says: str, workshop: Workshop, tmp_path: Path, nothing_left: None
) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    file = tmp_path / "boards.toml"
    file.write_text(FLEETS.replace("TRACE", "trace.csv"))
    end = workshop.call("run", file, "--set", change, out=tmp_path / "out")
    assert end.code == 2
    (line,) = end.err.splitlines()
    assert line.startswith("flexmoe: error: ") and says in line
    assert not (tmp_path / "out").exists()


def test_doctor_says_what_this_host_enforces_and_how(
    workshop: Workshop, nothing_left: None
) -> None:
    end = workshop.call("doctor", "--json")
    found = json.loads(end.out)["emulation"]
    assert found["cpu"] and found["memory"]
    said = workshop.call("doctor").out
    assert max(map(len, said.splitlines())) <= 100
    words = " ".join(said.split())
    for what, how, _ in found["lines"]:
        assert what in words and how.split()[0] in words
    assert ("emulated in user space" in words) is not found["netem"]
