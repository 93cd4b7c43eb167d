"""Children: their logs, their end, and that they never outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from device_profiles.fleet.process import LEASH, ChildProcess, stop_all
from edge_runtime.errors import FleetError

ROOT = Path(__file__).resolve().parents[2]
Eventually = Callable[[Callable[[], bool]], bool]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(600)",
]
WITH_GRANDCHILD = ["sh", "-c", "sleep 600 & echo $!; wait"]


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start(argv: list[str], directory: Path, name: str = "child") -> ChildProcess:
    return ChildProcess.start(argv, name, directory / f"{name}.log")


def test_output_and_exit_code(tmp_path: Path, eventually: Eventually) -> None:
    code = (
        "import sys; print('to stdout', flush=True); print('to stderr', file=sys.stderr); exit(3)"
    )
    child = start([sys.executable, "-c", code], tmp_path / "made" / "for it")
    assert eventually(lambda: child.poll() is not None)
    assert child.poll() == 3
    assert child.tail() == "to stdout\nto stderr"
    assert child.tail(1) == "to stderr"
    again = start([sys.executable, "-c", "print('more')"], tmp_path / "made" / "for it")
    assert eventually(lambda: again.poll() == 0)
    assert again.tail() == "to stdout\nto stderr\nmore"


def test_tail_of_a_long_log_of_odd_bytes_and_of_none(tmp_path: Path) -> None:
    child = start(["true"], tmp_path)
    child.log_path.write_bytes(b"\xff" * 200_000 + b"\nlast \xff line\n")
    assert child.tail(1) == "last � line"
    child.log_path.unlink()
    assert child.tail() == ""
    stop_all([child])


def test_environment_and_session_are_the_childs_own(tmp_path: Path, eventually: Eventually) -> None:
    code = "import os; print(os.environ.get('HELLO'), os.getpid() == os.getpgid(0) == os.getsid(0))"
    env = {**os.environ, "HELLO": "you"}
    child = ChildProcess.start([sys.executable, "-c", code], "env", tmp_path / "log", env)
    assert eventually(lambda: child.poll() == 0)
    assert child.tail() == "you True"
    assert os.getpgid(0) != child.pid


def test_stop_all_ends_the_willing_the_stubborn_and_the_dead(
    tmp_path: Path, eventually: Eventually
) -> None:
    willing, stubborn = start(SLEEP, tmp_path, "willing"), start(STUBBORN, tmp_path, "stubborn")
    dead = start(["true"], tmp_path, "dead")
    assert eventually(lambda: willing.tail() == stubborn.tail() == "up" and dead.poll() == 0)
    stop_all([willing, stubborn, dead], grace_s=0.3)
    codes = [child.poll() for child in (willing, stubborn, dead)]
    assert codes == [-signal.SIGTERM, -signal.SIGKILL, 0]
    assert not any(psutil.pid_exists(child.pid) for child in (willing, stubborn))
    stop_all([willing, stubborn, dead], grace_s=0.3)


def test_what_a_child_started_ends_with_it(tmp_path: Path, eventually: Eventually) -> None:
    stopped, crashed = (start(WITH_GRANDCHILD, tmp_path, name) for name in ("stopped", "crashed"))
    assert eventually(lambda: bool(stopped.tail() and crashed.tail()))
    grandchildren = [int(stopped.tail()), int(crashed.tail())]
    assert all(map(alive, grandchildren))
    os.kill(crashed.pid, signal.SIGKILL)
    assert eventually(lambda: crashed.poll() == -signal.SIGKILL)
    stop_all([stopped])
    assert eventually(lambda: not any(map(alive, grandchildren)))


PARENT = """
import sys, time
from pathlib import Path
from device_profiles.fleet.process import ChildProcess
argv = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [ChildProcess.start(argv, "c", Path(sys.argv[1]) / f"{i}.log") for i in range(2)]
print(*(child.pid for child in children), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_parent_leaves_no_child(tmp_path: Path, eventually: Eventually) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        # On the leash, and so past it: the command line is the child's own.
        assert eventually(lambda: all(str(LEASH) not in psutil.Process(p).cmdline() for p in pids))
        assert len(pids) == 2 and all(map(alive, pids))
        parent.kill()
    assert eventually(lambda: not any(map(alive, pids)))


def test_the_leash_lets_nothing_start_without_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    leash = [sys.executable, "-I", "-S", str(LEASH)]
    started = [*leash, str(os.getpid()), "--", "touch", str(mark)]
    orphaned = [*leash, "1", "--", "touch", str(mark)]
    assert subprocess.run(orphaned, check=False).returncode == 1
    assert not mark.exists()
    assert subprocess.run(started, check=False).returncode == 0
    assert mark.exists()
    missing = subprocess.run(
        [*leash, str(os.getpid()), "--", "no-such-program"], check=False, capture_output=True
    )
    assert missing.returncode == 127
    assert missing.stderr.decode() == "no-such-program: No such file or directory\n"
    assert subprocess.run([*leash, "1"], check=False, capture_output=True).returncode == 2


def test_what_cannot_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="cannot start broker: no program 'no-such-program'"):
        start(["no-such-program"], tmp_path, "broker")
    (tmp_path / "file").touch()
    with pytest.raises(FleetError, match=r"cannot start child: .*file"):
        start(["true"], tmp_path / "file")


def test_children_are_started_by_the_main_thread_only(tmp_path: Path) -> None:
    errors: list[RuntimeError] = []

    def work() -> None:
        try:
            start(["true"], tmp_path)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
