"""`ChildProcess`: a process of ours that writes to a log file and never outlives us."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_runtime.errors import FleetError

LEASH = Path(__file__).with_name("leash.py")
TAIL_BYTES = 64 * 1024
_POLL_S = 0.02
_REAP_S = 5.0  # a killed process that is not gone by then hangs in the kernel


class ChildProcess:
    """One child in a session of its own: a Ctrl-C in the terminal reaches only us, and we end it.

    On Linux the kernel kills it when we die (see leash.py); elsewhere only `stop_all` ends it.
    """

    def __init__(self, process: subprocess.Popen[bytes], name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process
        self._swept = False

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        name: str,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        join: Sequence[Path] = (),
        netns: Path | None = None,
    ) -> ChildProcess:
        """Start `argv`, its output appended to `log_path`; `FleetError` if it cannot start.

        `env` is the whole environment (default: ours). `join`: the ``cgroup.procs`` of the control
        groups that it starts in; `netns`: its network namespace. If it cannot enter one, it ends
        with code 126 and says so in its log. Call it from the main thread: the leash follows the
        thread that calls, and would kill the child when a worker thread ends.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start children from the main thread: they die with their thread")
        environment = dict(os.environ if env is None else env)
        program = shutil.which(argv[0], path=environment.get("PATH"))
        if program is None:
            raise FleetError(f"cannot start {name}: no program {argv[0]!r}; install it")
        command = [program, *argv[1:]]
        if sys.platform == "linux":
            leash = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid())]
            leash += [word for file in join for word in ("--join", str(file))]
            leash += ["--netns", str(netns)] if netns is not None else []
            command = [*leash, "--", *command]
        elif join or netns is not None:
            raise FleetError(
                f"cannot start {name}: only Linux has control groups and network namespaces"
            )
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise FleetError(f"cannot start {name}: {error}") from None
        return cls(process, name, log_path)

    @property
    def pid(self) -> int:
        """The process id; also that of its group."""
        return self._process.pid

    def poll(self) -> int | None:
        """None while it runs, else its exit code (negative: killed by that signal)."""
        code = self._process.poll()
        if code is not None and not self._swept:
            self._swept = True
            self.signal(signal.SIGKILL)  # whatever it started and left behind
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the child and all that it started; nothing if they are gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def tail(self, lines: int = 10) -> str:
        """The last lines of its log, for an error message."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def stop_all(children: Sequence[ChildProcess], grace_s: float = 5.0) -> None:
    """End children together: SIGTERM to all, SIGKILL to those left after `grace_s`; reap all."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while running and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        running = [child for child in running if child.poll() is None]
    for child in running:
        child.signal(signal.SIGKILL)
    deadline = time.monotonic() + _REAP_S
    while running and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        running = [child for child in running if child.poll() is None]
