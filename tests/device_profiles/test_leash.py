"""The places that the leash puts a command into before it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_profiles.fleet.process import LEASH, ChildProcess
from edge_runtime.errors import FleetError

Eventually = Callable[[Callable[[], bool]], bool]
SAY_PID = [sys.executable, "-I", "-S", "-c", "import os; print(os.getpid())"]


def leash(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_commands_own_id_is_written_into_all_files_in_order(
    tmp_path: Path, eventually: Eventually
) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.touch()
    child = ChildProcess.start(SAY_PID, "child", tmp_path / "log", join=files)
    assert eventually(lambda: child.poll() == 0)
    assert [file.read_text() for file in files] == [child.tail()] * 2 == [str(child.pid)] * 2


def test_a_place_that_cannot_be_entered_lets_nothing_run(
    tmp_path: Path, eventually: Eventually
) -> None:
    mark, missing = tmp_path / "mark", tmp_path / "none"
    for place in ({"join": [missing]}, {"netns": missing}):
        child = ChildProcess.start(["touch", str(mark)], "child", tmp_path / "log", **place)
        assert eventually(lambda child=child: child.poll() == 126)
        assert child.tail(1) == f"cannot enter {missing}: No such file or directory"
    assert not mark.exists()


def test_a_file_that_is_no_namespace(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    run = leash("--netns", str(plain), "--", "true")
    assert (run.returncode, run.stderr) == (126, f"cannot enter {plain}: Invalid argument\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no program unshare")
def test_the_command_runs_in_the_network_namespace(tmp_path: Path) -> None:
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        if other.stdout.readline() != b"up\n":
            pytest.skip("this host lets nobody make a network namespace")
        there = Path(f"/proc/{other.pid}/ns/net")
        run = leash("--netns", str(there), "--", "readlink", "/proc/self/ns/net")
        assert run.stdout.strip() == os.readlink(there) != os.readlink("/proc/self/ns/net")
        other.kill()


def test_words_of_the_command_are_its_own() -> None:
    run = leash("--", "echo", "--", "--join", "x")
    assert (run.returncode, run.stdout) == (0, "-- --join x\n")


@pytest.mark.parametrize(
    "words",
    [
        ("--",),
        ("--join", "--", "true"),
        ("--join", "a", "b", "--", "true"),
        ("--place", "a", "--", "true"),
        ("--join", "a"),
        ("true",),
    ],
)
def test_words_that_make_no_sense(words: tuple[str, ...]) -> None:
    run = leash(*words)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: leash.py PARENT_PID [--join FILE]")


def test_places_are_of_linux_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for place in ({"join": [tmp_path]}, {"netns": tmp_path}):
        with pytest.raises(FleetError, match="cannot start child: only Linux has control groups"):
            ChildProcess.start(["true"], "child", tmp_path / "log", **place)
