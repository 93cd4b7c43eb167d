"""Measuring a host: what is measured, and that it is measured once."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from device_profiles.calibration import calibration
from device_profiles.calibration.host_figures import HostFigures
from edge_runtime import cgroup
from edge_runtime.cgroup import Limits

HOST = HostFigures("Some CPU", "x86_64", 2, "avx2", 4000.0, 100.0, 9000.0)


class Meter:
    """Stands for `measure`: says each time what it is told, and counts."""

    def __init__(self, figures: HostFigures = HOST) -> None:
        self.figures, self.times = figures, 0

    def __call__(self) -> HostFigures:
        self.times += 1
        return self.figures


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    meter = Meter()
    monkeypatch.setattr(calibration, "measure", meter)
    return meter


def limits(cores: float | None) -> Callable[[], Limits]:
    return lambda: Limits(None, None, None, cores)


def test_this_host_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "COPY_BYTES", 1024 * 1024)
    monkeypatch.setattr(calibration, "MATRIX", 64)
    figures = calibration.measure(0.01)
    assert HostFigures.from_record(figures.to_record()) == figures
    assert figures.cores <= (os.cpu_count() or 1)
    # The slowest board that there is a figure for, and far more than any CPU.
    assert 100 < figures.integer_mips < 50_000
    assert 0.01 < figures.gemm_gflops < 2_000
    assert 50 < figures.memory_mb_s < 1_000_000


def test_the_text_is_the_same_everywhere_and_can_be_compressed() -> None:
    text = calibration._text()
    assert len(text) == calibration.TEXT_BYTES
    assert zlib.crc32(text) == 0x4AAC4A7B
    coded = calibration._compress(text)
    assert calibration._decompress(coded) == text
    assert 0.2 < len(coded) / len(text) < 0.5


def test_the_best_span_counts_and_the_first_call_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs, clock, now = iter([9.0, 3.0, 2.0, 4.0, 5.0]), [0.0], [0.0]

    def work() -> None:
        clock[0] += next(costs)
        now[0] += 1.0

    monkeypatch.setattr(calibration.time, "thread_time", lambda: clock[0])
    monkeypatch.setattr(calibration.time, "monotonic", lambda: now[0])
    assert calibration.best_span_s(work, 3.0) == 2.0
    assert list(costs) == [5.0]  # the warm-up and three seconds of spans
    costs = iter([9.0, 3.0, 2.0])
    assert calibration.best_span_s(work, 0.0) == 2.0  # two spans at least


def test_a_host_is_measured_once(tmp_path: Path, meter: Meter) -> None:
    folder = tmp_path / "new"
    assert calibration.of_this_host(folder) == HOST
    assert calibration.of_this_host(folder) == HOST
    assert meter.times == 1
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_the_users_cache_folder_is_the_default(
    tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXMOE_CACHE", str(tmp_path))
    calibration.of_this_host()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xff", b"[]", b'{"cpu": "x"}'], ids=str)
def test_a_damaged_file_is_measured_anew(tmp_path: Path, meter: Meter, damaged: bytes) -> None:
    calibration.of_this_host(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damaged)
    assert calibration.of_this_host(tmp_path) == HOST
    assert meter.times == 2
    assert HostFigures.from_record(json.loads(path.read_bytes())) == HOST


@pytest.mark.parametrize(
    ("name", "value"),
    [("cpu_name", lambda: "Other CPU"), ("whole_cores", lambda: 99), ("__version__", "99")],
)
def test_another_cpu_or_version_is_measured_anew(
    tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    calibration.of_this_host(tmp_path)
    monkeypatch.setattr(calibration, name, value)
    calibration.of_this_host(tmp_path)
    assert meter.times == 2


def test_a_folder_that_cannot_be_written_is_told_and_no_obstacle(
    tmp_path: Path, meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert calibration.of_this_host(tmp_path / "file") == HOST
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (2.5, 2), (0.3, 1), (64.0, 4)])
def test_cores_are_those_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(cgroup.os, "sched_getaffinity", lambda _: {0, 1, 5, 9}, raising=False)
    monkeypatch.setattr(cgroup, "read_limits", limits(quota))
    assert calibration.whole_cores() == cores


def test_a_machine_is_called_by_its_board_or_else_its_cpu(tmp_path: Path) -> None:
    model, cpuinfo = tmp_path / "model", tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n\nmodel name\t: Other\n")
    assert calibration.cpu_name(cpuinfo, model) == "Some CPU @ 3 GHz"
    model.write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert calibration.cpu_name(cpuinfo, model) == "Raspberry Pi 4 Model B Rev 1.4"
    nothing = tmp_path / "nothing"
    assert calibration.cpu_name(nothing, nothing) != ""
    assert calibration.board_model(nothing) == ""
