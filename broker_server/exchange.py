"""One round's conversation: hand out work, serve chunks, collect answers, until all are in.

One thread handles one message at a time. Devices fetch what they lack, the server fetches the
updates that reports name: from a few devices at a time, each blob checked and put on disk when it
is whole, so memory is bounded whatever the number of clients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from broker_server.roster import Roster
from broker_server.spool import Spool
from broker_server.update import check_report, decode_update
from broker_server.work import Answer, Progress, Work
from edge_runtime.codec import Codec
from edge_runtime.errors import BrokerError, WireError
from edge_runtime.mailbox import ServerMailbox, blobs_named_in
from edge_runtime.messages import (
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Message,
    Received,
    Report,
    Rollcall,
    Stop,
    Welcome,
    same_work,
)
from edge_runtime.transfer import serve

log = logging.getLogger("flexmoe.server")

POLL_S = 0.25
ROLLCALL_EVERY_S = 2.0
MAX_DOWNLOADS = 4
STALL_S = 10.0


class Exchange:
    """The server's end of the conversation with all devices of one session."""

    def __init__(
        self,
        mailbox: ServerMailbox,
        roster: Roster,
        session: str,
        spool: Spool,
        codec: Codec,
        watch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watch` is called often during a round, and raises when it cannot go on."""
        self._mailbox = mailbox
        self._roster = roster
        self._session = session
        self._spool = spool
        self._codec = codec
        self._watch = watch
        self._clock = clock
        self._connections = mailbox.link.connections
        self._progress: dict[str, Progress] = {}
        # Who has said hello as a new process since it was last given work.
        self.restarted: set[str] = set()

    def gather(
        self,
        expected: int,
        timeout_s: float,
        joined: Callable[[int], None] = lambda count: None,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Call the roll until `expected` devices are there or `timeout_s` is over.

        `joined` is told of each new count; `watch` is called often, and may raise.
        """
        deadline_s = self._clock() + timeout_s
        called_s, count = -ROLLCALL_EVERY_S, -1
        while True:
            if count != (count := len(self._roster.present)):
                joined(count)
            now_s = self._clock()
            if count >= expected or now_s >= deadline_s:
                return
            if now_s - called_s >= ROLLCALL_EVERY_S:
                self._mailbox.broadcast(Rollcall(self._session))
                called_s = now_s
            watch()
            self._turn(min(POLL_S, deadline_s - now_s))

    def run(self, work: Work, deadline_s: float, rejoin_s: float) -> dict[str, Answer]:
        """Hand out `work`, and return each client's answer when all are in.

        The round closes after `deadline_s` seconds, or when whoever is missing has been gone for
        `rejoin_s` seconds.
        """
        self._spool.clear()
        self.restarted -= work.assigns.keys()
        # A device that returns with other data, or is refused, does not change this round's count.
        self._progress = {
            client: Progress(work, assign, self._roster[client].hello.samples)
            for client, assign in work.assigns.items()
        }
        for client, progress in self._progress.items():
            self._mailbox.send(client, progress.assign)
        end_s = self._clock() + deadline_s
        while self._clock() < end_s and self._anyone_to_wait_for(rejoin_s):
            self._watch()
            self._mind_own_connection()
            self._ask_for_updates()
            self._turn(POLL_S)
        answers = {c: self._close(c, progress) for c, progress in self._progress.items()}
        self._progress = {}
        self._mailbox.forget_blobs()
        return answers

    def stop(self, reason: str) -> None:
        """Tell every device that the session is over."""
        self._mailbox.broadcast(Stop(self._session, reason))
        self._mailbox.link.flush(2.0)

    def _anyone_to_wait_for(self, rejoin_s: float) -> bool:
        now_s = self._clock()
        return any(
            progress.answer is None
            and (progress.gone_at_s is None or now_s - progress.gone_at_s < rejoin_s)
            for progress in self._progress.values()
        )

    def _close(self, client: str, progress: Progress) -> Answer:
        if progress.answer is not None:
            return progress.answer
        observed = progress.observed(self._clock())
        if progress.gone_at_s is not None:
            self._roster.leave(client)
            return Answer("gone", "disconnected and did not return in time", observed=observed)
        what = "its update was not complete" if progress.report else "no answer"
        return Answer("late", f"{what} by the deadline", observed=observed)

    def _mind_own_connection(self) -> None:
        """After a reconnect of ours: what was said in between is lost, so ask who is there."""
        if self._connections == (connections := self._mailbox.link.connections):
            return
        self._connections = connections
        for progress in self._progress.values():
            progress.gone_at_s = progress.gone_at_s or self._clock()
        self._mailbox.broadcast(Rollcall(self._session))

    def _ask_for_updates(self) -> None:
        """Keep the windows of a few open downloads full; one that stalls holds up no other."""
        active = 0
        for client, progress in self._progress.items():
            if progress.download is None or progress.answer is not None:
                continue
            if progress.gone_at_s is None:
                now_s = self._clock()
                if wants := progress.download.wants(now_s):
                    self._mailbox.send(client, Fetch(wants))
                progress.asked_s = progress.asked_s or now_s
                progress.heard_s = progress.heard_s or now_s
                active += now_s - progress.heard_s < STALL_S
            if active == MAX_DOWNLOADS:
                return

    # --- the inbox -----------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        if self._mailbox.link.contested:
            raise BrokerError(
                f"another server uses federation {self._mailbox.federation!r} on this broker: stop "
                "it, or set broker.federation; or else the broker refuses what we send: see its log"
            )
        if received := self._mailbox.receive(max(0.0, timeout_s)):
            client, message = received
            try:
                self._handle(client, message)
            except WireError as error:
                log.info("%s: dropped a message: %s", client, error)
                self._mailbox.drop(client, error.reason)

    def _handle(self, client: str, message: Message) -> None:
        match message:
            case Hello():
                self._greet(client, message)
            case Gone(reason):
                self._roster.leave(client)
                if (progress := self._progress.get(client)) is not None:
                    progress.go(reason, self._clock())
                # The last will of a connection may come after the next one's hello: ask.
                self._mailbox.send(client, Rollcall(self._session))
            case Fetch():
                self._serve(client, message)
            case Report():
                self._take_report(client, message)
            case Chunk():
                self._take_chunk(client, message)
            case Failed():
                progress = self._current(client, message)
                if progress.answer is not None:
                    raise WireError("duplicate", f"round {message.round} is closed for this device")
                needed_bytes = max(0, message.needed_bytes)
                progress.answer = Answer("failed", message.reason, needed_bytes=needed_bytes)
            case _:
                raise WireError("stale", f"{type(message).__name__} outside of a round")

    def _greet(self, client: str, hello: Hello) -> None:
        # A process knows its session until it ends; at first it may say the same hello twice.
        there = client in self._roster and self._roster[client].present
        anew = hello.session != self._session and not there
        answer = self._roster.admit(client, hello)
        if isinstance(answer, Welcome):
            self._mailbox.know(client)
            if anew:
                self.restarted.add(client)
        self._mailbox.send(client, answer)
        progress = self._progress.get(client)
        if progress is None or progress.answer is not None:
            return
        if isinstance(answer, Welcome):
            # It lost the connection, or died and came back: it may not know of its work.
            progress.come(anew)
            self._mailbox.send(client, progress.assign)
        else:
            progress.answer = Answer("rejected", answer.reason)

    def _serve(self, client: str, fetch: Fetch) -> None:
        """Send chunks of the blobs that this device's own work names, as far as there is room."""
        progress = self._progress.get(client)
        if progress is None or progress.answer is not None:
            raise WireError("stale", "no work is open for this device")
        names = {ref.digest for ref in blobs_named_in(progress.assign)}
        blobs = {name: progress.work.blobs.get(name) for name in names}
        for chunk in serve(fetch, blobs.get, has_room=self._mailbox.link.has_room):
            self._mailbox.send(client, chunk)

    def _current(self, client: str, message: Report | Failed) -> Progress:
        """The progress that `message` belongs to; `WireError` if its time is over."""
        progress = self._progress.get(client)
        if progress is None:
            raise WireError("stale", "no work is open for this device")
        if not same_work(message, progress.assign):
            where = f"round {message.round} (attempt {message.attempt})"
            raise WireError("stale", f"{where} of session {message.session!r}")
        return progress

    def _take_report(self, client: str, report: Report) -> None:
        progress = self._current(client, report)
        if progress.answer is not None:
            self._mailbox.send(client, Received(report.session, report.round, report.attempt))
            raise WireError("duplicate", f"round {report.round} is closed for this device")
        if progress.report == report:
            raise WireError("duplicate", f"round {report.round} was reported before")
        try:
            check_report(report, progress.assign, progress.samples, progress.work.model)
            progress.begin_download(report)
        except WireError as error:
            progress.answer = Answer("rejected", str(error))
            raise
        self._mailbox.learn(client, report)

    def _take_chunk(self, client: str, chunk: Chunk) -> None:
        progress = self._progress.get(client)
        if progress is None or progress.answer or not (progress.report and progress.download):
            raise WireError("unexpected-blob", "no transfer from this device is open")
        report, download = progress.report, progress.download
        try:
            ref = download.accept(chunk, self._clock())
        except WireError as error:
            if download.failed:
                progress.answer = Answer("rejected", str(error))
            raise
        progress.heard_s = self._clock()
        if ref is None:
            return
        data = download.take(ref.digest)
        # Two parts with the same bytes (a change of zero) travel once.
        for twin in report.update:
            if twin.digest == ref.digest:
                self._spool.put(client, twin.kind, data)
        if download.complete:
            self._finish(client, progress, report)

    def _finish(self, client: str, progress: Progress, report: Report) -> None:
        """All blobs are on disk: accept the update if it makes sense."""
        observed, progress.download = progress.observed(self._clock()), None
        self._mailbox.send(client, Received(report.session, report.round, report.attempt))
        blobs = {ref.kind: self._spool.get(client, ref.kind) for ref in report.update}
        size, model = progress.samples, progress.work.model
        try:
            decode_update(blobs, report, progress.assign, size, model, self._codec)
        except WireError as error:
            progress.answer = Answer("rejected", str(error))
            raise
        progress.answer = Answer("ok", report=report, observed=observed)
