"""Becoming a command in a scope of systemd's, with a systemd-run of our own making."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_profiles.emulation.scope import GUARD
from tests.device_profiles.kernel_groups import ROOT

# Keeps what it was called with, and runs the rest, as systemd-run does.
SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> "{log}"
[ "$1 $2 $3 $4 $5 $6 $7" = "--user --scope --quiet --collect -p Delegate=yes --" ] || exit 9
shift 7
{then}
exec "$@"
"""
# A user's command, in the group of a folder.
COMMAND = """
import os, sys
from pathlib import Path
from device_profiles.emulation.control_files import Hierarchy
from device_profiles.emulation.scope import GUARD, enter_scope
uid, own = int(sys.argv[1]), Path(sys.argv[2])
os.geteuid = lambda: uid
print("before", os.getpid())
enter_scope([Hierarchy(2, frozenset(), own, own)] if own.is_dir() else [])
print("after", os.getpid(), os.environ.get(GUARD), os.getcwd(), *sys.argv[3:])
"""


def _outside() -> dict[str, str]:
    """Our environment as outside of a scope, wherever the tests run."""
    return {name: value for name, value in os.environ.items() if name != GUARD}


class User:
    """Runs `COMMAND` with our systemd-run first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.group = folder, folder / "log", folder / "group"
        self.group.mkdir()
        for name in ("controllers", "subtree_control", "procs", "type"):
            (self.group / f"cgroup.{name}").write_text("")
        (folder / "command.py").write_text(COMMAND)
        self.systemd_run()

    def systemd_run(self, then: str = "") -> None:
        program = self.folder / "systemd-run"
        program.write_text(SYSTEMD_RUN.format(log=self.log, then=then))
        program.chmod(0o755)

    def run(self, uid: int = 1000, group: str = "group", **env: str) -> list[list[str]]:
        """What it prints, in words."""
        words = [str(uid), str(self.folder / group), "two words", "$x"]
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-X", "utf8", str(self.folder / "command.py"), *words],
            env={**_outside(), "PATH": path, "PYTHONPATH": str(ROOT), **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return [line.split() for line in done.stdout.splitlines()]

    def calls(self) -> list[str]:
        """What systemd-run was called with."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def test_the_very_command_goes_on_in_a_scope_and_once(user: User) -> None:
    first, second, after = user.run()
    # One process all the time: whoever started it sees no change.
    assert first[0] == second[0] == "before"
    assert first[1] == second[1] == after[1]
    assert after[2:] == ["1", str(user.folder), "two", "words", "$x"]
    options = "--user --scope --quiet --collect -p Delegate=yes --"
    trial, real = user.calls()
    assert trial == f"{options} true"
    assert real.startswith(f"{options} {sys.executable} -X utf8 {user.folder / 'command.py'} 1000")


def test_where_groups_can_be_made_as_it_is(user: User) -> None:
    (user.group / "cgroup.controllers").write_text("cpu memory pids")
    assert [line[0] for line in user.run()] == ["before", "after"]
    (user.group / "cgroup.controllers").write_text("memory pids")
    assert [line[0] for line in user.run()] == ["before", "before", "after"]


def test_where_there_is_no_use_in_trying(user: User) -> None:
    for lines in (
        user.run(uid=0),
        user.run(group="no version 2 here"),
        user.run(**{GUARD: "1"}),
        user.run(PATH="/nowhere"),
    ):
        assert [line[0] for line in lines] == ["before", "after"]
    assert user.calls() == []


def test_a_systemd_that_gives_no_scope(user: User) -> None:
    user.systemd_run(then="echo Failed to connect to bus >&2; exit 1")
    assert [line[0] for line in user.run()] == ["before", "after"]
    assert len(user.calls()) == 1
