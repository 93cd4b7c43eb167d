"""What a round asks of its devices, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from broker_server.processes import Restart
from broker_server.publishing.holdings import frames_of
from broker_server.record import Status
from edge_runtime.errors import WireError
from edge_runtime.parts import ModelParts
from edge_runtime.protocol.messages import LAST_WILL, Assign, Fetch, Report
from edge_runtime.protocol.transfer import MAX_CHUNKS_PER_FETCH, Download


@dataclass(frozen=True)
class Work:
    """What a round asks of its devices.

    `assigns` are planned from what each device is known to hold; `plan` does so again for one, from
    what is known then. `model` is what the updates' changes are added to.
    """

    assigns: Mapping[str, Assign]
    plan: Callable[[str], Assign]
    model: ModelParts


@dataclass(frozen=True)
class Observed:
    """What the server saw of a device at work, whatever it answered.

    `uplink_bytes` of its update arrived in the `uplink_s` seconds of its life since they were asked
    for.
    `telemetry` is that of a report whose update did not arrive whole in time; the device was
    `kept_waiting` if none of it was asked for. It `vanished` if it went without a goodbye and was
    not back when the round closed; it `restarted` if it lost its connection and came as another
    process, and its memory may have been the cause.
    """

    uplink_bytes: int = 0
    uplink_s: float = 0.0
    telemetry: Mapping[str, float] = field(default_factory=dict)
    kept_waiting: bool = False
    vanished: bool = False
    restarted: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of one device's work; with status ``ok`` its update is in the spool.

    `needed_bytes` is what a device says that the work needs, if it failed for lack of memory. Equal
    answers may have been observed differently.
    """

    status: Status
    detail: str = ""
    report: Report | None = None
    needed_bytes: int = 0
    observed: Observed = field(default_factory=Observed, compare=False)

    @property
    def telemetry(self) -> Mapping[str, float]:
        """What the device measured, if it came to report; any figures."""
        return self.report.telemetry if self.report else self.observed.telemetry


@dataclass
class Progress:
    """One device's way through a round; `clock` tells the seconds of its life."""

    work: Work
    assign: Assign
    samples: int
    clock: Callable[[], float]
    deadline_s: float  # that it has in all
    began_s: float = field(init=False)
    report: Report | None = None
    download: Download | None = None
    update_bytes: int = 0  # to download
    asked_s: float | None = None  # for the first chunk
    heard_s: float | None = None  # here: the last chunk, or the begin of waiting for the first
    gone_at_s: float | None = None
    said_goodbye: bool = False  # when it went the last time
    lost: bool = False  # its last will came
    restarts: int = 0  # how often it came as another process
    reborn: bool = False  # and its memory may have been the cause
    plans: int = 1
    repeated: int = 0  # chunks of frames that it asked for
    answer: Answer | None = None

    def __post_init__(self) -> None:
        self.began_s = self.clock()

    def go(self, reason: str) -> None:
        """The device said that it goes, or its last will did."""
        self.gone_at_s, self.said_goodbye = self.clock(), reason != LAST_WILL
        self.lost |= reason == LAST_WILL

    def come(self, restart: Restart | None, sees_ends: bool = False) -> None:
        """It said hello; `restart`: as another process, and why.

        One that ends twice at the same work is suspected whatever its count of kills says: the
        count begins anew where each process has a new group. Not so where the host `sees_ends`.
        """
        self.gone_at_s, self.said_goodbye = None, False
        self.restarts += restart is not None
        twice = restart is not None and self.restarts > 1
        self.reborn |= restart == "unknown" or (twice and not sees_ends)

    def ask_again(self, fetch: Fetch, chunk_bytes: int) -> None:
        """It asks for chunks of its frames; `WireError` once it had each twice, and a window."""
        allowed = sum(2 * ref.chunks(chunk_bytes) for ref in frames_of(self.assign))
        if self.repeated >= allowed + MAX_CHUNKS_PER_FETCH:
            raise WireError("greedy-fetch", f"asked for {self.repeated} chunks in this round")
        asked = sum(want.count for want in fetch.wants)
        self.repeated += max(0, min(asked, MAX_CHUNKS_PER_FETCH))

    def begin_download(self, report: Report, chunk_bytes: int) -> None:
        """The device reported: its update is to be fetched."""
        self.download = Download([report.update], chunk_bytes)
        self.report, self.update_bytes = report, report.update.size_bytes
        self.asked_s = self.heard_s = None

    @property
    def lived_s(self) -> float:
        """How long it has had the work."""
        return self.clock() - self.began_s

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return self.lived_s >= self.deadline_s

    def awaited(self, rejoin_s: float) -> bool:
        """Whether it may still answer; one that is gone has `rejoin_s` to come back."""
        gone = self.gone_at_s is not None and self.clock() - self.gone_at_s >= rejoin_s
        return self.answer is None and not gone and not self.late

    def closed(self) -> Answer:
        """What came of the work; there is no more time for an answer."""
        if self.answer is not None:
            return self.answer
        observed = self.observed()
        if self.gone_at_s is not None:
            return Answer("gone", "disconnected and did not return in time", observed=observed)
        what = "its update was not complete" if self.report else "no answer"
        return Answer("late", f"{what} by the deadline", observed=observed)

    def ask(self) -> None:
        """Chunks of its update are asked for now."""
        if self.asked_s is None:
            self.asked_s = self.clock()

    def observed(self) -> Observed:
        """What was seen of the device until now; its download is open, or was never begun."""
        missing_bytes = self.download.missing_bytes if self.download else self.update_bytes
        return Observed(
            uplink_bytes=self.update_bytes - missing_bytes,
            uplink_s=0.0 if self.asked_s is None else self.clock() - self.asked_s,
            telemetry=self.report.telemetry if self.report else {},
            kept_waiting=self.report is not None and self.asked_s is None,
            vanished=self.gone_at_s is not None and not self.said_goodbye,
            restarted=self.lost and self.reborn,
        )
