"""A fleet: `flexmoe device` processes on this machine, there and away as their plans say."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_profiles.emulation.place import Place
from device_profiles.fleet.availability import Change
from device_profiles.fleet.process import ChildProcess, stop_all
from edge_runtime.errors import FleetError

STOP_GRACE_S = 5.0
RESTART_MOST = 16  # times the usual pause, after ends one upon the other
LIVED_S = 30.0  # whoever ran so long before it ended starts again after the usual pause
_POLL_S = 0.02
_INTERRUPTED = 130  # a device's exit code after SIGTERM


@dataclass(frozen=True)
class Member:
    """One device of a fleet.

    `options` are those of its command line beyond what all have. `changes` say when it comes and
    goes, in seconds of life; `cut`: it goes without a goodbye. `kills` tells how many of its
    processes the kernel has killed for their memory so far; `memory` says which limit that is.
    """

    name: str
    shard: Path
    options: Sequence[str] = ()
    place: Place = field(default_factory=Place)
    changes: Iterator[Change] = field(default_factory=lambda: iter([Change(0.0, True)]))
    cut: bool = False
    kills: Callable[[], int] = lambda: 0
    memory: str = ""


@dataclass(frozen=True)
class FleetSettings:
    """What all devices of a fleet have in common; seconds of life pass `time_scale` times as fast
    as here. A device that ended starts again after `restart_s`, longer each time that it ends soon;
    None: never."""

    host: str
    port: int
    federation: str
    trainer: str
    log_directory: Path
    state_directory: Path
    time_scale: float = 1.0
    restart_s: float | None = None


class Fleet:
    """Device processes by name. Use it as a context manager: leaving it ends them all.

    `tick` has to be called often, from the thread that made the fleet: there devices come and go.
    """

    def __init__(self, members: Sequence[Member], settings: FleetSettings) -> None:
        """Start the devices that are there from the begin."""
        self._settings = settings
        self._lives = {member.name: _Life(member, settings) for member in members}
        self._began_s = time.monotonic()
        self._events: list[str] = []
        try:
            self.tick()
        except BaseException:
            self.stop()
            raise
        self._events.clear()  # that they came is no news

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def present(self) -> int:
        """How many devices are meant to be there now."""
        return sum(life.wanted for life in self._lives.values())

    @property
    def lost(self) -> set[str]:
        """The devices of which a process has ended, with or without an error, but for a stop."""
        return {name for name, life in self._lives.items() if life.lost}

    def stop(self) -> None:
        """End all devices and wait for them."""
        stop_all([life.process for life in self._lives.values() if life.process], STOP_GRACE_S)

    def wait(self, timeout_s: float) -> None:
        """Give devices that were told to stop the time to do so; none comes any more."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and any(life.running for life in self._lives.values()):
            time.sleep(_POLL_S)

    def check_joining(self) -> None:
        """Raise `FleetError`, with the log's last lines, if a device has ended with an error."""
        failed = [said for life in self._lives.values() if (said := life.failure())]
        if failed:
            raise FleetError("; ".join(failed))

    def events(self) -> list[str]:
        """What has happened since the last call: who came, went, was killed, or ended and why."""
        for life in self._lives.values():
            if said := life.failure():
                self._events.append(f"{self._now_s():.1f} s: {said}")
        events, self._events = self._events, []
        return events

    def _now_s(self) -> float:
        """Seconds of life since the fleet began."""
        return (time.monotonic() - self._began_s) * self._settings.time_scale

    def tick(self) -> list[str]:
        """Let devices come and go; the names of those whose memory limit killed them just now."""
        now_s, killed = self._now_s(), list[str]()
        for life in self._lives.values():
            for event in life.tick(now_s):
                self._events.append(f"{now_s:.1f} s: {life.member.name} {event}")
            if life.was_killed:
                life.was_killed = False
                killed.append(life.member.name)
        return killed


class _Life:
    """One device: its process, if it runs, and what comes next."""

    def __init__(self, member: Member, settings: FleetSettings) -> None:
        self.member = member
        self.process: ChildProcess | None = None
        self.wanted = False
        self.was_killed = False
        self.lost = False
        self._settings = settings
        self._changes = member.changes
        self._next = next(self._changes, None)
        self._began_s = 0.0  # of the process
        self._leaving_s: float | None = None
        self._start_s: float | None = None  # when it is to be started again
        self._pause_s = settings.restart_s or 0.0
        self._kills = 0
        self._failure = ""

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def failure(self) -> str:
        """What to say, once, of a process that ended with an error."""
        said, self._failure = self._failure, ""
        return said

    def tick(self, now_s: float) -> list[str]:
        """What is due by `now_s`; what to tell of it."""
        events = self._ended(now_s)
        while self._next is not None and self._next.time_s <= now_s:
            change, self._next = self._next, next(self._changes, None)
            if change.on != self.wanted:
                self.wanted = change.on
                self._start_s = now_s if change.on else None
                if not change.on and self.running:
                    events.append(self._leave(now_s))
                elif change.on:
                    events.append("came")
        if self._leaving_s is not None and self.running and self._overdue(now_s):
            self._signal(signal.SIGKILL)
        # One that is still going comes back when it has gone, and its end has been noted.
        if self._start_s is not None and now_s >= self._start_s and self.process is None:
            self._start(now_s)
        return events

    def _overdue(self, now_s: float) -> bool:
        return now_s - (self._leaving_s or 0.0) > STOP_GRACE_S * self._settings.time_scale

    def _start(self, now_s: float) -> None:
        member, settings = self.member, self._settings
        command = [sys.executable, "-m", "edge_runtime", "device", "--id", member.name]
        command += ["--data", str(member.shard), "--broker", f"{settings.host}:{settings.port}"]
        command += ["--federation", settings.federation, "--trainer", settings.trainer]
        command += ["--state", str(settings.state_directory), *member.options]
        command += ["--shared-host"] if member.place.netns is None else []
        self.process = ChildProcess.start(
            [*command, *member.place.options],
            member.name,
            settings.log_directory / f"{member.name}.log",
            _environment(),
            join=member.place.join,
            netns=member.place.netns,
        )
        self._began_s, self._start_s, self._leaving_s = now_s, None, None

    def _leave(self, now_s: float) -> str:
        if self._leaving_s is None:  # else it is on its way, and has its time for that
            self._leaving_s = now_s
            self._signal(signal.SIGKILL if self.member.cut else signal.SIGTERM)
        return "was cut off" if self.member.cut else "left"

    def _signal(self, number: int) -> None:
        if self.process is not None:
            self.process.signal(number)

    def _ended(self, now_s: float) -> list[str]:
        """Take note of the end of its process."""
        code = self.process.poll() if self.process is not None else None
        if self.process is None or code is None:
            return []
        process, self.process = self.process, None
        self.lost |= code != 0
        kills = self.member.kills()
        killed, self._kills = kills > self._kills, kills
        if killed:
            return [self._killed(now_s)]
        if self._leaving_s is not None or code == 0:
            return []
        lines = " | ".join(process.tail(2).splitlines()) or "it printed nothing"
        again = self._again(now_s)
        self._failure = (
            f"{self.member.name} ended with code {code}: {lines} (log: {process.log_path}){again}"
        )
        return []

    def _killed(self, now_s: float) -> str:
        self.was_killed = True
        limit = f"its memory limit{self.member.memory and f' of {self.member.memory}'}"
        return f"was killed by {limit}{self._again(now_s)}"

    def _again(self, now_s: float) -> str:
        """Start it again after a while, if it is to be there; what to say of that."""
        usual_s = self._settings.restart_s
        if usual_s is None or not self.wanted:
            return ""
        if now_s - self._began_s >= LIVED_S:
            self._pause_s = usual_s
        self._start_s = now_s + self._pause_s
        said = f", starts again in {self._pause_s:g} s"
        self._pause_s = min(2 * self._pause_s, RESTART_MOST * usual_s)
        return said


def _environment() -> Mapping[str, str]:
    # Devices share this machine's cores: numpy's and torch's own threads would fight for them.
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
