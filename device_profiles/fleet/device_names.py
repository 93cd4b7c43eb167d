"""The names of a fleet's devices: ``device-00``, ``device-01``, ..."""

from __future__ import annotations

import re

_NAME = re.compile(r"device-(\d{2,7})", re.ASCII)


def device_names(count: int) -> list[str]:
    """The names of `count` devices, in order; all of one length."""
    width = max(2, len(str(count - 1)))
    return [f"device-{number:0{width}d}" for number in range(count)]


def number_of(name: str) -> int | None:
    """Which device of its fleet this is, counted from 0; None if it is no such name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None
