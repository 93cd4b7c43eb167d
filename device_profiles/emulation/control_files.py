"""Control groups as files: where they are mounted, which is ours, reading and writing them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from device_profiles.emulation.sweep import PREFIX
from edge_runtime.errors import EmulationError

MOUNTS = Path("/proc/self/mountinfo")
MEMBERSHIP = Path("/proc/self/cgroup")
SWAPS = Path("/proc/swaps")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_CLEAN = "flexmoe profiles clean removes what a run left behind"


@dataclass(frozen=True)
class Hierarchy:
    """A mounted tree of groups. `controllers` are version 1's, empty in version 2; `own` is this
    process's group, or the top of what is mounted if that lies outside, as in a container."""

    version: int
    controllers: frozenset[str]
    mount: Path
    own: Path


def find_hierarchies(mounts: Path = MOUNTS, membership: Path = MEMBERSHIP) -> list[Hierarchy]:
    """All trees of groups that are mounted; none where there are no control groups."""
    try:
        lines, memberships = mounts.read_text().splitlines(), membership.read_text().splitlines()
    except OSError:
        return []
    paths: dict[str, str] = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    found: dict[frozenset[str], Hierarchy] = {}
    for line in lines:
        # 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
        left, _, right = line.partition(" - ")
        root, mount = (_unescape(word) for word in left.split(" ")[3:5])
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        known = set(options.split(",") if kind == "cgroup" else [""]) & paths.keys()
        if not known:
            continue
        own = _below(Path(mount), root, paths[min(known)])
        version, names = (2, frozenset[str]()) if kind == "cgroup2" else (1, frozenset(known))
        if names not in found or found[names].own == found[names].mount:
            found[names] = Hierarchy(version, names, Path(mount), own)
    return list(found.values())


def _below(mount: Path, root: str, path: str) -> Path:
    """Where the group `path` is seen, if `mount` shows the tree from `root` on."""
    try:
        own = mount / Path(path).relative_to(root)
    except ValueError:
        return mount
    if ".." in own.parts:  # outside of what this process's cgroup namespace shows
        return mount
    return own if own.is_dir() else mount


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def read(path: Path) -> str:
    """What the file holds, without space around; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """A whole number; None for "max" and files that cannot be read."""
    text = read(path)
    return int(text) if text.lstrip("-").isdigit() else None


def write(path: Path, text: str) -> None:
    """Write to a file of the kernel's, which is never made by it; `OSError` as the kernel says."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def put(path: Path, text: str) -> None:
    """`write`; `EmulationError` if the kernel refuses."""
    try:
        write(path, text)
    except OSError as error:
        raise refusal(error, f"{path} does not take {text!r}") from None


def make(folder: Path) -> None:
    """Make a group; `EmulationError` if it exists or cannot be made."""
    try:
        folder.mkdir()
    except OSError as error:
        raise refusal(error, f"cannot make the control group {folder}") from None


def refuse_existing(folders: Iterable[Path]) -> None:
    """`EmulationError` if there is one of these groups."""
    for folder in folders:
        if folder.exists():
            raise EmulationError(f"the control group {folder} exists already; {_CLEAN}")


def refusal(error: OSError, what: str) -> EmulationError:
    """What to say of an error, with what can be done about it."""
    advice = {
        errno.EACCES: "be root, or have the group delegated to you",
        errno.EPERM: "be root, or have the group delegated to you",
        errno.EROFS: "mount it writable (in Docker: --privileged)",
        errno.EEXIST: _CLEAN,
    }.get(error.errno or 0)
    said = f"{what}: {error.strerror}"
    return EmulationError(f"{said}; {advice}" if advice else said)


def name_of_run(run: str) -> str:
    """The group above all of a run."""
    return f"{PREFIX}{run}"


def check_name(name: str) -> str:
    """`EmulationError` if a group cannot have this name."""
    if not _NAME.fullmatch(name):
        raise EmulationError(
            f"a control group's name is of letters, digits, '.', '_' and '-', got {name!r}"
        )
    return name


def cpu_list(cpus: Iterable[int]) -> str:
    """As the kernel reads it: ``0,2,3``."""
    return ",".join(map(str, sorted(cpus)))


def cpus_of(text: str) -> frozenset[int]:
    """The kernel's list, ``0,2-3``, as numbers."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def has_swap(swaps: Path = SWAPS) -> bool:
    """Whether this host swaps at all: a line of the file for each place to swap to."""
    return len(read(swaps).splitlines()) > 1
