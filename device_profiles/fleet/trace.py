"""A trace of availability: a CSV file of when devices came and went.

::

    time,device,state
    0,device-03,on
    3600,3,off

A header with these columns is required; others beside them are ignored. `time` is in seconds of
life; `device` is a name, or a number counted from 0; `state` is on or off, or 1 or 0. Lines may
stand in any order, those of one device and time count in theirs. A device that no line names is
always on. Before its first line a device is what that line changes: off if it says on, else on.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.errors import ConfigError

LONGEST_S = 1e9  # about 30 years
COLUMNS = ("time", "device", "state")
_STATES = {"on": True, "1": True, "off": False, "0": False}

Lines = tuple[tuple[float, bool], ...]


@dataclass(frozen=True)
class Trace:
    """The lines of a file by device: names, and numbers in plain decimals; (time, on), sorted."""

    file: Path
    lines: Mapping[str, Lines] = field(compare=False, repr=False)

    def switches(self, rng: random.Random, number: int, name: str) -> Iterator[tuple[float, bool]]:
        """(time, on) of device `number`, called `name`; ascending, the first one at 0."""
        named, numbered = self.lines.get(name, ()), self.lines.get(str(number), ())
        # Named both ways only if somebody joined two files; a name of digits is one way.
        both = (named, numbered) if name != str(number) else (named,)
        mine = sorted((line for lines in both for line in lines), key=lambda line: line[0])
        yield 0.0, not mine[0][1] if mine else True
        yield from mine


def read_trace(file: Path) -> Trace:
    """The trace in `file`; raises `ConfigError`, which names the bad line."""
    lines: dict[str, list[tuple[float, bool]]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            columns = _columns(file, next(reader, []))
            for row in reader:
                if row:
                    time_s, device, on = _line(f"{file}, line {reader.line_num}", row, columns)
                    lines.setdefault(device, []).append((time_s, on))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the trace: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{file}: expected a CSV text in UTF-8: {error}") from None
    if not lines:
        raise ConfigError(
            f"{file}: expected at least one line below the header; the trace is empty"
        )
    # Sorting is stable: lines of one time keep their order.
    ordered = {
        device: tuple(sorted(mine, key=lambda line: line[0])) for device, mine in lines.items()
    }
    return Trace(file, ordered)


def _columns(file: Path, header: list[str]) -> tuple[int, int, int]:
    """Where time, device and state stand in a row of as many fields as the header."""
    names = [name.strip().lower() for name in header]
    if any(names.count(column) != 1 for column in COLUMNS):
        raise ConfigError(
            f"{file}, line 1: expected a header with the columns {', '.join(COLUMNS)}; "
            f"got {','.join(header)[:80]!r}"
        )
    return names.index("time"), names.index("device"), names.index("state")


def _line(where: str, row: list[str], columns: tuple[int, int, int]) -> tuple[float, str, bool]:
    """(time, device, on) of a row; `where` begins the error."""
    if len(row) <= max(columns):
        raise ConfigError(f"{where}: expected time, device and state; got {','.join(row)[:80]!r}")
    time, device, state = (row[column].strip() for column in columns)
    try:
        time_s = float(time)
    except ValueError:
        time_s = math.nan
    if not 0 <= time_s <= LONGEST_S:
        raise ConfigError(f"{where}: time: expected 0 to {LONGEST_S:g} seconds; got {time[:80]!r}")
    if not device:
        raise ConfigError(f"{where}: device: expected a name or a number; got nothing")
    if state.lower() not in _STATES:
        raise ConfigError(f"{where}: state: expected on, off, 1 or 0; got {state[:80]!r}")
    if device.isascii() and device.isdigit():
        device = device.lstrip("0") or "0"
    return time_s, device, _STATES[state.lower()]
