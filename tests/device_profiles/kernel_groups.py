"""Processes for tests of real control groups. Needs no fixture of ours and no package but flexmoe,
so that these tests also run in a bare virtual machine: ``pytest --noconftest``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from device_profiles.emulation.group import Group
from device_profiles.fleet.process import LEASH

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-I", "-S", "-c"]
HOG = [*PYTHON, "print('up', flush=True)\nwhile True: pass"]
SLEEPER = [*PYTHON, "import time; print('up', flush=True); time.sleep(600)"]
# Children that each start another and end: whoever kills by a list comes too late.
HYDRA = [
    *PYTHON,
    "import os, time\nprint('up', flush=True)\nwhile True:\n"
    "    try:\n        if os.fork(): time.sleep(0.001); os._exit(0)\n"
    "    except OSError: pass",
]
_MOST_S = 20.0


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true; the limit only bounds how long a failure takes."""
    deadline = time.monotonic() + _MOST_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def leashed(join: Sequence[Path], command: Sequence[str]) -> list[str]:
    """The command, in these groups."""
    words = [word for file in join for word in ("--join", str(file))]
    return [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *words, "--", *command]


def start(group: Group, command: Sequence[str]) -> subprocess.Popen[str]:
    """Start it in the group."""
    return subprocess.Popen(leashed(group.join, command), stdout=subprocess.PIPE, text=True)


def start_and_wait(group: Group, command: Sequence[str]) -> subprocess.Popen[str]:
    """Start it in the group, and wait for its first line."""
    process = start(group, command)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def members(group: Group) -> set[str]:
    """The processes that the kernel counts to it, in any of its trees."""
    return {pid for file in group.join for pid in file.read_text().split()}


def folders(group: Group) -> list[Path]:
    """Its folders, in each of its trees."""
    return [file.parent for file in group.join]
