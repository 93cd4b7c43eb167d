"""Mutated programs in the native trainer: refused, failed or run, but never a crash.

Two ways: a damaged file, which its seal shows; and a damaged program under a sound seal, where the
runtime's own checks stand alone.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.exported import Export, make_export

REPOSITORY = Path(__file__).parents[2]
# Of each kind: `make sanitize` takes fewer, for its build is slow.
COUNT = int(os.environ.get("FLEXMOE_MUTANTS", "2000"))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


def run(
    export: Export,
    folder: Path,
    name: str,
    how: str,
    kernels: str = "native",
    count: int = COUNT,
    balance: float = 0.0,
) -> dict[str, int]:
    """How many mutants were refused, failed and ran."""
    files = [folder / "training", folder / "evaluation"]
    for file, data in zip(files, export(name, kernels, balance=balance), strict=True):
        file.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.native.mutants", *map(str, files), "0", str(count), how],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, (last, done.stderr[-2000:])
    assert done.stderr == ""  # ExecuTorch's messages go into ours
    outcomes: dict[str, int] = ast.literal_eval(last[0])
    assert sum(outcomes.values()) == count
    return outcomes


def test_damaged_files(export: Export, tmp_path: Path) -> None:
    outcomes = run(export, tmp_path, "digits", "raw")
    # Some mutations write what was there.
    assert outcomes["failed"] == 0 and outcomes["refused"] > 0.95 * COUNT


@pytest.mark.parametrize(
    ("name", "balance"), [("digits", 0.0), ("har", 0.0), ("cifar", 0.0), ("cifar", 0.01)]
)
def test_damaged_programs_under_a_sound_seal(
    name: str, balance: float, export: Export, tmp_path: Path
) -> None:
    outcomes = run(export, tmp_path, name, "resealed", balance=balance)
    assert outcomes["refused"] > COUNT / 2 and outcomes["failed"] > 0 and outcomes["ran"] > 0


def test_damaged_stock_programs(export: Export, tmp_path: Path) -> None:
    outcomes = run(export, tmp_path, "digits", "resealed", kernels="stock")
    assert outcomes["refused"] > COUNT / 2
