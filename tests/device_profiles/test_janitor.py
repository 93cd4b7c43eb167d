"""The janitor: whatever end a run comes to, nothing that it has made is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_profiles.emulation import sweep
from device_profiles.emulation.belongings import Belongings, find_leftovers, make_run_token
from device_profiles.emulation.groups import open_groups
from device_profiles.emulation.janitor import Janitor
from edge_runtime.errors import EmulationError
from tests.device_profiles.kernel_groups import ROOT, eventually

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

# A run that has a group with a process in it that outlives its parent, and waits for its end.
OWNER = """
import subprocess, sys, time
from pathlib import Path
from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.groups import GroupLimits, open_groups
from device_profiles.emulation.janitor import Janitor
from tests.device_profiles.kernel_groups import SLEEPER
belongings = Belongings(sys.argv[1], Path(sys.argv[2]))
janitor = Janitor(belongings)
group = open_groups(belongings.run, belongings).create("d1", GroupLimits())
child = subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL, start_new_session=True)
for file in group.join:
    file.write_text(str(child.pid))
print(janitor.pid, child.pid, *(file.parent.parent for file in group.join), flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def belongings(tmp_path: Path) -> Iterator[Belongings]:
    made = Belongings(make_run_token(), tmp_path / "notes")
    yield made
    assert made.remove_all() == []


def test_the_normal_end(belongings: Belongings, tmp_path: Path) -> None:
    janitor = Janitor(belongings)
    group = tmp_path / f"flexmoe-{belongings.run}"
    belongings.note("group", group)
    (group / "d1").mkdir(parents=True)
    assert runs(janitor.pid) and group.exists()
    assert os.getsid(janitor.pid) == janitor.pid != os.getsid(0)
    assert janitor.close() == []
    assert not group.exists() and not belongings.path.exists() and not runs(janitor.pid)
    assert janitor.close() == []


def test_what_it_cannot_remove_is_told(belongings: Belongings, tmp_path: Path) -> None:
    janitor = Janitor(belongings)
    belongings.note("group", tmp_path)
    assert janitor.close() == [f"group {tmp_path}: not one of ours"]
    belongings.path.unlink()


def test_it_is_deaf_to_signals(belongings: Belongings, tmp_path: Path) -> None:
    janitor = Janitor(belongings)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(janitor.pid, number)
    group = tmp_path / f"flexmoe-{belongings.run}"
    belongings.note("group", group)
    group.mkdir()
    assert janitor.close() == []
    assert not group.exists()


def test_a_janitor_that_was_killed_is_stood_in_for(belongings: Belongings, tmp_path: Path) -> None:
    janitor = Janitor(belongings)
    group = tmp_path / f"flexmoe-{belongings.run}"
    belongings.note("group", group)
    group.mkdir()
    os.kill(janitor.pid, signal.SIGKILL)
    assert janitor.close() == []
    assert not group.exists()


def test_one_that_cannot_start(belongings: Belongings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EmulationError, match=r"cannot start the janitor: .*no/such/python"):
        Janitor(belongings)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(EmulationError, match="the janitor ended at once, with code 1"):
        Janitor(belongings)


def test_it_imports_the_standard_library_alone() -> None:
    """And little of that: it is there as long as the run is."""
    code = f"import runpy, sys; runpy.run_path({sweep.__file__!r}); print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    tops = {name.partition(".")[0] for name in run.stdout.split()}
    assert tops <= sys.stdlib_module_names | {"__main__"}
    assert not tops & {"asyncio", "ctypes", "logging", "tempfile"}


def _groups_can_be_made() -> str:
    """Nothing if they can, else why not."""
    trial = Belongings(make_run_token())
    try:
        open_groups(trial.run, trial)
    except EmulationError as error:
        return str(error)
    finally:
        trial.remove_all()
    return ""


@pytest.mark.skipif(not IS_ROOT, reason="control groups of their own need root")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_sudden_end(tmp_path: Path, end: int) -> None:
    if why := _groups_can_be_made():
        pytest.skip(why)
    token, notes = make_run_token(), tmp_path / "notes"
    argv = [sys.executable, "-c", OWNER, token, str(notes)]
    # A session of its own: a Ctrl-C in a terminal goes to all processes of the group.
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as owner:
        assert owner.stdout is not None
        first, second, *folders = owner.stdout.readline().split()
        janitor, child = int(first), int(second)
        assert runs(janitor) and runs(child)
        assert folders and all(Path(folder).is_dir() for folder in folders)
        assert find_leftovers(notes) == []
        os.killpg(owner.pid, end)
    assert eventually(lambda: not runs(janitor))
    assert not runs(child)
    assert not any(Path(folder).exists() for folder in folders)
    assert list(notes.iterdir()) == []


@pytest.mark.skipif(not IS_ROOT, reason="control groups of their own need root")
def test_clean_removes_what_a_run_and_its_janitor_left(tmp_path: Path) -> None:
    if why := _groups_can_be_made():
        pytest.skip(why)
    token, notes = make_run_token(), tmp_path / "notes"
    argv = [sys.executable, "-c", OWNER, token, str(notes)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        first, second, *folders = owner.stdout.readline().split()
        os.kill(int(first), signal.SIGKILL)
        owner.kill()
    assert runs(int(second)) and all(Path(folder).is_dir() for folder in folders)
    (left,) = find_leftovers(notes)
    assert left.run == token
    assert left.remove_all() == []
    assert not runs(int(second)) and not any(Path(folder).exists() for folder in folders)


@pytest.mark.skipif(not IS_ROOT, reason="network namespaces need root")
@pytest.mark.skipif(shutil.which("ip") is None, reason="no program ip")
def test_namespaces_and_interfaces(belongings: Belongings) -> None:
    name = f"fx{belongings.run}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(made.stderr.strip())
    belongings.note("netns", name)
    belongings.note("netns", f"{name}none")
    for interface in (f"{name}a", f"{name}b", f"{name}none"):
        belongings.note("interface", interface)
    # One end in the namespace goes with it, and so does the other; the bridge does not.
    run = ["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", "eth0", "netns", name]
    subprocess.run(run, check=True)
    subprocess.run(["ip", "link", "add", f"{name}b", "type", "bridge"], check=True)
    there = Path("/sys/class/net")
    assert (there / f"{name}a").exists() and (there / f"{name}b").exists()
    assert belongings.remove_all() == []
    assert not Path("/run/netns", name).exists()
    assert not (there / f"{name}a").exists() and not (there / f"{name}b").exists()


def test_what_ip_says_is_told(
    belongings: Belongings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PATIENCE_S", 0.05)
    belongings.note("interface", "lo")
    ip = tmp_path / "ip"
    ip.write_text('#!/bin/sh\nread line\necho "cannot $line" >&2\nexit 1\n')
    ip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert belongings.remove_all() == ["interface lo: cannot link del lo"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert belongings.remove_all() == ["interface lo: ip: No such file or directory"]
    belongings.path.unlink()
