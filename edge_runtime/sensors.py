"""What a real board's sensors say, by psutil, which takes a MiB: import this where it is needed."""

from __future__ import annotations

from typing import Any

import psutil


def read_sensors() -> dict[str, float]:
    """Where there is one: `temperature_c` (the hottest), `cpu_mhz` (now, over the cores),
    `battery_share` (of what it can hold), `on_battery` (1, or 0 where it is plugged in)."""
    facts: dict[str, float] = {}
    sensors = _ask("sensors_temperatures") or {}
    if readings := [sensor.current for group in sensors.values() for sensor in group]:
        facts["temperature_c"] = float(max(readings))
    clock = _ask("cpu_freq")
    if clock is not None and clock.current:
        facts["cpu_mhz"] = float(clock.current)
    battery = _ask("sensors_battery")
    if battery is not None:
        facts["battery_share"] = battery.percent / 100
        if battery.power_plugged is not None:
            facts["on_battery"] = float(not battery.power_plugged)
    return facts


def _ask(what: str) -> Any:
    """psutil's answer; None where it knows no such sensor, or the board's driver fails."""
    ask = getattr(psutil, what, None)
    try:
        return None if ask is None else ask()
    except (OSError, RuntimeError, ValueError):
        return None
