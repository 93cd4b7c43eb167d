"""The contract of control groups, held by this host's kernel: version 1 and 2, whichever it has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_profiles.calibration.quota import CpuQuota, of_cores
from device_profiles.emulation.belongings import Belongings, make_run_token
from device_profiles.emulation.control_files import find_hierarchies
from device_profiles.emulation.groups import Group, GroupLimits, Groups, open_groups
from edge_runtime.errors import EmulationError
from tests.device_profiles.kernel_groups import (
    HOG,
    HYDRA,
    PYTHON,
    ROOT,
    SLEEPER,
    eventually,
    folders,
    leashed,
    members,
    start,
    start_and_wait,
)

MIB = 1 << 20
PERIODS = 40
NOBODY = 65534

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="control groups of their own need root"
)


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def groups(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Groups]:
    belongings = Belongings(make_run_token(), tmp_path)
    ours = [hierarchy for hierarchy in find_hierarchies() if hierarchy.version == request.param]
    try:
        yield open_groups(belongings.run, belongings, ours)
    except EmulationError as error:
        pytest.skip(str(error))
    finally:
        assert belongings.remove_all() == []


def share_of_periods(group: Group) -> float:
    """CPU seconds by the seconds of the periods that the group ran in: how loaded the host is does
    not matter."""
    before, period = group.usage(), group.limits().cpu
    assert before.periods is not None and before.cpu_s is not None and period is not None
    assert eventually(lambda: (group.usage().periods or 0) >= before.periods + PERIODS)
    after = group.usage()
    assert after.periods is not None and after.cpu_s is not None
    return (after.cpu_s - before.cpu_s) / (
        (after.periods - before.periods) * period.period_us * 1e-6
    )


def test_limits_are_read_back_as_they_were_set(groups: Groups) -> None:
    core = min(os.sched_getaffinity(0))
    limits = GroupLimits(CpuQuota(0.25, 10_000), 48 * MIB, 12, frozenset({core}))
    for controller in limits.needs:
        if controller not in groups.controllers:
            pytest.skip(groups.why[controller])
    assert groups.create("a", limits).limits() == limits
    free = groups.create("b", GroupLimits()).limits()
    assert (free.cpu, free.memory_bytes, free.pids) == (None, None, None)


def test_a_hog_is_held_to_its_quota_and_to_the_next(groups: Groups) -> None:
    group = groups.create("hog", GroupLimits(cpu=of_cores(0.2)))
    with start_and_wait(group, HOG):
        for cores in (0.2, 0.05, 0.4, 0.1):
            group.set_cpu(of_cores(cores))
            throttled = group.usage().throttled_periods
            assert 0.5 * cores < share_of_periods(group) < 1.5 * cores
            assert (group.usage().throttled_periods or 0) > (throttled or 0)
        group.kill()
    assert members(group) == set()


def test_a_change_of_quota_never_lets_go(groups: Groups) -> None:
    group = groups.create("held", GroupLimits(cpu=of_cores(0.3)))
    seen: list[CpuQuota | None] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(group.limits().cpu)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(300):
        group.set_cpu(of_cores(0.002))
        group.set_cpu(of_cores(0.3))
    done.set()
    watcher.join()
    assert len(seen) > 10 and None not in seen
    group.set_cpu(None)
    assert group.limits().cpu is None
    group.set_cpu(of_cores(0.002))
    assert group.limits().cpu == CpuQuota(0.002, 500_000)


def test_a_quota_that_no_kernel_takes(groups: Groups) -> None:
    with pytest.raises(EmulationError, match="500 us is under the kernel's least, 1000 us"):
        groups.create("a", GroupLimits(cpu=CpuQuota(0.05, 10_000)))
    with pytest.raises(EmulationError, match="over the kernel's most, 1000000 us"):
        groups.create("a", GroupLimits(cpu=CpuQuota(0.05, 2_000_000)))
    group = groups.create("a", GroupLimits(cpu=of_cores(0.5)))  # nothing was left of the others
    with pytest.raises(EmulationError, match="least"):
        group.set_cpu(CpuQuota(0.05, 10_000))
    assert group.limits().cpu == of_cores(0.5)


def test_a_memory_hog_is_killed_at_its_limit_and_counted(groups: Groups) -> None:
    group = groups.create("hog", GroupLimits(memory_bytes=32 * MIB))
    assert group.usage().memory_kills == 0
    hog = start(group, [*PYTHON, "kept = []\nwhile True: kept.append(b'x' * 100_000)"])
    assert hog.wait() == -9
    usage = group.usage()
    assert usage.memory_kills == 1
    assert usage.memory_limit_bytes == 32 * MIB
    if usage.memory_peak_bytes is not None:  # version 2 tells it since Linux 5.19
        assert usage.memory_peak_bytes == 32 * MIB
    modest = start(group, [*PYTHON, "kept = b'x' * 10_000_000"])
    assert modest.wait() == 0
    assert group.usage().memory_kills == 1


def test_processes_are_counted_and_limited(groups: Groups) -> None:
    if "pids" not in groups.controllers:
        pytest.skip(groups.why["pids"])
    group = groups.create("many", GroupLimits(pids=4))
    code = (
        "import os, time\ntry:\n    for n in range(9):\n"
        "        if not os.fork(): time.sleep(600)\n"
        "except BlockingIOError: print(n, flush=True); time.sleep(600)"
    )
    with start(group, [*PYTHON, code]) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "3\n"
        assert group.usage().pids == 4 == len(members(group))
        group.kill()
    assert members(group) == set()


def test_kill_reaches_what_forks_away(groups: Groups) -> None:
    limits = GroupLimits(pids=32) if "pids" in groups.controllers else GroupLimits()
    group = groups.create("hydra", limits)
    with start_and_wait(group, HYDRA):
        group.kill()
        assert members(group) == set()
    group.kill()  # of nobody
    with start_and_wait(group, SLEEPER):  # it is no prison afterwards
        group.remove()
    assert not any(folder.exists() for folder in folders(group))
    group.remove()


def test_close_leaves_nothing(groups: Groups) -> None:
    first, second = groups.create("a", GroupLimits()), groups.create("b", GroupLimits())
    above = {folder.parent for folder in folders(first)}
    with start_and_wait(first, SLEEPER), start_and_wait(second, HOG):
        groups.close()
    assert above and not any(folder.exists() for folder in above)
    groups.close()


def test_what_exists_already_and_names_that_cannot_be(groups: Groups, tmp_path: Path) -> None:
    group = groups.create("a", GroupLimits())
    with pytest.raises(EmulationError, match=r"/a exists already; flexmoe profiles clean"):
        groups.create("a", GroupLimits(pids=5))
    assert all(folder.is_dir() for folder in folders(group))
    for name in ("", "a/b", "..", "a\nb", ".a"):
        with pytest.raises(EmulationError, match="a control group's name"):
            groups.create(name, GroupLimits())
    run = folders(group)[0].parent.name.removeprefix("flexmoe-")
    ours = [h for h in find_hierarchies() if str(h.version) in groups.kind]
    if any(h.own.name.endswith("-self") for h in ours):
        return  # we are in a leaf now, as in a container: another run goes below that
    with pytest.raises(EmulationError, match=rf"flexmoe-{run} exists already; flexmoe profiles"):
        open_groups(run, Belongings("other1", tmp_path), ours)
    assert all(folder.is_dir() for folder in folders(group))


# A run in a group of its own, as in a container or a scope: it makes groups below that.
INNER = """
import os, sys, time
from pathlib import Path
from device_profiles.emulation.belongings import Belongings
from device_profiles.emulation.control_files import find_hierarchies
from device_profiles.emulation.groups import GroupLimits, open_groups
from device_profiles.emulation.janitor import Janitor
from device_profiles.calibration.quota import of_cores
from edge_runtime.errors import EmulationError
from tests.device_profiles.kernel_groups import SLEEPER, start_and_wait
token, notes, version, end = sys.argv[1:]
belongings = Belongings(token, Path(notes))
janitor = Janitor(belongings)
ours = [h for h in find_hierarchies() if h.version == int(version)]
groups = open_groups(token, belongings, ours)
group = groups.create("d1", GroupLimits(cpu=of_cores(0.2), memory_bytes=16 << 20))
child = start_and_wait(group, SLEEPER)
print(janitor.pid, child.pid, group.join[0], flush=True)
if end == "kill":
    time.sleep(600)
print(janitor.close(), flush=True)
print([h.own.name for h in find_hierarchies() if h in ours], flush=True)
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_run_inside_of_a_group(groups: Groups, tmp_path: Path, end: str) -> None:
    outer = groups.create("outer", GroupLimits(cpu=of_cores(0.9), memory_bytes=256 * MIB))
    token, version = make_run_token(), groups.kind[-1]
    command = [sys.executable, "-c", INNER, token, str(tmp_path / "inner"), version, end]
    with subprocess.Popen(
        leashed(outer.join, command), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        words = run.stdout.readline().split()
        assert len(words) == 3
        below = Path(words[2]).parents[1]
        assert below.name == f"flexmoe-{token}"
        assert below.parent in folders(outer)  # and so the outer limits hold for the inner
        if end == "kill":
            run.kill()
        else:
            assert run.stdout.readline() == "[]\n"
            assert "outer" in run.stdout.readline()  # it is where it was
    assert eventually(lambda: members(outer) == set())
    # On version 2 the run's processes are below: the janitor may still be at work.
    assert eventually(lambda: not [p for f in folders(outer) for p in f.glob("flexmoe-*")])
    assert list((tmp_path / "inner").iterdir()) == []


def test_without_permission_there_is_one_line_and_nothing_made() -> None:
    folder = Path(tempfile.mkdtemp(prefix="flexmoe-test-"))
    os.chown(folder, NOBODY, NOBODY)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            open_groups("zzzzzz", Belongings("zzzzzz", folder))
            said = "it could"
        except EmulationError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    shutil.rmtree(folder)
    assert "\n" not in said
    assert "delegated" in said and "root" in said
    assert not any((h.own / "flexmoe-zzzzzz").exists() for h in find_hierarchies())
