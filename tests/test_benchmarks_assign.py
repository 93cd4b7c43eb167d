"""The benchmarks of the assignment, on instances that are small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from broker_server.assignment import Problem, policy

ROOT = Path(__file__).parents[1]
FIGURES = {"seconds", "objective", "bound", "gap", "max_violation", "peak_mib", "status"}
LINEAR = ("glop", "pdlp", "highs")


def run(script: str, arguments: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_all_solvers_agree_on_one_instance() -> None:
    result = json.loads(run("assign.py", "--clients 30 --experts 5 --delta 0.1 --json"))
    assert result.keys() == {"clients", "experts", "solvers"}
    assert (result["clients"], result["experts"]) == (30, 5)
    found = result["solvers"]
    assert list(found) == ["prices", "cp_sat", *LINEAR]
    for figures in found.values():
        assert figures.keys() == FIGURES
        assert figures["seconds"] > 0 and figures["peak_mib"] >= 0
    assert {found[name]["status"] for name in LINEAR} == {"fractional"}
    assert {found[name]["gap"] for name in LINEAR} == {0.0}
    relaxed = found["glop"]["bound"]
    assert found["highs"]["bound"] == pytest.approx(relaxed)
    assert found["pdlp"]["bound"] == pytest.approx(relaxed, rel=1e-3)
    exact, prices = found["cp_sat"], found["prices"]
    assert exact["status"] == "optimal" and exact["max_violation"] == 0
    assert exact["objective"] <= relaxed * (1 + 1e-6)
    assert prices["status"] in ("optimal", "feasible")
    assert prices["bound"] >= exact["objective"] * (1 - 1e-5)
    assert prices["gap"] == pytest.approx(1 - prices["objective"] / prices["bound"])


def test_a_solver_that_is_out_of_time_says_so() -> None:
    solvers = "--solver cp_sat --solver highs"
    out = run("assign.py", f"--clients 400 --experts 20 {solvers} --time-limit 0.001")
    head, columns, *rows = out.splitlines()
    assert head.startswith("400 clients, 20 experts") and "peak MiB" in columns
    assert [row.split()[0] for row in rows] == ["cp_sat", "highs"]
    assert all(row.endswith("time limit") for row in rows)


def test_growth_has_a_row_for_each_size_and_slopes() -> None:
    sizes = "--clients 200 800 --experts --cp-sat 10 20"
    series = json.loads(run("assign_growth.py", f"{sizes} --json"))["series"]
    assert [(s["solver"], s["along"]) for s in series] == [
        ("prices", "clients"),
        ("cp_sat", "clients"),
    ]
    rows = [[(row["clients"], row["experts"]) for row in s["rows"]] for s in series]
    assert rows == [[(200, 64), (800, 64)], [(10, 8), (20, 8)]]
    for s in series:
        first, second = (row["seconds"] for row in s["rows"])
        ratio = s["rows"][1]["clients"] / s["rows"][0]["clients"]
        assert s["seconds_slope"] == pytest.approx(np.log(second / first) / np.log(ratio))


def test_gaps_count_every_instance_once() -> None:
    found = json.loads(run("assign_gaps.py", "--instances 15 --work-limit 0.3 --json"))
    assert found["instances"] == 15 == found["unproven"] + found["proven"]
    assert found["proven"] >= 6 and found["bound_too_low"] == 0
    assert found["optimal"] + found["more_violation"] <= found["proven"]
    gaps = found["true_gap"]
    assert 0 <= gaps["p50"] <= gaps["p90"] <= gaps["p99"] <= gaps["max"]
    for groups, size in ((found["by_kind"], 5), (found["by_delta"], 3)):
        assert {group["instances"] for group in groups.values()} == {size}


@pytest.fixture
def instances(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the instances, as the scripts see it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import assign_instance

    module: ModuleType = assign_instance
    return module


def made(instances: ModuleType, folder: Path, clients: int, uniform: bool = False) -> Any:
    folder.mkdir()
    instances.write(folder, clients, 8, 1, 0.05, uniform)
    return instances.read(folder)


def test_an_instance_repeats_itself_and_its_bounds_bind(
    instances: ModuleType, tmp_path: Path
) -> None:
    instance = made(instances, tmp_path / "a", 300)
    again = made(instances, tmp_path / "b", 300)
    assert (instance.quality == again.quality).all()
    assert instance.samples.min() >= 50 and instance.samples.max() <= 500
    assert set(instance.capacity) == {1, 2, 3, 4}
    assert ((instance.quality >= 0.5).sum(axis=1) == 3).all()
    share = (instance.samples * instance.capacity).sum() / 8
    assert instance.lower == pytest.approx(0.95 * share)
    assert instance.upper == pytest.approx(1.05 * share)
    fields = instance.quality, instance.samples, instance.capacity, instance.lower, instance.upper
    crowded = policy("greedy")(Problem(*fields, seed=0))
    assert crowded.violation > share  # of popular experts, more than one whole share too much
    even = made(instances, tmp_path / "c", 300, uniform=True)
    assert even.quality.mean() == pytest.approx(0.5, abs=0.03)


def test_a_large_instance_is_written_by_blocks_and_mapped(
    instances: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_BLOCK", 64)
    whole = made(instances, tmp_path / "whole", 300)
    monkeypatch.setattr(instances, "STREAMED", 300)
    mapped = made(instances, tmp_path / "mapped", 300)
    assert isinstance(mapped.quality, np.memmap) and mapped.quality.dtype == np.float32
    assert not mapped.quality.flags.writeable
    assert (mapped.quality == whole.quality.astype(np.float32)).all()
