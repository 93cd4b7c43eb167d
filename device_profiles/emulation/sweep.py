"""Remove what a run has made: ``sweep.py FILE OWNER_PID`` is the janitor's process.

Started by path and with ``-I -S``, so that it is light: it may import nothing but the standard
library, and so all that removes things is in this file. It waits for its standard input, or for the
owner's death, removes what FILE names (see belongings.py) and ends. It prints ``ready``
once no signal can end it, and at the end a line for each thing that it could not remove.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

PREFIX = "flexmoe-"
"""Begins the names of all our groups: no other is ever killed or removed."""
_PATIENCE_S = 3.0  # a killed process leaves its group only after the kernel has torn it down
_FREEZE_S = 0.5  # a process that waits for a disk freezes late, but a kill reaches it too
_POLL_S = 0.01


def sweep(file: Path) -> list[str]:
    """Remove the things that `file` names, and the file; what could not be removed, and why.

    Groups first, so that no process is left to use the rest. What is gone already is no failure.
    """
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return []
    things = [(kind, value) for kind, _, value in (line.partition(" ") for line in lines)]
    left = remove_groups([Path(value) for kind, value in things if kind == "group"])
    for kind, value in things:
        if kind == "leaf":
            left += remove_leaf(Path(value))
    left += _remove_links(things)
    for kind, value in things:
        if kind == "folder" and Path(value).name.startswith(PREFIX):
            shutil.rmtree(value, ignore_errors=True)
    if not left:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
    return left


def kill_groups(folders: Sequence[Path]) -> None:
    """Kill all processes in these groups and below, and wait until they are gone, within bounds.

    Frozen first, where the kernel can: then none forks away from the one that kills.
    """
    for folder in folders:
        _write(folder / "cgroup.kill", "1")  # version 2, Linux 5.14: does all by itself
    groups = [group for folder in folders for group in _tree(folder)]
    if not any(map(_pids, groups)):
        return
    for folder in folders:
        _write(folder / "freezer.state", "FROZEN")
        _write(folder / "cgroup.freeze", "1")
    deadline = time.monotonic() + _FREEZE_S
    while any(_read(folder / "freezer.state") == "FREEZING" for folder in folders):
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S / 10)
    _kill(groups)
    # All of them, the parents first: whoever was here before may have been killed half way.
    for group in reversed(groups):
        _write(group / "freezer.state", "THAWED")
        _write(group / "cgroup.freeze", "0")
    deadline = time.monotonic() + _PATIENCE_S
    while _kill(groups) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def remove_groups(folders: Sequence[Path]) -> list[str]:
    """Kill what is in these groups, remove them and all groups below; what could not be removed."""
    ours = [folder for folder in folders if _is_ours(folder)]
    left = [f"group {folder}: not one of ours" for folder in folders if not _is_ours(folder)]
    kill_groups(ours)
    return left + [problem for folder in ours for problem in _remove_tree(folder)]


def remove_leaf(leaf: Path) -> list[str]:
    """Send the processes of `leaf` back to the group above, and remove it.

    A group of version 2 takes processes only while its children have no controllers, so these are
    taken off it first.
    """
    if not _is_ours(leaf):
        return [f"leaf {leaf}: not one of ours"]
    above = leaf.parent
    for controller in _read(above / "cgroup.subtree_control").split():
        _write(above / "cgroup.subtree_control", f"-{controller}")
    deadline = time.monotonic() + _PATIENCE_S
    # This process may be one of them.
    while (pids := _read(leaf / "cgroup.procs").split()) and time.monotonic() < deadline:
        for pid in pids:
            _write(above / "cgroup.procs", pid)
        time.sleep(_POLL_S)
    return _remove_tree(leaf)


def _remove_tree(folder: Path) -> list[str]:
    """Remove empty groups, children first; try again while the last processes go."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            for group in _tree(folder):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(group)
            return []
        except OSError as error:
            if time.monotonic() > deadline:
                return [f"group {error.filename}: {error.strerror}"]
        time.sleep(_POLL_S)


def _remove_links(things: Sequence[tuple[str, str]]) -> list[str]:
    """Remove network namespaces, then interfaces: most of these went with their namespaces."""
    names = {
        "netns": ("netns", Path("/run/netns")),
        "interface": ("link", Path("/sys/class/net")),
    }
    left = []
    for kind, (command, folder) in names.items():
        there = [value for k, value in things if k == kind and _exists(folder / value)]
        if not there:
            continue
        batch = "".join(f"{command} del {name}\n" for name in there)
        said = ""
        try:
            run = subprocess.run(
                ["ip", "-force", "-batch", "-"], input=batch, capture_output=True, text=True
            )
            said = (run.stderr.strip().splitlines() or [""])[0]
        except OSError as error:
            said = f"ip: {error.strerror}"
        left += [f"{kind} {name}: {said}" for name in there if not _gone(folder / name)]
    return left


def _gone(path: Path) -> bool:
    """Whether it goes within bounds: the kernel takes interfaces of a dead namespace down later."""
    deadline = time.monotonic() + _PATIENCE_S
    while _exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _is_ours(folder: Path) -> bool:
    """Whether the group is a run's, or below one."""
    parts = folder.parts
    return folder.is_absolute() and ".." not in parts and any(p.startswith(PREFIX) for p in parts)


def _tree(folder: Path) -> list[Path]:
    """The group and all below it, children first."""
    return [Path(path) for path, _, _ in os.walk(folder, topdown=False)]


def _pids(group: Path) -> set[int]:
    """The processes in a group. One of another pid namespace shows as 0, which to `kill` means our
    own; neither may be killed."""
    words = _read(group / "cgroup.procs").split()
    return {int(word) for word in words if word.isdigit()} - {0, os.getpid()}


def _kill(groups: Iterable[Path]) -> int:
    """Kill what is in the groups now; how many that were."""
    pids = {pid for group in groups for pid in _pids(group)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write to a file of the kernel's; what cannot be is seen by what is left."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _wait_for_the_end(owner: int) -> None:
    """Until standard input says something or ends, or the process `owner` does: if it has forked,
    the pipe stays open."""
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    if hasattr(os, "pidfd_open"):
        try:
            poll.register(os.pidfd_open(owner), select.POLLIN)
        except ProcessLookupError:
            return
        except OSError:
            pass  # a kernel before 5.3: the pipe alone
    poll.poll()


def main(arguments: list[str]) -> int:
    """Wait, remove, say what is left. 1 if anything is."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    file, owner = Path(arguments[0]), int(arguments[1])
    print("ready", flush=True)
    _wait_for_the_end(owner)
    left = sweep(file)
    with contextlib.suppress(BrokenPipeError):  # nobody is left to read it
        print("".join(f"{line}\n" for line in left), end="", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    # Not sys.exit: the interpreter would flush into the broken pipe again, and complain.
    os._exit(main(sys.argv[1:]))
