"""One device's life: say hello, take work, fetch what it lacks, train, report, until told to stop.

One thread runs all of it. The link's own thread only fills the inbox, so training never blocks the
network; between two training steps the agent looks into the inbox and answers what is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.blob import BlobShelf
from edge_runtime.codec import Codec
from edge_runtime.errors import FlexmoeError, ProgramError, WireError
from edge_runtime.greeting import Greeting, Refused
from edge_runtime.local_gate import LocalGate
from edge_runtime.mailbox import DeviceMailbox
from edge_runtime.messages import (
    Assign,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Message,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Welcome,
    same_work,
)
from edge_runtime.shard import Shard
from edge_runtime.telemetry import Telemetry
from edge_runtime.trainer import Trainer, in_mib
from edge_runtime.transfer import Download, serve
from edge_runtime.work import TooLarge, check_work, references
from edge_runtime.workbench import Workbench

log = logging.getLogger("flexmoe.device")

POLL_S = 0.5


class Stopped(Exception):
    """The server ended the run; the reason is the message."""


class Superseded(Exception):
    """Other work arrived while this was under way."""


@dataclass(frozen=True)
class _Finished:
    """Work that is done: kept until the server has collected it."""

    assign: Assign
    report: Report
    blobs: dict[bytes, bytes]
    at_s: float


@dataclass
class _Session:
    """What a device remembers of one session: nothing of it survives into the next."""

    name: str = ""
    next_work: Assign | None = None
    doing: Assign | None = None
    finished: _Finished | None = None
    upload_s: float = 0.0


class Agent:
    """A device. `live()` returns the reason for which the server ended it."""

    def __init__(
        self,
        mailbox: DeviceMailbox,
        shard: Shard,
        trainer: Trainer,
        codec: Codec,
        shelf: BlobShelf,
        local_gate: LocalGate | None = None,
        memory_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory_limit_bytes`: what training may use; None: what is free when it begins."""
        local_gate = local_gate or LocalGate()
        self._mailbox = mailbox
        self._shelf = shelf
        self._local_gate = local_gate
        self._workbench = Workbench(
            trainer, shard, codec, shelf, local_gate, memory_limit_bytes, clock
        )
        self._greeting = Greeting(mailbox, shard, trainer.name, memory_limit_bytes, clock)
        self._clock = clock
        self._telemetry = Telemetry()
        self._session = _Session()
        self._download: Download | None = None
        self._socket_bytes = (0, 0)  # sent and received, at the last report

    def live(self) -> str:
        """Serve until the server says stop. `Refused` if this device cannot take part."""
        try:
            while True:
                self._do(self._next_work())
        except Stopped as stopped:
            return str(stopped)

    def leave(self, reason: str) -> None:
        """Tell the server that this device goes; a dead connection tells it by its last will."""
        self._mailbox.send(Gone(reason))

    # --- one round -----------------------------------------------------------------------------

    def _next_work(self) -> Assign:
        while self._session.next_work is None:
            self._turn(POLL_S)
        work, self._session.next_work = self._session.next_work, None
        return work

    def _do(self, work: Assign) -> None:
        done = self._session.finished
        if done is not None and done.assign == work:
            self._mailbox.send(done.report)  # the server asks again for what it lost
            return
        session = self._session
        session.finished, session.doing = None, work
        try:
            session.finished = self._work(work)
            self._mailbox.send(session.finished.report)
        except Superseded:
            log.info("round %d: given up for newer work", work.round)
        except Refused:
            raise
        except (FlexmoeError, MemoryError) as error:
            log.error("round %d: %s", work.round, error)
            needed = error.needed_bytes if isinstance(error, TooLarge) else 0
            why = str(error) or "the device ran out of memory"
            self._mailbox.send(Failed(work.session, work.round, work.attempt, why[:500], needed))
        finally:
            session.doing = None

    def _work(self, work: Assign) -> _Finished:
        """Fetch, train, evaluate; the report and the update that it names."""
        check_work(work)
        self._telemetry.begin()
        with self._shelf.hold(ref.digest for ref in references(work)):
            began_s = self._clock()
            fetch_bytes = self._fetch(work)
            fetch_s = self._clock() - began_s
            before = self._workbench.prepare(work)
            # Of earlier rounds keep as much again: an expert may come back as it was.
            self._shelf.trim(2 * sum(ref.size_bytes for ref in references(work)))
        outcome = self._workbench.train(work, before, lambda: self._out_of_date(work))
        if outcome is None:
            raise Superseded
        result, tested = outcome.result, outcome.tested
        report = Report(
            session=work.session,
            round=work.round,
            attempt=work.attempt,
            experts=work.experts,
            usage=result.usage,
            loss=result.loss,
            hits=result.hits,
            train_loss=result.train_loss,
            test_hits=tested.hits,
            test_samples=tested.samples,
            telemetry={
                **self._telemetry.read(),
                "fetch_s": fetch_s,
                "fetch_bytes": float(fetch_bytes),
                "train_s": outcome.train_s,
                "train_steps": float(result.steps),
                "previous_upload_s": self._session.upload_s,
                **self._bytes_moved(),
            },
            update=[ref for ref, _ in outcome.update],
        )
        log.info("round %d: experts %s, loss %.4f", work.round, work.experts, result.train_loss)
        blobs = {ref.digest: data for ref, data in outcome.update}
        return _Finished(work, report, blobs, self._clock())

    def _bytes_moved(self) -> dict[str, float]:
        """What the socket moved: since the device started, and since the last report."""
        link, before = self._mailbox.link, self._socket_bytes
        sent, received = self._socket_bytes = (link.sent_bytes, link.received_bytes)
        return {
            "socket_sent_bytes": float(sent),
            "socket_received_bytes": float(received),
            "uplink_bytes": float(sent - before[0]),
            "downlink_bytes": float(received - before[1]),
        }

    def _fetch(self, work: Assign) -> int:
        """Ask for what is not on the shelf, a window of chunks at a time, until all is there.

        Returns how many bytes of blobs that was.
        """
        sizes = {ref.digest: ref.size_bytes for ref in references(work)}
        if sum(sizes.values()) > self._shelf.capacity_bytes:
            raise ProgramError(
                f"the round's blobs have {in_mib(sum(sizes.values()))}, the shelf holds "
                f"{in_mib(self._shelf.capacity_bytes)}; enlarge it (--shelf-mib) or assign fewer "
                "experts"
            )
        missing = [ref for ref in references(work) if ref.digest not in self._shelf]
        download = self._download = Download(missing)
        fetch_bytes = download.missing_bytes
        try:
            while not download.complete:
                wants = download.wants(self._clock())
                if wants:
                    self._mailbox.send(Fetch(wants))
                self._turn(min(POLL_S, download.next_retry_s(self._clock())))
                if download.failed:
                    raise WireError("bad-digest", f"{download.failed.kind} arrives damaged")
                if self._superseded(work):
                    raise Superseded
        finally:
            self._download = None
        return fetch_bytes

    # --- the inbox -----------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        """Say hello if it is time, then handle at most one message."""
        self._greeting.say(self._session.name)
        message = self._mailbox.receive(timeout_s)
        if message is not None:
            self._take(message)

    def _out_of_date(self, work: Assign) -> bool:
        """Handle all that is in the inbox now; is `work`, under way, out of date?"""
        self._greeting.say(self._session.name)
        while (message := self._mailbox.receive(0.0)) is not None:
            self._take(message)
        return self._superseded(work)

    def _superseded(self, work: Assign) -> bool:
        return self._session.next_work is not None or self._session.name != work.session

    def _take(self, message: Message) -> None:
        """Handle a message; one that has no place here is counted and dropped."""
        try:
            self._handle(message)
        except WireError as error:
            self._mailbox.drop(error.reason)

    def _handle(self, message: Message) -> None:
        match message:
            case Rollcall(session):
                self._enter(session)
                self._greeting.repeat()
            case Welcome(session) if self._answers(session):
                self._enter(session)
                self._greeting.answered()
            case Reject(session, reason) if self._answers(session):
                raise Refused(f"the server rejected this device: {reason}")
            case Stop(session, reason) if session == self._session.name:
                raise Stopped(reason)
            case Assign(session=session) if session == self._session.name:
                # The server repeats the work when it hears a hello; it goes on as it is.
                if message != self._session.doing:
                    self._session.next_work = message
            case Fetch():
                finished = self._session.finished
                if finished is not None:
                    has_room = self._mailbox.link.has_room
                    for chunk in serve(message, finished.blobs.get, has_room=has_room):
                        self._mailbox.send(chunk)
            case Chunk() if self._download is not None:
                ref = self._download.accept(message, self._clock())
                if ref is not None:
                    self._shelf.put(self._download.take(ref.digest))
            case Received():
                finished = self._session.finished
                if finished is not None and same_work(message, finished.assign):
                    self._session.upload_s = self._clock() - finished.at_s
                    self._session.finished = None
            case _:
                raise WireError("stale", type(message).__name__)

    def _answers(self, session: str) -> bool:
        """Whether this may be the answer to a hello: from another session only if one is due."""
        return session == self._session.name or self._greeting.waits

    def _enter(self, session: str) -> None:
        if session != self._session.name:
            self._session = _Session(session)
            self._local_gate.enter(session)
