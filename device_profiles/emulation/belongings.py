"""`Belongings`: what a run has made on this host, in a file that outlives the run.

The file, ``<run>`` in the folder of `default_folder`, has a line for each thing, written before the
thing is made::

    owner PID STARTED        whose these are; STARTED: the process's start, in the kernel's ticks
    group PATH               a control group, with all that is in it and below
    leaf PATH                a group that other processes of ours were put into: they go back up
    netns NAME
    interface NAME
"""

from __future__ import annotations

import contextlib
import os
import secrets
import string
import tempfile
from pathlib import Path
from typing import Literal

from device_profiles.emulation import sweep
from edge_runtime.errors import EmulationError

Kind = Literal["group", "folder", "leaf", "netns", "interface"]
_TOKEN = 6
_LETTERS = string.ascii_lowercase + string.digits


def make_run_token() -> str:
    """A short name that no other run on this host has: six of ``a-z0-9``."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_TOKEN))


def default_folder() -> Path:
    """Where runs note what they make; the same for all runs of a user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/flexmoe")
    if os.geteuid() != 0 and runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "flexmoe"
    return Path(tempfile.gettempdir()) / f"flexmoe-{os.geteuid()}"


class Belongings:
    """What one run has made. This process is its owner."""

    def __init__(self, run: str, folder: Path | None = None) -> None:
        """`EmulationError` if there is a run of that name already, or the file cannot be made."""
        self.run = run
        self.path = (folder or default_folder()) / run
        try:
            _make_private(self.path.parent)
        except OSError as error:
            raise EmulationError(f"cannot note what the run makes: {error}") from None
        try:
            with self.path.open("x") as file:
                file.write(f"owner {os.getpid()} {_started(os.getpid())}\n")
        except FileExistsError:
            raise EmulationError(
                f"there is a run {run!r} already: {self.path} exists; flexmoe profiles clean "
                "removes what a run left behind"
            ) from None
        except OSError as error:
            raise EmulationError(f"cannot note what the run makes: {error}") from None

    @classmethod
    def of_file(cls, path: Path) -> Belongings:
        """Those of another run."""
        found = cls.__new__(cls)
        found.run, found.path = path.name, path
        return found

    def note(self, kind: Kind, value: object) -> None:
        """Call it before the thing is made: nothing that exists may be unknown."""
        line = f"{kind} {value}"
        if "\n" in line:
            raise ValueError(f"a line break in {line!r}")
        try:
            with self.path.open("a") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise EmulationError(f"cannot note what the run makes: {error}") from None

    def remove_all(self) -> list[str]:
        """Remove all that was noted, and the file; what could not be removed, and why."""
        return sweep.sweep(self.path)

    @property
    def is_ours(self) -> bool:
        """Whether this process made these."""
        try:
            return self.path.read_text().startswith(f"owner {os.getpid()} ")
        except OSError:
            return False

    @property
    def owner_lives(self) -> bool:
        """Whether the process that made these still runs; one that has yet to say so does."""
        try:
            words = self.path.read_text().partition("\n")[0].split()
        except OSError:
            return False
        if len(words) < 2 or words[0] != "owner" or not words[1].isdigit():
            return True
        try:
            os.kill(int(words[1]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return words[2:] == [_started(int(words[1]))]


def find_leftovers(folder: Path | None = None) -> list[Belongings]:
    """Of all runs whose owner is dead, in the order of their names."""
    try:
        files = sorted((folder or default_folder()).iterdir())
    except OSError:
        return []
    found = [Belongings.of_file(file) for file in files if file.is_file()]
    return [belongings for belongings in found if not belongings.owner_lives]


def find_others(folder: Path | None = None) -> list[Belongings]:
    """Of all runs of other processes that go on now, in the order of their names."""
    try:
        files = sorted((folder or default_folder()).iterdir())
    except OSError:
        return []
    found = [Belongings.of_file(file) for file in files if file.is_file()]
    return [other for other in found if other.owner_lives and not other.is_ours]


def _make_private(folder: Path) -> None:
    """A folder that only this user writes into: whoever writes here says what we remove."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another run is as quick
            folder.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    owner = folder.stat(follow_symlinks=False).st_uid
    if owner != os.geteuid():
        raise OSError(f"{folder} belongs to user {owner}, not to {os.geteuid()}")


def _started(pid: int) -> str:
    """A process id is given again after a while, with another start; "-" where nobody tells."""
    try:
        # The program's name, in brackets, may hold anything; after it come fields 3 to 52.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"
