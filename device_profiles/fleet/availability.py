"""When a device is there: arrivals, departures, churn and traces.

| word            | the device                                                                   |
|-----------------|------------------------------------------------------------------------------|
| `always`        | is on                                                                        |
| `arrive(a,b)`   | comes at a random second from a to b, all equally likely                     |
| `depart(a,b)`   | goes for good at a random second from a to b                                 |
| `churn(on,off)` | begins on, then goes and comes; both times exponential with these means      |
| `trace(FILE)`   | does what a CSV file says ([trace.py](trace.py))                             |

Joined by `+`, a device is on while all parts say so. All times are seconds of life.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from device_profiles.fleet.trace import LONGEST_S, Trace, read_trace
from edge_runtime.errors import ConfigError

SHORTEST_MEAN_S = 1e-3
ALLOWED = "always, arrive(a,b), depart(a,b), churn(on,off) or trace(FILE.csv), joined by +"


@dataclass(frozen=True)
class Change:
    """From `time_s` on (s of life) the device is there, or it is not."""

    time_s: float
    on: bool


class Part(Protocol):
    """One of what `+` joins."""

    def switches(self, rng: random.Random, number: int, name: str) -> Iterator[tuple[float, bool]]:
        """(time, on), ascending; the first one, at 0, is the state at the beginning."""
        ...


@dataclass(frozen=True)
class Always:
    """On."""

    def switches(self, rng: random.Random, number: int, name: str) -> Iterator[tuple[float, bool]]:
        yield 0.0, True


@dataclass(frozen=True)
class Once:
    """Comes (`on`), or goes for good, at a random second from `first_s` to `last_s`."""

    on: bool
    first_s: float
    last_s: float

    def switches(self, rng: random.Random, number: int, name: str) -> Iterator[tuple[float, bool]]:
        yield 0.0, not self.on
        yield self.first_s + (self.last_s - self.first_s) * rng.random(), self.on


@dataclass(frozen=True)
class Churn:
    """On and off in turns without end, for exponential times of these means; begins on."""

    on_s: float
    off_s: float

    def switches(self, rng: random.Random, number: int, name: str) -> Iterator[tuple[float, bool]]:
        time_s, on = 0.0, True
        while True:
            yield time_s, on
            # By the inverse of the distribution, so that Python's version makes no difference.
            time_s -= (self.on_s if on else self.off_s) * math.log1p(-rng.random())
            on = not on


@dataclass(frozen=True)
class Availability:
    """When the devices of a fleet are there; equal for equal texts and files."""

    spec: str
    parts: tuple[Part, ...]

    def devices(self) -> set[str]:
        """Names, and numbers in plain decimals, that its traces name; empty without a trace."""
        traces = (part for part in self.parts if isinstance(part, Trace))
        return {device for trace in traces for device in trace.lines}

    def changes(self, seed: int, number: int, name: str) -> Iterator[Change]:
        """When device `number` of the fleet, called `name`, comes and goes.

        Times ascend, states alternate, and the first change, at 0, tells the state at the
        beginning. It ends after the last change; churn has none. The same (seed, number) give the
        same changes, whatever else was asked before.
        """
        streams = [
            part.switches(random.Random(f"availability {seed} {number} {index}"), number, name)
            for index, part in enumerate(self.parts)
        ]
        states = [False] * len(streams)
        coming = [(*next(stream), index) for index, stream in enumerate(streams)]
        heapq.heapify(coming)
        told: bool | None = None
        ended = False
        while coming and not ended:
            now_s = coming[0][0]
            while coming and coming[0][0] == now_s:
                _, on, index = coming[0]
                states[index] = on
                following = next(streams[index], None)
                if following is None:
                    heapq.heappop(coming)
                    # Off for good: what churn beside it does no longer matters.
                    ended = ended or not on
                else:
                    heapq.heapreplace(coming, (*following, index))
            there = all(states)
            if there != told:
                told = there
                yield Change(now_s, there)


def parse_availability(spec: str, folder: Path | None) -> Availability:
    """Read e.g. `arrive(0,60)+churn(600,60)`; a trace's relative path starts at `folder`.

    Raises `ConfigError`, also for a trace that cannot be read.
    """
    return Availability(spec, tuple(_part(text, folder) for text in _split(spec)))


def _split(spec: str) -> list[str]:
    """The texts between the `+` that stand outside brackets."""
    texts, depth = [""], 0
    for character in spec:
        depth += (character == "(") - (character == ")")
        if character == "+" and depth <= 0:
            texts.append("")
        else:
            texts[-1] += character
    return [text.strip() for text in texts]


def _part(text: str, folder: Path | None) -> Part:
    word, bracket, rest = text.partition("(")
    word, argument = word.strip(), rest[:-1].strip()
    closed = rest.endswith(")") if bracket else True
    if text == "always":
        return Always()
    if word in ("arrive", "depart") and bracket and closed:
        first_s, last_s = _two_numbers(argument)
        if 0 <= first_s <= last_s <= LONGEST_S:
            return Once(word == "arrive", first_s, last_s)
        raise ConfigError(
            f"availability: {word} expected two seconds, 0 <= a <= b <= {LONGEST_S:g}; got {text!r}"
        )
    if word == "churn" and bracket and closed:
        on_s, off_s = _two_numbers(argument)
        if all(SHORTEST_MEAN_S <= mean_s <= LONGEST_S for mean_s in (on_s, off_s)):
            return Churn(on_s, off_s)
        raise ConfigError(
            "availability: churn expected two means in seconds, each from "
            f"{SHORTEST_MEAN_S:g} to {LONGEST_S:g}; got {text!r}"
        )
    if word == "trace" and closed and argument and argument.isprintable():
        return read_trace(Path(folder or "", argument))
    raise ConfigError(f"availability: expected {ALLOWED}; got {text!r}")


def _two_numbers(text: str) -> tuple[float, float]:
    """Two numbers with a comma between; NaN, which is in no range, for anything else."""
    first, _, second = text.partition(",")
    try:
        return float(first), float(second)
    except ValueError:
        return math.nan, math.nan
