"""Control groups: which version is of use on this host, and the groups of a run."""

from __future__ import annotations

from collections.abc import Sequence

from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.cgroup_v1 import open_v1
from device_profiles.emulation.cgroup_v2 import open_v2
from device_profiles.emulation.cgroup_v2_base import NEEDED, find_base
from device_profiles.emulation.control_files import Hierarchy, find_hierarchies
from device_profiles.emulation.group import Group, GroupLimits, Groups
from edge_runtime.errors import EmulationError

__all__ = ["Group", "GroupLimits", "Groups", "open_groups"]


def open_groups(
    run: str, belongings: Belongings, hierarchies: Sequence[Hierarchy] | None = None
) -> Groups:
    """A group of the run's own, ``flexmoe-<run>``, below this process's: of the version that has
    more of CPU and memory to give, of version 2 if they are equal.

    Noted in `belongings`. `hierarchies` are this host's. `EmulationError`, with nothing left, if
    neither version lets us.
    """
    found = find_hierarchies() if hierarchies is None else hierarchies
    one = [hierarchy for hierarchy in found if hierarchy.version == 1]
    two = next((hierarchy for hierarchy in found if hierarchy.version == 2), None)
    of_one = NEEDED & {name for hierarchy in one for name in hierarchy.controllers}
    problems: list[str] = []
    if two is not None:
        try:
            if len(find_base(two).controllers & NEEDED) >= len(of_one):
                return open_v2(run, belongings, two)
        except EmulationError as error:
            problems.append(str(error))
    if of_one:
        try:
            return open_v1(run, belongings, one)
        except EmulationError as error:
            problems.append(str(error))
    raise EmulationError("; ".join(problems) or "no control groups are mounted here")
