"""`flexmoe bench device`: what it measures on a board, from program files, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import bench, bench_step, turns
from edge_runtime.cli import main
from edge_runtime.errors import ConfigError
from edge_runtime.layout import ROLES
from edge_runtime.trainers import MAX_THREADS
from model_export.cache import ProgramCache
from tests.model_export.eager import BATCH, SPECS, K

SIZES = ("--k", str(K), "--batch", str(BATCH["digits"]))
QUICK = turns.Pace(turns=2, turn_s=0.001)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A folder of programs, as `flexmoe programs` writes it."""
    cache = ProgramCache(tmp_path_factory.getbasetemp() / "programs")  # the tests' common one
    for role in ROLES:
        program = cache.get(SPECS["digits"], K, BATCH["digits"], role, "native")
        path = bench_step.program_path(tmp_path, "digits", K, BATCH["digits"], role)
        path.write_bytes(program.data)
    return tmp_path


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server extra; and with no more than a glance at the time of a product."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(bench, "PEAK_SIZES", (8,))
    monkeypatch.setattr(turns, "PACE", QUICK)


def test_on_a_board_our_trainer_alone_is_measured(folder: Path, board: None) -> None:
    result = bench.measure("digits", K, BATCH["digits"], 1, folder, QUICK)
    assert result.keys() == {"ours_ms", "gemm_peak_gflops"}
    assert all(value > 0 for value in result.values())


def test_the_command_prints_a_table(
    folder: Path, board: None, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "device", "--model", "digits", *SIZES, "--programs", str(folder)]
    assert main([*command, "--threads", "2"]) == 0
    printed = capfd.readouterr()
    head, row, last = printed.out.splitlines()
    assert head.split() == ["model", "ours", "ms"] and row.split()[0] == "digits"
    assert float(row.split()[1]) > 0 and last.startswith("kernels: ")
    assert printed.err == ""


def test_the_command_prints_json(
    folder: Path, board: None, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "device", "--model", "digits", *SIZES, "--programs", str(folder)]
    assert main([*command, "--json"]) == 0
    printed = capfd.readouterr()
    result = json.loads(printed.out)
    assert result["model"] == "digits" and result["ours_ms"] > 0 and printed.err == ""


def test_the_programs_of_the_wheel_are_found(
    folder: Path, board: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "BUNDLED", folder)
    assert bench.measure("digits", K, BATCH["digits"], pace=QUICK)["ours_ms"] > 0
    with pytest.raises(ConfigError, match=r"no programs of har .*flexmoe programs DIR --k 2"):
        bench.measure("har", K, BATCH["digits"], pace=QUICK)


def test_a_folder_without_the_programs_is_one_line(tmp_path: Path, board: None) -> None:
    with pytest.raises(ConfigError, match=rf"with k=3, batch 5 in {tmp_path}; ") as caught:
        bench.measure("digits", 3, 5, folder=tmp_path, pace=QUICK)
    assert "\n" not in str(caught.value)


def test_the_table_has_the_columns_that_all_models_have() -> None:
    results = {
        "digits": {"ours_ms": 1.0, "eager_ms": 2.0, "gemm_peak_gflops": 7.0},
        "har": {"ours_ms": 12.5, "gemm_peak_gflops": 9.0},
    }
    lines = bench.table(results).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["model", "ours", "ms"],
        ["digits", "1.000"],
        ["har", "12.500"],
    ]
    assert lines[3].endswith("the largest products reach 9 GFLOP/s here")


def test_every_column_is_explained() -> None:
    assert bench.__doc__ is not None
    explained = [line.split("|")[1].strip() for line in bench.__doc__.splitlines() if "|" in line]
    assert {head for head, _, _ in bench.COLUMNS} <= set(explained)


def test_the_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEAK_SIZES", (2, 3))
    monkeypatch.setattr(bench, "PEAK_REPEATS", 2)
    ticks = iter([0.0, 1.0, 0.0, 0.5, 0.0, 27.0, 0.0, 3.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks))
    seen = []
    assert bench.peak_flops(lambda a, b: seen.append((a.shape, b.dtype))) == 2 * 2**3 / 0.5
    assert seen == [((n, n), np.float32) for n in (2, 2, 3, 3)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: device (see flexmoe bench --help)"),
        (["gpu"], "invalid choice: 'gpu'"),
        (["device", "--threads", "0"], "--threads: expected a whole number above 0, got '0'"),
        (["device", "--threads", "257"], f"--threads: expected 1 to {MAX_THREADS}, got 257"),
        (["device", "--threads", "4294967296"], "--threads: expected 1 to 256, got 4294967296"),
        (["device", "--k", "0"], "--k: expected a whole number above 0, got '0'"),
        (["device", "--batch", "-1"], "--batch: expected a whole number above 0, got '-1'"),
        (["device", "--model", "gpt"], "--model: invalid choice: 'gpt'"),
        (["device", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("flexmoe: error: ") and says in line and "--help)" in line


@pytest.mark.parametrize("threads", ["257", "4294967296"])
def test_a_device_takes_no_more_threads_than_there_may_be(
    threads: str, capfd: pytest.CaptureFixture[str]
) -> None:
    device = ["device", "--broker", "a:1", "--id", "a", "--data", "b.npz"]
    assert main([*device, "--threads", threads]) == 2
    says = f"argument --threads: expected 1 to 256, got {threads} (see flexmoe device --help)"
    assert capfd.readouterr().err == f"flexmoe: error: {says}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["device", "--help"]])
def test_help(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 0
    assert "what a training step costs" in capfd.readouterr().out.lower()
