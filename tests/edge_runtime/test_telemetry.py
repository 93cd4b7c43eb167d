"""Telemetry: the promised keys, true to the process, its cgroup and the board."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from edge_runtime import telemetry
from edge_runtime.cgroup import Limits, read_limits
from edge_runtime.telemetry import Telemetry, memory_available_bytes, usable_memory_bytes

MIB = 1 << 20
ALWAYS = {"wall_s", "cpu_s", "cpu_share", "rss_mib", "peak_rss_mib", "usable_cores"}
SOMETIMES = {"memory_limit_mib", "memory_used_mib", "load_1m", "temperature_c"}


def use_cpu(seconds: float) -> None:
    """Work until the process has used so much CPU time more."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def set_limits(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    monkeypatch.setattr(telemetry, "read_limits", lambda: limits)


def test_keys_and_values() -> None:
    facts = Telemetry().read()
    assert facts.keys() >= ALWAYS and facts.keys() <= ALWAYS | SOMETIMES
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


def test_the_cgroups_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, Limits(64 * MIB, 48 * MIB, 16 * MIB, 0.5))
    facts = Telemetry().read()
    assert (facts["memory_limit_mib"], facts["memory_used_mib"]) == (64.0, 48.0)
    assert memory_available_bytes() == 16 * MIB


def test_outside_a_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, Limits(None, None, None, None))
    assert not Telemetry().read().keys() & {"memory_limit_mib", "memory_used_mib"}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=123 * MIB))
    assert memory_available_bytes() == 123 * MIB


def test_available_memory_is_the_hosts_where_the_cgroup_leaves_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * MIB))
    set_limits(monkeypatch, Limits(1 << 40, 0, 1 << 40, None))
    assert memory_available_bytes() == 100 * MIB
    set_limits(monkeypatch, Limits(50 * MIB, 50 * MIB, 0, None))
    assert memory_available_bytes() == 0


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


def test_the_hottest_sensor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {
        "cpu": [SimpleNamespace(current=41.0), SimpleNamespace(current=55.5)],
        "disk": [SimpleNamespace(current=30.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: readings, raising=False)
    assert Telemetry().read()["temperature_c"] == 55.5
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    assert "temperature_c" not in Telemetry().read()
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert "temperature_c" not in Telemetry().read()


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_the_peak_is_not_that_of_the_process_which_started_this_one() -> None:
    ballast = np.ones(40 << 20, np.uint64)  # 320 MiB, resident
    code = "from edge_runtime.telemetry import Telemetry; print(Telemetry().read()['peak_rss_mib'])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < ballast.nbytes / (1 << 20) / 2
