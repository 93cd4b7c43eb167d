"""Run a command that the kernel kills when its parent dies: ``leash.py PARENT_PID -- CMD...``

The last resort against orphans: a parent that is killed by SIGKILL cannot stop its children. Linux
can (`prctl(PR_SET_PDEATHSIG)`, kept across `exec`). What to know about it:

- it fires when the *thread* that started the child ends, not the process;
- the kernel clears it when the command changes its user (a broker that drops root);
- it kills the command itself, not what the command started.

Started by path and with ``-I -S``, so that it needs nothing but the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Put on the leash, then become the command. Returns only if that fails."""
    parent_pid, command = arguments[:1], arguments[2:]
    if arguments[1:2] != ["--"] or not command:
        print("usage: leash.py PARENT_PID -- CMD...", file=sys.stderr)
        return 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    # If the parent died before the leash was on, no signal will come.
    if [str(os.getppid())] != parent_pid:
        return 1
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
