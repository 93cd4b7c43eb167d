"""Telemetry: the promised keys, true to the process, its cgroup and the board."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from edge_runtime import telemetry
from edge_runtime.cgroup import Limits, Usage, read_limits
from edge_runtime.interface import InterfaceUsage
from edge_runtime.telemetry import Telemetry, memory_available_bytes, usable_memory_bytes

MIB = 1 << 20
PROCESS = {"wall_s", "turn_wait_s", "cpu_s", "cpu_share", "rss_mib", "peak_rss_mib", "usable_cores"}
QUOTA = {"throttled_s", "throttled_share"}
MEMORY = {"memory_limit_mib", "memory_used_mib", "memory_peak_mib", "memory_kills"}
INTERFACE = {"interface_up_bytes", "interface_down_bytes", "interface_drops"}
DISK = {"disk_read_bytes", "disk_write_bytes"}
HOST = {"host_wait_s", "load_1m"}
SENSORS = {"temperature_c", "cpu_mhz", "battery_share", "on_battery"}
SOMETIMES = QUOTA | MEMORY | INTERFACE | DISK | HOST | SENSORS
NO_LIMITS = Limits(None, None, None, None)


def use_cpu(seconds: float) -> None:
    """Work until the process has used so much CPU time more."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def set_limits(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    monkeypatch.setattr(telemetry, "read_limits", lambda: limits)


def set_usage(monkeypatch: pytest.MonkeyPatch, usage: Usage) -> None:
    monkeypatch.setattr(telemetry, "read_usage", lambda: usage)


def test_keys_and_values() -> None:
    facts = Telemetry().read()
    assert facts.keys() >= PROCESS and facts.keys() <= PROCESS | SOMETIMES
    assert all(type(value) is float and math.isfinite(value) for value in facts.values())
    assert facts["wall_s"] >= 0 and facts["cpu_s"] >= 0
    assert facts["peak_rss_mib"] >= facts["rss_mib"] > 1
    assert 0 < facts["usable_cores"] <= (os.cpu_count() or 1)


def test_cpu_time_is_that_of_the_span() -> None:
    watch = Telemetry()
    use_cpu(0.1)
    first = watch.read()
    use_cpu(0.1)
    second = watch.read()
    # The kernel's clock for this ticks every 10 ms.
    assert 0.08 <= first["cpu_s"] < second["cpu_s"] - 0.05
    assert first["wall_s"] < second["wall_s"]
    assert second["cpu_share"] == pytest.approx(second["cpu_s"] / second["wall_s"])
    watch.begin()
    assert watch.read()["cpu_s"] < first["cpu_s"]


def test_memory_that_is_held_shows() -> None:
    before = Telemetry().read()["rss_mib"]
    held = np.ones(32 * MIB, np.uint8)
    during = Telemetry().read()
    assert during["rss_mib"] > before + 24
    del held
    after = Telemetry().read()
    # The kernel counts a process's pages in batches.
    assert after["peak_rss_mib"] > during["rss_mib"] - 1


def test_the_states_of_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only what they grew by; what training may use is what the limit leaves."""
    set_limits(monkeypatch, Limits(64 * MIB, 48 * MIB, 16 * MIB, 0.5))
    used = Usage(
        memory_bytes=40 * MIB,
        memory_peak_bytes=60 * MIB,
        memory_limit_bytes=80 * MIB,
        memory_kills=3,
    )
    set_usage(monkeypatch, used)
    facts = Telemetry().read()
    assert {name: facts[name] for name in MEMORY} == {
        "memory_limit_mib": 64.0,
        "memory_used_mib": 40.0,
        "memory_peak_mib": 60.0,
        "memory_kills": 3.0,
    }
    assert memory_available_bytes() == 16 * MIB
    set_usage(monkeypatch, Usage())  # of the own group nothing is known
    assert Telemetry().read()["memory_used_mib"] == 48.0


def test_outside_a_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, NO_LIMITS)
    set_usage(monkeypatch, Usage())
    assert not Telemetry().read().keys() & (MEMORY | QUOTA)
    monkeypatch.setattr(telemetry, "_host_available_bytes", lambda: 123 * MIB)
    assert memory_available_bytes() == 123 * MIB


def grown(
    monkeypatch: pytest.MonkeyPatch, before: Usage, after: Usage, time_scale: float = 1.0
) -> dict[str, float]:
    """What is told of a span in which the group's usage went from `before` to `after`."""
    set_usage(monkeypatch, before)
    watch = Telemetry(time_scale)
    set_usage(monkeypatch, after)
    return watch.read()


def test_counters_are_told_by_their_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Usage(periods=100, throttled_periods=60, throttled_s=1.5, disk_read_bytes=5)
    before = dataclasses.replace(before, disk_write_bytes=7, memory_kills=2)
    after = Usage(periods=150, throttled_periods=70, throttled_s=1.75, disk_read_bytes=11)
    after = dataclasses.replace(after, disk_write_bytes=7, memory_kills=2)
    facts = grown(monkeypatch, before, after)
    assert (facts["throttled_s"], facts["throttled_share"]) == (0.25, 0.2)
    assert (facts["disk_read_bytes"], facts["disk_write_bytes"]) == (6.0, 0.0)
    assert facts["memory_kills"] == 2.0


def test_without_a_quota_nothing_was_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Usage(periods=0, throttled_periods=0, throttled_s=0.0)
    facts = grown(monkeypatch, idle, idle)
    assert facts["throttled_s"] == facts["throttled_share"] == 0.0


def test_a_group_made_anew_has_no_negative_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Usage(periods=9, throttled_periods=8, throttled_s=7.0, disk_read_bytes=6)
    before = dataclasses.replace(before, disk_write_bytes=5)
    after = Usage(periods=0, throttled_periods=0, throttled_s=0.0, disk_read_bytes=0)
    facts = grown(monkeypatch, before, dataclasses.replace(after, disk_write_bytes=0))
    assert not any(facts[name] for name in QUOTA | DISK)


def test_seconds_are_those_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but CPU seconds, which are this host's."""
    now_s = [100.0, 5.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0], process_time=lambda: now_s[1])
    monkeypatch.setattr(telemetry, "time", clock)
    monkeypatch.setattr(telemetry, "_run_delay_s", lambda: now_s[0])
    set_usage(monkeypatch, Usage(throttled_s=1.0))
    watch = Telemetry(8.0)
    set_usage(monkeypatch, Usage(throttled_s=1.5))
    now_s[:] = 104.0, 6.0
    facts = watch.read(2.0, fetch_s=0.25, train_s=0.5)
    assert facts["wall_s"] == (4.0 - 2.0) * 8 and facts["turn_wait_s"] == 2.0 * 8
    assert (facts["fetch_s"], facts["train_s"], facts["throttled_s"]) == (2.0, 4.0, 4.0)
    assert facts["cpu_s"] == 1.0 and facts["cpu_share"] == 0.5
    assert facts["host_wait_s"] == (4.0 - 0.5) * 8  # ready, not running, and not throttled


def test_the_kernel_counts_a_wait_for_a_core(tmp_path: Path) -> None:
    """Two who want one core: each waits about as long as the other runs."""
    if telemetry._run_delay_s() is None or not hasattr(os, "sched_setaffinity"):
        pytest.skip("this kernel does not count it")
    code = """
import os, time
from edge_runtime.telemetry import Telemetry

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = os.fork()
if not other:
    while True:
        pass
try:
    watch = Telemetry()
    while time.process_time() < 0.4 and watch.read()["wall_s"] < 10:
        sum(range(10000))
    print(watch.read()["host_wait_s"])
finally:
    os.kill(other, 9)
    os.waitpid(other, 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) > 0.05


def test_disk_bytes_are_the_processs_where_the_group_tells_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = [(100, 10), (130, 10)]
    monkeypatch.setattr(telemetry, "_own_disk_bytes", lambda: own.pop(0))
    facts = grown(monkeypatch, Usage(disk_read_bytes=1), Usage(disk_read_bytes=1))
    assert (facts["disk_read_bytes"], facts["disk_write_bytes"]) == (30.0, 0.0)
    monkeypatch.setattr(telemetry, "_own_disk_bytes", lambda: None)
    assert not grown(monkeypatch, Usage(), Usage()).keys() & DISK


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_what_the_process_wrote_to_disk() -> None:
    read, written = telemetry._own_disk_bytes() or (-1, -1)
    assert read >= 0 and written >= 0


def test_the_interface_is_told_if_it_carries_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [InterfaceUsage(100, 1000, 7), InterfaceUsage(150, 3000, 9)]
    monkeypatch.setattr(telemetry, "read_interfaces", lambda: counts.pop(0))
    facts = Telemetry().read()
    assert [facts[name] for name in sorted(INTERFACE)] == [2000.0, 2.0, 50.0]
    assert not Telemetry(interface=False).read().keys() & INTERFACE
    monkeypatch.setattr(telemetry, "read_interfaces", lambda: None)
    assert not Telemetry().read().keys() & INTERFACE


def test_available_memory_is_the_hosts_where_the_cgroup_leaves_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "_host_available_bytes", lambda: 100 * MIB)
    set_limits(monkeypatch, Limits(1 << 40, 0, 1 << 40, None))
    assert memory_available_bytes() == 100 * MIB
    set_limits(monkeypatch, Limits(50 * MIB, 50 * MIB, 0, None))
    assert memory_available_bytes() == 0


def test_the_hosts_free_memory_is_the_one_that_psutil_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = telemetry._host_available_bytes()
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    monkeypatch.setattr(telemetry, "_sizes", lambda path: {})  # a system without /proc
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=123))
    assert telemetry._host_available_bytes() == 123


def test_available_memory_of_this_process() -> None:
    available = memory_available_bytes()
    assert type(available) is int and 0 < available <= psutil.virtual_memory().total
    limit = read_limits().memory_bytes
    assert limit is None or available <= limit


@pytest.mark.parametrize(
    ("limit", "held", "usable"),
    [(None, 0, 100), (None, 30, 130), (120, 0, 100), (120, 15, 115), (120, 30, 120), (1, 0, 1)],
)
def test_usable_memory_is_what_is_free_or_held_up_to_the_limit(
    limit: int | None, held: int, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "memory_available_bytes", lambda: 100)
    assert usable_memory_bytes(limit, held) == usable


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil tells the memory too")
def test_without_sensors_psutil_is_not_loaded() -> None:
    code = (
        "import sys; from edge_runtime.telemetry import Telemetry; "
        "Telemetry(sensors=False).read(); print('psutil' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_the_peak_is_not_that_of_the_process_which_started_this_one() -> None:
    ballast = np.ones(40 << 20, np.uint64)  # 320 MiB, resident
    code = "from edge_runtime.telemetry import Telemetry; print(Telemetry().read()['peak_rss_mib'])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < ballast.nbytes / (1 << 20) / 2
