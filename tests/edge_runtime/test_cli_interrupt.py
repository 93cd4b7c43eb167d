"""Whenever an interrupt comes, it ends the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

# `device` is replaced by a command that is interrupted while an object of it is destroyed.
SCRIPT = """
import signal, sys, time
from edge_runtime import cli

class Destroyed:
    def __del__(self):
        signal.raise_signal(signal.{name})

def command(arguments):
    Destroyed()
    time.sleep(60)
    return 0

cli.run_device = command
sys.argv = ["flexmoe", "device"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_in_a_destructor_is_not_lost(name: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(name=name)]
    end = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (end.returncode, end.stderr) == (130, "flexmoe: interrupted\n")
