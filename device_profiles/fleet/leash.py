"""Run a command that the kernel kills when its parent dies, in a place of its own::

    leash.py PARENT_PID [--join FILE]... [--netns FILE] -- CMD...

The last resort against orphans: a parent that is killed by SIGKILL cannot stop its children. Linux
can (`prctl(PR_SET_PDEATHSIG)`, kept across `exec`). What to know about it:

- it fires when the *thread* that started the child ends, not the process;
- the kernel clears it when the command changes its user (a broker that drops root);
- it kills the command itself, not what the command started.

The place: FILE of ``--join`` is a control group's ``cgroup.procs``, that of ``--netns`` a network
namespace as ``ip netns`` keeps it. A command that cannot be put there does not run.

Started by path and with ``-I -S``, so that it needs nothing but the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_USAGE = "usage: leash.py PARENT_PID [--join FILE]... [--netns FILE] -- CMD..."


def main(arguments: list[str]) -> int:
    """Put on the leash, enter the place, become the command. Returns only if that fails."""
    parent_pid, options, command = arguments[:1], arguments[1:], list[str]()
    if "--" in options:
        end = options.index("--")
        options, command = options[:end], options[end + 1 :]
    pairs = list(zip(options[::2], options[1::2], strict=False))
    known = all(option in ("--join", "--netns") for option, _ in pairs)
    if not command or len(options) % 2 or not known:
        print(_USAGE, file=sys.stderr)
        return 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    # If the parent died before the leash was on, no signal will come.
    if [str(os.getppid())] != parent_pid:
        return 1
    for option, file in pairs:
        try:
            _join(file) if option == "--join" else _enter_network(libc, file)
        except OSError as error:
            print(f"cannot enter {file}: {error.strerror}", file=sys.stderr)
            return 126
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127


def _join(file: str) -> None:
    """Enter a control group: whatever memory the command takes is counted there."""
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, str(os.getpid()).encode())
    finally:
        os.close(descriptor)


def _enter_network(libc: ctypes.CDLL, file: str) -> None:
    """Enter a network namespace (`os.setns` came with Python 3.12)."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
