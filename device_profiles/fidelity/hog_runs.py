"""Letting hog.py loose in a place, and what it got: of CPU, of memory, of a link."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_profiles.calibration.quota import CpuQuota
from device_profiles.emulation.group import Group
from device_profiles.fidelity import hog
from device_profiles.fleet.process import ChildProcess, stop_all
from edge_runtime.errors import EmulationError
from edge_runtime.transport.lane import SEGMENT_BYTES
from edge_runtime.transport.shape import Shape

Direction = Literal["up", "down"]
_SCRIPT = Path(hog.__file__)
_START_S = 30.0
_POLL_S = 0.01
_SETTLE_PERIODS = 5
# What a quota of 1 ms owes for a tick that came late is paid in up to ten periods of rest.
_REST_PERIODS = 12
_REST_S = 0.004
_LOOK_S = 0.0005
# Undisturbed: the quota ended so many of the periods, and the windows differ by no more than this.
_HELD = 0.9
_STEADY = 0.05
_SKIPPED = 0.25  # of a transfer: the bucket is full when it starts
_BUFFER_S = 0.25
_LEAST_BUFFER_BYTES = 8 * 1024
_MIB_S = 0.02  # a MiB of memory is touched in far less


@dataclass(frozen=True)
class Got:
    """A measured `value`; `disturbed` if other load on this host was in the way."""

    value: float
    disturbed: bool = False


@contextlib.contextmanager
def cpu_hog(group: Group, threads: int, log: Path) -> Iterator[None]:
    """So many processes in `group` that never rest; it has no quota yet when they start.

    `log` is a file of their own.
    """
    group.set_cpu(None)
    command = _command(None, "cpu", str(threads))
    child = ChildProcess.start(command, "cpu hog", log, join=group.join)
    try:
        until_s = time.monotonic() + _START_S
        while child.tail() != hog.READY:
            if child.poll() is not None or time.monotonic() > until_s:
                raise EmulationError(f"the CPU cannot be measured: {child.tail(1) or 'no start'}")
            time.sleep(_POLL_S)
        yield
    finally:
        group.kill()
        stop_all([child])


def cpu_share(
    group: Group, quota: CpuQuota, threads: int, window_s: float, windows: int, periods: int
) -> Got:
    """The cores that a hog in `group` gets under `quota`: the median of some windows.

    Each is `window_s` or so many `periods` long. Disturbed: the quota was not what held the hog
    back, or the windows differ by more than their ends explain.
    """
    group.set_cpu(quota)
    period_s = quota.period_us / 1e6
    time.sleep(max(0.1, _SETTLE_PERIODS * period_s))
    window_s = max(window_s, periods * period_s)
    before = group.usage()
    moments = [_after_rest(group, period_s)]
    for _ in range(windows):
        time.sleep(window_s)
        moments.append(_after_rest(group, period_s))
    after = group.usage()
    shares = [(b.cpu_s - a.cpu_s) / (b.at_s - a.at_s) for a, b in itertools.pairwise(moments)]
    share = statistics.median(shares)
    held = 1.0
    if before.periods is not None and after.periods is not None and quota.cores < threads:
        counted = max(1, after.periods - before.periods)
        held = ((after.throttled_periods or 0) - (before.throttled_periods or 0)) / counted
    ends = quota.quota_us / 1e6 / (window_s * quota.cores)
    spread = (max(shares) - min(shares)) / quota.cores
    return Got(share, held < _HELD or spread > _STEADY + ends)


def memory_at_kill(group: Group, limit_bytes: int, log: Path) -> int | None:
    """The group's peak, in bytes, when the kernel killed a hog in it; None if it did not.

    Where the kernel tells no peak (cgroup v2 before Linux 5.19), the limit that it killed at.
    """
    command = _command(None, "memory", str(2 * limit_bytes))
    child = ChildProcess.start(command, "memory hog", log, join=group.join)
    until_s = time.monotonic() + _START_S + _MIB_S * limit_bytes / (1 << 20)
    try:
        while child.poll() is None and time.monotonic() < until_s:
            time.sleep(_POLL_S)
        usage = group.usage()
        if not usage.memory_kills:
            return None
        return usage.memory_peak_bytes or usage.memory_limit_bytes
    finally:
        group.kill()
        stop_all([child])


class Transfer:
    """Bytes through a device's link, one way, under way since this was made."""

    def __init__(
        self,
        direction: Direction,
        shape: Shape,
        host: str,
        netns: Path | None,
        relayed: Shape | None,
        seconds: float,
        log: Path,
    ) -> None:
        """`shape` is what the link is to be, `relayed` what of it is done in user space.

        `host` is the address by which the device reaches this host from `netns`.
        """
        rate_bps = shape.up_bps if direction == "up" else shape.down_bps
        self._direction = direction
        self._seconds = seconds
        self._buffer_bytes = max(_LEAST_BUFFER_BYTES, int(_BUFFER_S * rate_bps / 8))
        self._arrivals: Sequence[tuple[float, int]] = []
        self._listener = socket.create_server((host, 0))
        port = self._listener.getsockname()[1]
        command = _command(
            relayed,
            "send" if direction == "up" else "receive",
            *(host, str(port), str(seconds), str(self._buffer_bytes)),
        )
        self._child = ChildProcess.start(command, "traffic", log, netns=netns)
        self._log = log
        self._thread = threading.Thread(target=self._serve, name="traffic", daemon=True)
        self._thread.start()

    def rate(self) -> Got | None:
        """Bit/s of payload in the steady part, once it is over; None if too little arrived."""
        self._thread.join()
        if self._direction == "down":
            self._arrivals = self._told()
        stop_all([self._child])
        return steady_rate(self._arrivals, _SKIPPED * self._seconds)

    def close(self) -> None:
        """End it, if it is still under way."""
        stop_all([self._child])
        self._thread.join()

    def _serve(self) -> None:
        """This host's end; the child going away ends it."""
        with self._listener, contextlib.suppress(OSError):
            peer = self._accept()
            with peer:
                if self._direction == "up":
                    self._arrivals = hog.receive(peer, self._seconds)
                else:
                    hog.send(peer, self._seconds, self._buffer_bytes)

    def _accept(self) -> socket.socket:
        """The child's connection; `OSError` if it has ended or is too late."""
        until_s = time.monotonic() + hog.WAIT_S
        self._listener.settimeout(10 * _POLL_S)
        while True:
            try:
                return self._listener.accept()[0]
            except TimeoutError:
                if self._child.poll() is not None or time.monotonic() > until_s:
                    raise

    def _told(self) -> Sequence[tuple[float, int]]:
        """What the child says that it has received."""
        until_s = time.monotonic() + _START_S  # its end of the connection is closed already
        while self._child.poll() is None and time.monotonic() < until_s:
            time.sleep(_POLL_S)
        try:
            arrivals: list[tuple[float, int]] = json.loads(self._log.read_text())
        except (OSError, ValueError):
            return []
        return arrivals


def transfer_s(rate_bps: float, seconds: float, packets: int, most_s: float) -> float:
    """How long to look at a link: `seconds`, or until so many packets have come, if it is slow."""
    needed_s = packets * SEGMENT_BYTES * 8 / rate_bps if rate_bps else 0.0
    return max(seconds, min(most_s, needed_s))


def steady_rate(arrivals: Sequence[tuple[float, int]], skipped_s: float) -> Got | None:
    """Bit/s between two arrivals: the first one after the burst of the start, and the last one.

    Disturbed: its halves differ by more than a tenth. None of fewer than three arrivals.
    """
    if not arrivals:
        return None
    began_s = arrivals[0][0]
    steady = [one for one in arrivals if one[0] >= began_s + skipped_s]
    if len(steady) < 3 or steady[-1][0] <= steady[0][0]:
        return None
    middle = steady[len(steady) // 2]
    rate_bps = _rate(steady[0], steady[-1])
    halves = [_rate(steady[0], middle), _rate(middle, steady[-1])]
    return Got(rate_bps, max(halves) - min(halves) > 0.1 * rate_bps)


def _rate(first: tuple[float, int], last: tuple[float, int]) -> float:
    seconds = last[0] - first[0]
    return 8 * (last[1] - first[1]) / seconds if seconds > 0 else math.inf


@dataclass(frozen=True)
class _Moment:
    at_s: float
    cpu_s: float


def _after_rest(group: Group, period_s: float) -> _Moment:
    """When the group goes on after its quota held it back, and what it had used until then.

    The kernel notices at its tick, 1 to 10 ms apart, that a quota of 1 ms is used up, and has the
    group rest for as many periods as pay for it. Only after such a rest is the account even, but
    for one quota. A group that hardly rests is taken as it is after a while.
    """
    used_s, since_s = _used_s(group), time.monotonic()
    until_s = since_s + max(0.05, _REST_PERIODS * period_s)
    while (now_s := time.monotonic()) < until_s:
        now_used_s = _used_s(group)
        if now_used_s != used_s:
            if now_s - since_s >= _REST_S:
                return _Moment(now_s, used_s)
            used_s, since_s = now_used_s, now_s
        time.sleep(_LOOK_S)
    return _Moment(time.monotonic(), _used_s(group))


def _used_s(group: Group) -> float:
    used_s = group.usage().cpu_s
    if used_s is None:
        raise EmulationError("the CPU cannot be measured: the kernel does not say what a group got")
    return used_s


def _command(relayed: Shape | None, *arguments: str) -> list[str]:
    if relayed is not None:
        return [sys.executable, "-m", hog.__name__, *arguments, str(relayed)]
    return [sys.executable, "-I", "-S", str(_SCRIPT), *arguments]
