"""An aarch64 device, under qemu, takes part in a real run beside one of this machine."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aarch64.remote import arm_python
from tests.e2e.processes import (
    Command,
    Workshop,
    free_port,
    learned,
    read_report,
    select,
)

ROUNDS = 2
EXPERIMENT = f"""
name = "aarch64"
seed = 5
rounds = {ROUNDS}
[data]
dataset = "digits"
devices = 2
partition = "dirichlet(1.0)"
[model]
experts = 4
experts_per_device = 2
[train]
epochs = 1
learning_rate = 0.1
[wire]
preset = "lossless"  # what is rounded away may depend on the last bit, and that on the machine
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path / "commands", uuid.uuid4().hex, tmp_path / "programs")
    yield workshop
    workshop.clear()


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "aarch64.toml"
    path.write_text(EXPERIMENT)
    return path


def start_arm(workshop: Workshop, *arguments: object) -> Command:
    """Start the `flexmoe` that pip installed for the arm64 Python."""
    folder = workshop.folder / "arm"
    folder.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [arm_python().with_name("flexmoe"), *map(str, arguments)],
            cwd=folder,
            env={
                **environment,
                "FLEXMOE_TEST_MARK": workshop.mark,
                "FLEXMOE_CACHE": str(workshop.cache),
            },
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    command = Command(process, folder)
    workshop.commands.append(command)
    return command


def test_an_aarch64_device_trains_in_a_real_run(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    shards, out, port = tmp_path / "shards", tmp_path / "out", free_port()
    address = f"127.0.0.1:{port}"
    assert workshop.call("data", experiment, out=shards).code == 0
    broker = workshop.start("broker", "--port", port)
    broker.wait_for(lambda: str(port) in broker.output)

    def device(name: str) -> tuple[object, ...]:
        return ("device", "--broker", address, "--id", name, "--data", shards / f"{name}.npz")

    server = workshop.start("server", experiment, "--broker", address, out=out)
    here = workshop.start(*device("device-00"))
    there = start_arm(workshop, *device("device-01"))
    for process in (here, there):
        process.wait_for(lambda: server.rounds() > 0)
    end = server.finish()
    assert (end.code, end.err) == (0, "")
    for name, process in (("device-00", here), ("device-01", there)):
        goodbye = process.finish()
        assert (goodbye.code, goodbye.err, goodbye.out) == (0, "", f"{name}: the run is complete\n")

    machines = dict(select(out, "SELECT client, machine FROM devices"))
    assert machines == {"device-00": os.uname().machine, "device-01": "aarch64"}
    assert select(out, "SELECT DISTINCT trainer FROM devices") == [("native",)]
    answers = select(out, "SELECT round, status FROM clients WHERE client = 'device-01'")
    assert answers == [(number, "ok") for number in range(1, ROUNDS + 1)]
    memory = "SELECT count(*) FROM telemetry WHERE client = 'device-01' AND key = 'peak_rss_mib'"
    assert select(out, memory) == [(ROUNDS,)]

    # The same run with both devices of this machine learns the same.
    alike = tmp_path / "alike"
    assert workshop.call("run", experiment, out=alike).code == 0
    for mixed, plain in zip(learned(read_report(out)), learned(read_report(alike)), strict=True):
        assert mixed.keys() == plain.keys()
        for key in ("load", "assignments"):
            assert mixed[key] == plain[key]
        assert mixed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert mixed["global_accuracy"] == pytest.approx(plain["global_accuracy"], abs=0.01)
