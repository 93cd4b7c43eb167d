"""Bad input, through the real command line: one line that says what and what to do, and exit 2."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from device_profiles import datasets
from device_profiles.shards import make_shards, write_shards
from tests.e2e.conftest import EXPERIMENT
from tests.e2e.processes import Finished, Run, Workshop, established, free_port

DEAD = "127.0.0.1:1"
"""No broker answers here."""


@dataclass(frozen=True)
class Case:
    """A command line, and words that the error must hold. ``{x}`` stands for a file in `place`."""

    name: str
    arguments: str
    words: tuple[str, ...]


RUN = "run {experiment} --out {new}"
DEVICE = "device --id d --data {shard} --broker " + DEAD
CASES = [
    # keys and values
    Case("unknown section", f"{RUN} --set tarin.epochs=1", ("tarin", "did you mean train?")),
    Case("unknown key", f"{RUN} --set train.xyz=1", ("train.xyz", "known keys", "momentum")),
    Case("mistyped key", f"{RUN} --set train.epoch=1", ("train.epoch", "train.epochs?")),
    Case("unknown key in the file", "run {unknown_key}", ("{unknown_key}", "train.epocs")),
    Case("not TOML", "run {not_toml}", ("{not_toml}", "TOML", "line 1")),
    Case("text for a number", f"{RUN} --set rounds=many", ("rounds", "whole number", '"many"')),
    Case("no value", f"{RUN} --set rounds", ("--set rounds", "key=value")),
    Case(
        "k above E",
        f"{RUN} --set model.experts_per_device=9",
        ("model.experts_per_device", "at most model.experts = 8", "9"),
    ),
    Case("delta below 0", f"{RUN} --set assignment.delta=-0.1", ("assignment.delta", ">= 0")),
    Case("no rounds", f"{RUN} --rounds 0", ("rounds", ">= 1", "0")),
    Case("seed below 0", f"{RUN} --seed -1", ("seed", ">= 0", "-1")),
    Case("unknown trainer", f"{RUN} --set train.trainer=tpu", ("train.trainer", "executorch")),
    Case("unknown policy", f"{RUN} --set assignment.policy=x", ("assignment.policy", "greedy")),
    Case("fixed to what", f"{RUN} --set assignment.policy=fixed", ("assignment.file", ".npy")),
    Case("nobody takes part", f"{RUN} --set participation.fraction=0", ("fraction", "> 0", "0")),
    Case("too many devices", f"{RUN} --set data.devices=5000", ("data.devices", "1438", "5000")),
    Case("natural digits", f"{RUN} --set data.partition=natural", ("data.partition", "dirichlet")),
    # files and folders
    Case("missing experiment", "run {missing}", ("{missing}", "no such file")),
    Case("a folder as experiment", "run {folder}", ("{folder}", "directory")),
    Case("har without data", f"{RUN} --set data.dataset=har", ("data.path", "har")),
    Case(
        "missing data file",
        f"{RUN} --set data.dataset=har --set data.path={{missing}}",
        ("{missing}", "UCI"),
    ),
    Case("a run is there", "run {experiment} --out {run}", ("{run}", "run already", "--out")),
    Case("out is a file", "run {experiment} --out {shard}", ("{shard}", "--out")),
    Case("nothing to resume", f"{RUN} --resume", ("{new}", "run.sqlite")),
    Case("resume what", "run {experiment} --resume", ("--resume", "--out")),
    Case(
        "resume with other settings",
        "run {experiment} --resume --out {run} --set train.epochs=3",
        ("{run}", "config.toml", "--out"),
    ),
    Case("nothing to report", "report {new}", ("{new}", "run.sqlite")),
    Case("missing shard", f"device --id d --broker {DEAD} --data {{missing}}", ("{missing}",)),
    Case("truncated shard", f"device --id d --broker {DEAD} --data {{cut}}", ("{cut}", "npz")),
    Case("half a shard", f"device --id d --broker {DEAD} --data {{half}}", ("{half}", "y_train")),
    # brokers and names
    Case("no broker to run with", f"{RUN} --set broker={DEAD}", (DEAD, "flexmoe broker")),
    Case(
        "no broker for a server",
        f"server {{experiment}} --out {{new}} --broker {DEAD}",
        (DEAD, "flexmoe broker"),
    ),
    Case("no broker for a device", DEVICE, (DEAD, "flexmoe broker")),
    Case("not an address", "server {experiment} --broker here", ("'here'", "host:port")),
    Case("broker's port in use", "broker --port {port}", ("{port}", "in use", "--port")),
    Case("port in use", f"{RUN} --set broker.port={{port}}", ("{port}", "in use", "broker.port")),
    Case("a device with a slash", DEVICE.replace("--id d", "--id a/b"), ("'a/b'", "letters")),
    Case("a shelf of nothing", f"{DEVICE} --shelf-mib 0", ("--shelf-mib", "above 0, got '0'")),
    Case("no threads", f"{DEVICE} --threads 0", ("--threads", "above 0, got '0'")),
    Case("memory in letters", f"{DEVICE} --memory-mib 2G", ("--memory-mib", "whole", "'2G'")),
    Case("unknown trainer", f"{DEVICE} --trainer tf", ("'tf'", "native", "executorch")),
    Case("unfit pieces", f"{RUN} --set train.micro_batch=5", ("micro_batch", "train.batch = 32")),
    Case("nothing to bench", "bench", ("device", "flexmoe bench")),
    Case("programs of no model", "programs {new} --model mnist", ("mnist", "digits, har, cifar")),
    # the command line itself
    Case("unknown command", "train {experiment}", ("'train'", "flexmoe --help")),
    Case("unknown option", "run {experiment} --fast", ("--fast", "flexmoe run --help")),
    Case("unknown option of a device", f"{DEVICE} --fast", ("--fast", "flexmoe device --help")),
    Case("missing argument", "run", ("EXPERIMENT.toml", "flexmoe run --help")),
    Case("missing options of a device", "device", ("--broker, --id, --data",)),
    Case("not a number", "run {experiment} --rounds x", ("--rounds", "integer")),
    Case("not a port", "broker --port 0", ("--port", "1")),
    Case("unknown kind of broker", "broker --kind hive", ("'hive'", "mosquitto", "amqtt")),
]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, experiment: Path, pair_run: Run
) -> Iterator[dict[str, str]]:
    """The files that the cases name, and a port that somebody listens on."""
    folder = tmp_path_factory.mktemp("place")
    shards = make_shards(datasets.load("digits", None), 2, "iid", 0, 0.2)
    shard = write_shards(shards, folder)["device-00"]
    (folder / "cut.npz").write_bytes(shard.read_bytes()[:5000])
    np.savez(folder / "half.npz", x_train=shards["device-00"].x_train)
    (folder / "unknown_key.toml").write_text(EXPERIMENT.replace("epochs", "epocs"))
    (folder / "not_toml.toml").write_text("name = \n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {
            "experiment": str(experiment),
            "run": str(pair_run.directory),
            "folder": str(folder),
            "missing": str(folder / "missing"),
            "shard": str(shard),
            "cut": str(folder / "cut.npz"),
            "half": str(folder / "half.npz"),
            "unknown_key": str(folder / "unknown_key.toml"),
            "not_toml": str(folder / "not_toml.toml"),
            "port": str(listener.getsockname()[1]),
        }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_line_says_what_to_do(
    workshop: Workshop, place: dict[str, str], case: Case, tmp_path: Path
) -> None:
    place = {**place, "new": str(tmp_path / "new")}
    end = workshop.call(*(word.format(**place) for word in case.arguments.split()))
    assert_bad_input(end, [word.format(**place) for word in case.words])
    assert workshop.left() == []
    assert not (tmp_path / "new" / "report.json").exists()


def test_a_shard_of_the_wrong_shape_is_rejected(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    shard, port = odd_shard(tmp_path, width=63), free_port()
    server = workshop.start(
        *("server", experiment, "--set", "data.devices=1", "--set", f"broker.port={port}"),
        out=tmp_path / "out",
    )
    server.wait_for(lambda: established(server.pid, port))
    end = workshop.call("device", "--broker", f"127.0.0.1:{port}", "--id", "odd", "--data", shard)
    assert_bad_input(end, ["rejected", "[63]", "[64]"])
    assert server.process.poll() is None  # it waits for one that fits
    server.signal(signal.SIGTERM)
    assert server.finish().code == 130
    assert workshop.left() == []


def test_a_server_that_rejected_its_devices_says_whom_and_why(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    shard, port = odd_shard(tmp_path, labels=11), free_port()
    address = f"127.0.0.1:{port}"
    broker = workshop.start("broker", "--port", port)
    broker.wait_for(lambda: "listens" in broker.output)
    device = workshop.start("device", "--broker", address, "--id", "odd", "--data", shard)
    device.wait_for(lambda: established(device.pid, port))
    server = workshop.call(
        *("server", experiment, "--broker", address, "--set", "round.join_timeout_s=3"),
        out=tmp_path / "out",
    )
    assert_bad_input(server, ["0 of 4 devices", "odd was rejected", "labels", "10 classes"])
    assert_bad_input(device.finish(), ["rejected", "labels", "10 classes"])
    broker.signal(signal.SIGTERM)
    assert broker.finish().code == 0
    assert workshop.left() == []


def odd_shard(folder: Path, width: int = 64, labels: int = 10) -> Path:
    """A shard in good order, of samples [width] with that many labels."""
    y = np.arange(2 * labels) % labels
    x = np.zeros((len(y), width), np.float32)
    np.savez(folder / "odd.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder / "odd.npz"


def assert_bad_input(end: Finished, words: list[str]) -> None:
    """Exit code 2, and one line on stderr that holds `words`."""
    (line,) = end.err.splitlines()
    assert line.startswith("flexmoe: error: ")
    for word in words:
        assert word in line
    assert end.code == 2
