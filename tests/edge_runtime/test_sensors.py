"""What a board's sensors say, as far as it has any that work."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from edge_runtime.sensors import read_sensors
from edge_runtime.telemetry import Telemetry


def set_sensors(monkeypatch: pytest.MonkeyPatch, **sensors: object) -> None:
    """What psutil's functions return, or the error that they raise; others are not there."""

    def make(answer: object) -> Callable[[], object]:
        def ask() -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask

    for name in ("sensors_temperatures", "cpu_freq", "sensors_battery"):
        if name in sensors:
            monkeypatch.setattr(psutil, name, make(sensors[name]), raising=False)
        else:
            monkeypatch.delattr(psutil, name, raising=False)


def test_the_sensors_of_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {
        "cpu": [SimpleNamespace(current=41.0), SimpleNamespace(current=55.5)],
        "disk": [SimpleNamespace(current=30.0)],
    }
    battery = SimpleNamespace(percent=75, power_plugged=False)
    set_sensors(
        monkeypatch,
        sensors_temperatures=readings,
        cpu_freq=SimpleNamespace(current=1500),
        sensors_battery=battery,
    )
    hot = {"temperature_c": 55.5, "cpu_mhz": 1500.0, "battery_share": 0.75, "on_battery": 1.0}
    assert read_sensors() == hot
    battery.power_plugged = True
    assert read_sensors() == {**hot, "on_battery": 0.0}
    battery.power_plugged = None
    assert "on_battery" not in read_sensors()
    assert Telemetry().read().keys() >= hot.keys() - {"on_battery"}
    assert not Telemetry(sensors=False).read().keys() & hot.keys()


def test_sensors_that_are_not_there_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    set_sensors(monkeypatch)
    assert read_sensors() == {}
    set_sensors(monkeypatch, sensors_temperatures={}, cpu_freq=None, sensors_battery=None)
    assert read_sensors() == {}
    broken = OSError("the driver"), NotImplementedError("this board"), RuntimeError("that one")
    names = ("sensors_temperatures", "cpu_freq", "sensors_battery")
    set_sensors(monkeypatch, **dict(zip(names, broken, strict=True)))
    assert read_sensors() == {}
