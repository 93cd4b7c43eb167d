"""A delegated scope of systemd's: a user's way to control groups without root.

A user's processes sit in groups that systemd owns. ``systemd-run --user --scope -p Delegate=yes``
starts a command in a group that belongs to the user, controllers and all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from device_profiles.emulation.cgroup_v2_base import NEEDED, find_base
from device_profiles.emulation.control_files import Hierarchy, find_hierarchies
from edge_runtime.errors import EmulationError

GUARD = "FLEXMOE_IN_SCOPE"
"""Set for the command that runs in the scope: it must not start another."""
_SCOPE = ("--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--")
_TRIAL_S = 10.0


def enter_scope(hierarchies: Sequence[Hierarchy] | None = None) -> None:
    """Become this very command in a scope of its own, where that is needed and works.

    Call it before anything is started or opened: it does not return then. It returns where we are
    root, may make groups as it is, are in a scope already, or have no systemd that gives one.
    """
    if sys.platform != "linux" or os.geteuid() == 0 or GUARD in os.environ:
        return
    found = find_hierarchies() if hierarchies is None else hierarchies
    two = next((hierarchy for hierarchy in found if hierarchy.version == 2), None)
    program = shutil.which("systemd-run")
    if two is None or program is None or _is_given_all(two) or not _works(program):
        return
    os.environ[GUARD] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [program, *_SCOPE, sys.executable, *sys.orig_argv[1:]])


def _is_given_all(hierarchy: Hierarchy) -> bool:
    """Whether our own group may have groups below it, with all that a board takes. A group further
    up might do as well, but is systemd's."""
    try:
        base = find_base(hierarchy)
    except EmulationError:
        return False
    return base.folder == hierarchy.own and base.controllers >= NEEDED


def _works(program: str) -> bool:
    """By doing it: without a user's session there is nobody to ask for a scope."""
    try:
        trial = subprocess.run(
            [program, *_SCOPE, "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return trial.returncode == 0
