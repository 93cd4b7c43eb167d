"""Devices with our runtime and with the stock one: alone, side by side, and in little memory.

Programs go to a folder of these tests' own: the other runs' folder holds what native devices need,
and is counted.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.processes import (
    Finished,
    Workshop,
    free_port,
    learned,
    read_report,
    settings,
)

SMALL: dict[str, object] = {"data.devices": 2, "rounds": 2, "data.partition": "iid"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of this file's own: other files look at what theirs exported."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def native_run(
    experiment: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The report of a run of native devices, one thread each."""
    folder = tmp_path_factory.mktemp("native")
    workshop = Workshop(folder, uuid.uuid4().hex, cache)
    end = workshop.call("run", experiment, *settings(SMALL), out=folder / "out")
    workshop.clear()
    assert (end.code, end.err) == (0, "")
    yield read_report(folder / "out")


def run(workshop: Workshop, experiment: Path, out: Path, **train: object) -> dict[str, Any]:
    """The report of a run that trains in another way."""
    changes = {**SMALL, **{f"train.{key}": value for key, value in train.items()}}
    end = workshop.call("run", experiment, *settings(changes), out=out)
    assert (end.code, end.err) == (0, "")
    return read_report(out)


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same but for rounding, in the first round; later ones may assign otherwise."""
    for left, right in zip(learned(one)[:1], learned(other)[:1], strict=True):
        assert left["assignments"] == right["assignments"]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        assert left["global_accuracy"] == pytest.approx(right["global_accuracy"], abs=0.01)


def test_the_stock_runtime_learns_the_same(
    workshop: Workshop, experiment: Path, native_run: dict[str, Any], tmp_path: Path
) -> None:
    report = run(workshop, experiment, tmp_path / "out", trainer="executorch")
    assert [device["trainer"] for device in report["devices"]] == ["executorch"] * 2
    assert_alike(report, native_run)


def threads_of(process: psutil.Process) -> str:
    """The device's option, as it was started."""
    line = process.cmdline()
    return line[line.index("--threads") + 1]


def test_threads_do_not_change_a_bit(workshop: Workshop, experiment: Path, tmp_path: Path) -> None:
    """With steps that are large enough to be shared among threads."""
    reports = []
    for threads in (1, 2):
        out = tmp_path / f"threads-{threads}"
        changes = {**SMALL, "train.batch": 512, "train.threads": threads}
        command = workshop.start("run", experiment, *settings(changes), out=out)
        command.wait_for(lambda: len(workshop.alive("device", "--threads")) == 2)
        devices = workshop.alive("device", "--threads")
        assert [threads_of(device) for device in devices] == [str(threads)] * 2
        end = command.finish()
        assert (end.code, end.err) == (0, "")
        reports.append(read_report(out))
    for report in reports:
        assert [device["trainer"] for device in report["devices"]] == ["native"] * 2
    assert learned(reports[0]) == learned(reports[1])


def test_micro_batches_change_nothing_but_rounding(
    workshop: Workshop, experiment: Path, native_run: dict[str, Any], tmp_path: Path
) -> None:
    report = run(workshop, experiment, tmp_path / "out", micro_batch=8)
    assert_alike(report, native_run)


def test_other_optimizers_learn_too(
    workshop: Workshop, experiment: Path, native_run: dict[str, Any], tmp_path: Path
) -> None:
    rates = {"optimizer": "adamw", "learning_rate": 0.003, "clip_norm": 1.0}
    report = run(workshop, experiment, tmp_path / "out", **rates)
    assert learned(report) != learned(native_run)
    assert report["final"]["global_accuracy"] > 0.3  # a tenth is chance


class ByHand:
    """A broker, shards, and devices that are started one by one."""

    def __init__(self, workshop: Workshop, experiment: Path, shards: Path) -> None:
        self._workshop, self._experiment, self._shards = workshop, experiment, shards
        self._address = f"127.0.0.1:{(port := free_port())}"
        broker = workshop.start("broker", "--port", port)
        broker.wait_for(lambda: self._address in broker.output)
        assert workshop.call("data", experiment, *settings(SMALL), out=shards).code == 0

    def device(self, number: int, *options: object) -> None:
        name = f"device-{number:02d}"
        command = ("device", "--broker", self._address, "--id", name)
        self._workshop.start(*command, "--data", self._shards / f"{name}.npz", *options)

    def serve(self, out: Path, **changes: object) -> tuple[Finished, dict[str, Any]]:
        """The server until its end, and its report."""
        options = settings({**SMALL, **{key.replace("__", "."): changes[key] for key in changes}})
        server = ("server", self._experiment, *options, "--broker", self._address)
        end = self._workshop.call(*server, out=out)
        assert (end.code, end.err) == (0, "")
        return end, read_report(out)


def test_one_fleet_may_mix_trainers(workshop: Workshop, experiment: Path, tmp_path: Path) -> None:
    fleet = ByHand(workshop, experiment, tmp_path / "shards")
    fleet.device(0, "--threads", 1)
    fleet.device(1, "--trainer", "executorch")
    end, report = fleet.serve(tmp_path / "out")
    trainers = {device["client"]: device["trainer"] for device in report["devices"]}
    assert trainers == {"device-00": "native", "device-01": "executorch"}
    assert [entry["answered"] for entry in report["rounds"]] == [2, 2]
    losses = [entry["loss"] for entry in report["rounds"]]
    assert losses[1] < losses[0]

    memory = report["final"]["memory_by_trainer"]
    assert list(memory) == ["executorch", "native"]
    assert memory["native"]["largest_mib"] < memory["executorch"]["largest_mib"] / 2
    for trainer, share in memory.items():
        assert share["devices"] == 1
        assert f"{share['largest_mib']:.1f} MiB a device at most" in end.out
        assert f"(1 {trainer})" in end.out


@pytest.mark.parametrize(("micro_batch", "answers"), [(0, 1), (8, 2)])
def test_a_device_of_little_memory(
    micro_batch: int, answers: int, workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    """With large batches it sits out; micro-batches let it take part."""
    fleet = ByHand(workshop, experiment, tmp_path / "shards")
    fleet.device(0)
    fleet.device(1, "--memory-mib", 1)
    train = {"train__batch": 512, "train__micro_batch": micro_batch, "rounds": 1}
    _, report = fleet.serve(tmp_path / "out", **train)
    assert [device["memory_available_bytes"] == 2**20 for device in report["devices"]] == [
        False,
        True,
    ]
    (entry,) = report["rounds"]
    assert entry["answered"] == entry["participants"] == answers
    sits_out = [event[:19] for event in entry["events"]]
    assert sits_out == ["device-01: sits out"] * (2 - answers)
