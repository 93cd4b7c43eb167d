"""The parts by hand, as on several machines: broker, data, server, and devices at any time."""

from __future__ import annotations

import importlib.metadata
import signal
import socket
from pathlib import Path

from device_profiles.datasets import load
from edge_runtime.shard import Shard
from tests.e2e.conftest import PAIR
from tests.e2e.processes import (
    Run,
    Workshop,
    established,
    free_port,
    learned,
    read_report,
    settings,
)


def test_a_run_by_hand_is_the_run(
    workshop: Workshop, experiment: Path, pair_run: Run, tmp_path: Path
) -> None:
    shards, out, port = tmp_path / "shards", tmp_path / "out", free_port()
    address = f"127.0.0.1:{port}"
    made = workshop.call("data", experiment, "--set", "data.devices=2", out=shards)
    assert (made.code, made.err) == (0, "")
    assert [line.partition(":")[0] for line in made.out.splitlines()] == [
        str(shards / f"device-{i:02d}.npz") for i in range(2)
    ]

    server_command = ("server", experiment, *settings(PAIR), "--broker", address)
    # Too early: it says so, and what it leaves does not stand in the way of the next try.
    too_early = workshop.call(*server_command, out=out)
    assert too_early.code == 2
    assert "flexmoe broker" in too_early.err

    broker = workshop.start("broker", "--port", port)
    broker.wait_for(lambda: str(port) in broker.output and accepts(port))
    early = workshop.start(*device(0, address, shards))
    early.wait_for(lambda: established(early.pid, port))
    server = workshop.start(*server_command, out=out)
    server.wait_for(lambda: f"broker {address}" in server.output)
    server.wait_for(lambda: established(server.pid, port))
    late = workshop.start(*device(1, address, shards))

    end = server.finish()
    assert (end.code, end.err) == (0, "")
    for name, process in (("device-00", early), ("device-01", late)):
        goodbye = process.finish()
        assert (goodbye.code, goodbye.err) == (0, "")
        assert goodbye.out == f"{name}: the run is complete\n"
    broker.signal(signal.SIGTERM)
    closed = broker.finish()
    assert (closed.code, closed.err) == (0, "")
    assert workshop.left() == []
    assert learned(read_report(out)) == learned(pair_run.report)


def test_the_shards_hold_the_training_data_once(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    dataset = load("digits", None)
    assert workshop.call("data", experiment, out=tmp_path / "shards").code == 0
    shards = [Shard.load(path) for path in sorted((tmp_path / "shards").iterdir())]
    assert len(shards) == 4
    dealt = sorted(
        (x.tobytes(), int(label))
        for shard in shards
        for xs, ys in ((shard.x_train, shard.y_train), (shard.x_test, shard.y_test))
        for x, label in zip(xs, ys, strict=True)
    )
    whole = zip(dataset.x_train, dataset.y_train, strict=True)
    assert dealt == sorted((x.tobytes(), int(label)) for x, label in whole)


def test_the_report_is_printed_again_from_the_store(workshop: Workshop, pair_run: Run) -> None:
    again = workshop.call("report", pair_run.directory)
    assert (again.code, again.err) == (0, "")
    said = [line for line in pair_run.end.out.splitlines() if not line.endswith("are there")]
    assert again.out.splitlines() == said


def device(number: int, address: str, shards: Path) -> tuple[object, ...]:
    name = f"device-{number:02d}"
    return ("device", "--broker", address, "--id", name, "--data", shards / f"{name}.npz")


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_version_is_that_of_the_package(workshop: Workshop) -> None:
    done = workshop.call("--version")
    assert (done.code, done.out) == (0, f"flexmoe {importlib.metadata.version('flexmoe')}\n")
