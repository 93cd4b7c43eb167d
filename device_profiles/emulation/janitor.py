"""`Janitor`: a process that removes what a run has made, as soon as the run has ended, however.

The process is sweep.py: it waits for the end of a pipe whose other end only the run holds, in a
session of its own and deaf to signals. So it does its work after a kill and a Ctrl-C too, and the
normal end is no other way.
"""

from __future__ import annotations

import os
import subprocess
import sys

from device_profiles.emulation import sweep
from device_profiles.emulation.belongings import Belongings
from edge_runtime.errors import EmulationError

_LONGEST_S = 60.0


class Janitor:
    """The owner's end: starts the process, and on `close` has it do its work."""

    def __init__(self, belongings: Belongings) -> None:
        """`EmulationError` if it cannot start."""
        self._belongings = belongings
        command = [
            sys.executable,
            "-I",
            "-S",
            sweep.__file__,
            str(belongings.path),
            str(os.getpid()),
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise EmulationError(f"cannot start the janitor: {error}") from None
        assert self._process.stdout is not None
        # From here on it is deaf to signals.
        if self._process.stdout.readline() != b"ready\n":
            self._process.communicate()
            raise EmulationError(
                f"the janitor ended at once, with code {self._process.returncode}; "
                f"does {sys.executable} run?"
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def close(self) -> list[str]:
        """Remove all belongings and wait for it; what could not be removed. May be called again."""
        if self._process.returncode is not None:
            return []
        try:
            output, _ = self._process.communicate(b"now\n", _LONGEST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
        if self._process.returncode in (0, 1):
            return output.decode(errors="replace").splitlines()
        return self._belongings.remove_all()  # somebody killed it
