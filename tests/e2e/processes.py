"""`flexmoe` as real processes, and what their runs leave, for the end-to-end tests.

Every process carries a mark in its environment, which its children inherit: so a test can tell what
is left of it, whoever the parent is by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MARK = "FLEXMOE_TEST_MARK"
WAIT_S = 120.0  # only bounds how long a failure takes: a loaded machine is slow
KERNEL_S = 15.0  # as much, for the kernel to end the children of a process that was killed
_POLL_S = 0.01


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Command:
    """A `flexmoe` command that was started, with its output in files."""

    process: subprocess.Popen[bytes]
    folder: Path
    out: Path | None = None  # the run's directory, if it has one

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it printed so far."""
        return (self.folder / "stdout").read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self) -> Finished:
        """Wait for its end. ExecuTorch's own remarks about the processor are left out of `err`."""
        code = self.process.wait(WAIT_S)
        errors = (self.folder / "stderr").read_text().splitlines(keepends=True)
        said = "".join(line for line in errors if not line.startswith("[cpuinfo_utils.cpp"))
        return Finished(code, self.output, said)

    def rounds(self) -> int:
        """How many rounds its store holds by now."""
        assert self.out is not None
        return stored_rounds(self.out)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; fails if the command ends before, or time is over."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            code = self.process.poll()
            errors = (self.folder / "stderr").read_text()
            assert code is None, f"ended with code {code}: {errors}{self.output}"
            assert time.monotonic() < deadline, f"waited in vain: {errors}{self.output}"
            time.sleep(_POLL_S)


@dataclass
class Workshop:
    """Starts commands under one mark, and knows what is left of them."""

    folder: Path
    mark: str
    cache: Path
    commands: list[Command] = field(default_factory=list)

    def start(self, *arguments: object, out: Path | None = None) -> Command:
        """Start ``flexmoe ARGUMENTS...``, with ``--out`` if `out` is given."""
        folder = self.folder / f"command-{len(self.commands)}"
        folder.mkdir(parents=True)
        argv = [str(Path(sys.executable).with_name("flexmoe")), *map(str, arguments)]
        argv += ["--out", str(out)] if out else []
        environment = {
            **os.environ,
            MARK: self.mark,
            "FLEXMOE_CACHE": str(self.cache),
            "PYTHONPATH": str(Path(__file__).parents[2]),  # this code, whatever is installed
        }
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        command = Command(process, folder, out)
        self.commands.append(command)
        return command

    def call(self, *arguments: object, out: Path | None = None) -> Finished:
        """Start a command and wait for its end."""
        return self.start(*arguments, out=out).finish()

    def alive(self, *words: str) -> list[psutil.Process]:
        """The living processes under this mark whose command line holds all of `words`."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                line = process.cmdline()
                if process.environ().get(MARK) == self.mark and all(w in line for w in words):
                    found.append(process)
        return found

    def device(self, name: str) -> psutil.Process:
        """The process of the device called `name`."""
        (process,) = self.alive("device", name)
        return process

    def left(self, patience_s: float = 0.0) -> list[str]:
        """The command lines of what is still alive after at most `patience_s` more seconds."""
        deadline = time.monotonic() + patience_s
        while (alive := self.alive()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        lines = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()))
        return lines

    def clear(self) -> None:
        """Kill whatever a failed test left."""
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for command in self.commands:
            command.process.wait(WAIT_S)


@dataclass(frozen=True)
class Run:
    """A finished `flexmoe run`, and what was there before and after it."""

    directory: Path
    end: Finished
    left: list[str]
    cache_folder: Path
    cache_before: Mapping[str, int]
    cache_after: Mapping[str, int]

    @property
    def report(self) -> dict[str, Any]:
        return read_report(self.directory)

    def select(self, query: str) -> list[tuple[Any, ...]]:
        return select(self.directory, query)


def read_report(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return report


def select(directory: Path, query: str) -> list[tuple[Any, ...]]:
    """The rows that a query of a run's store gives."""
    uri = f"{(directory / 'run.sqlite').as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        return database.execute(query).fetchall()


def stored_rounds(directory: Path) -> int:
    """How many rounds a run's store holds; 0 while there is no store."""
    try:
        return int(select(directory, "SELECT count(*) FROM rounds")[0][0])
    except sqlite3.OperationalError:
        return 0


def learned(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each round, what the seed alone decides: no times, no bytes."""
    keys = ("round", "global_accuracy", "device_accuracy", "loss", "load", "usage", "assignments")
    return [{key: entry[key] for key in keys} for entry in report["rounds"]]


def fingerprint(folder: Path) -> dict[str, int]:
    """The files of a folder with the times of their last change."""
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.iterdir()) if p.is_file()}


def established(pid: int, port: int) -> bool:
    """Whether the process is connected to that port."""
    with contextlib.suppress(psutil.Error):
        return any(
            connection.raddr and connection.raddr.port == port
            for connection in psutil.Process(pid).net_connections(kind="tcp")
            if connection.status == psutil.CONN_ESTABLISHED
        )
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def settings(pairs: Mapping[str, object]) -> Sequence[str]:
    """``--set`` options."""
    return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]
