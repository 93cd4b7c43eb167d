"""The stock runtime as a `Trainer`: what only it says, and what it needs installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edge_runtime.executorch_trainer  # noqa: F401  two tests import it again
from edge_runtime import native
from edge_runtime.errors import FlexmoeError
from edge_runtime.trainers import make_trainer
from tests.edge_runtime.assigned import make_weights
from tests.edge_runtime.conftest import Programs

REPOSITORY = Path(__file__).parents[2]


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge_runtime.executorch_trainer")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FlexmoeError, match=r"pip install 'flexmoe\[server\]'") as caught:
        make_trainer("executorch")
    assert "\n" not in str(caught.value)


def test_without_the_extension_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a round: it counts the memory that programs plan."""
    monkeypatch.delitem(sys.modules, "edge_runtime.executorch_trainer")
    monkeypatch.setitem(sys.modules, "edge_runtime.native._native", None)
    monkeypatch.delattr(native, "_native")
    with pytest.raises(FlexmoeError, match=r"extension module .*; reinstall flexmoe") as caught:
        make_trainer("executorch")
    assert "\n" not in str(caught.value)


LOAD_ALL = """
import pathlib, sys
from edge_runtime.errors import ProgramError
from edge_runtime.executorch_trainer import ExecuTorchTrainer
good = pathlib.Path(sys.argv[1]).read_bytes()
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    try:
        ExecuTorchTrainer().load(path.read_bytes(), good)
        print("loaded", path.name)
    except ProgramError as error:
        assert "\\n" not in str(error)
        print("refused", path.name)
"""


def test_truncated_and_foreign_files_are_refused(digits: Programs, tmp_path: Path) -> None:
    """In a process of its own, where a crash of the runtime would be seen.

    That is all that can be promised: with some bytes of a program changed, stock ExecuTorch 1.5.1
    at times aborts in spite of its verification. On the way to a device digests guard the bytes.
    """
    files, good = tmp_path / "files", tmp_path / "good"
    files.mkdir()
    good.write_bytes(digits.evaluation)
    data, rng = digits.training, np.random.default_rng(0)
    lengths = {*range(64), *rng.integers(64, len(data), 60).tolist(), len(data) - 1}
    for length in lengths:
        (files / f"cut-{length}").write_bytes(data[:length])
    for number in range(20):
        (files / f"noise-{number}").write_bytes(rng.bytes(1 + 997 * number))
        # The runtime's identifier, and then noise.
        (files / f"magic-{number}").write_bytes(data[:8] + rng.bytes(16 + 997 * number))
    (files / "zeros").write_bytes(bytes(len(data)))
    (files / "text").write_text("hello\n" * 1000)
    np.savez(files / "weights", **make_weights())
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(good), str(files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused = [f"refused {path.name}" for path in sorted(files.iterdir())]
    assert done.stdout.splitlines() == refused
