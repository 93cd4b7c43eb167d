"""Updates on their way in: from a few devices at a time, each checked and put on disk when whole.

So the server's memory is bounded, whatever the number of clients.
"""

from __future__ import annotations

from collections.abc import Callable

from broker_server.spool import Spool
from broker_server.update import check_report, decode_update, update_kinds
from broker_server.work import Answer, Progress
from edge_runtime.errors import WireError
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import Chunk, Failed, Fetch, Received, Report

MIN_DOWNLOADS = 4
MAX_OPEN_BYTES = 16 << 20
"""Of the updates that are asked for at a time, beyond `MIN_DOWNLOADS` of any size."""

STALL_S = 10.0
LOOK_S = 0.25  # how often it is looked for downloads that wait in vain


class Intake:
    """Asks for updates, and takes them in."""

    def __init__(self, mailbox: ServerMailbox, spool: Spool, clock: Callable[[], float]) -> None:
        self._mailbox = mailbox
        self._spool = spool
        self._clock = clock
        self._waiting: dict[str, Progress] = {}  # nothing was asked for yet, or not since it left
        self._asked: dict[str, Progress] = {}
        self._away: dict[str, Progress] = {}
        self._busy: dict[str, int] = {}  # of those asked the ones that answer: bytes of the update
        self._busy_bytes = 0
        self._look_s = 0.0

    def begin(self) -> None:
        """A new round: the last one's updates are of no use."""
        self._spool.clear()
        self._forget_all()

    def end(self) -> None:
        """The round is over: no more chunks are booked as parts of an update."""
        self._mailbox.forget_updates()
        self._forget_all()

    def ask(self) -> None:
        """Keep the windows of the open downloads full; one that stalls holds up no other."""
        now_s = self._clock()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self._look(now_s)
        while self._waiting:
            client, progress = next(iter(self._waiting.items()))
            size_bytes = progress.update_bytes
            full = self._busy_bytes + size_bytes > MAX_OPEN_BYTES
            if len(self._busy) >= MIN_DOWNLOADS and full:
                return
            del self._waiting[client]
            if progress.answer is not None:
                continue
            if progress.gone_at_s is not None:
                self._away[client] = progress
                continue
            self._asked[client] = progress
            progress.ask()
            progress.heard_s = now_s
            self._want(client, progress, now_s)

    def take_report(
        self, client: str, progress: Progress, report: Report, wrong: WireError | None = None
    ) -> None:
        """A report on this work: from now on its update is asked for.

        `wrong`: what is wrong with the report's account.
        """
        if progress.answer is not None:
            self._mailbox.send(client, Received(report.session, report.round, report.attempt))
            raise WireError("duplicate", f"round {report.round} is closed for this device")
        if progress.report == report:
            raise WireError("duplicate", f"round {report.round} was reported before")
        try:
            if wrong is not None:
                raise wrong
            check_report(report, progress.assign, progress.samples, progress.work.model)
        except WireError as error:
            progress.answer = Answer("rejected", str(error))
            raise
        progress.begin_download(report, self._mailbox.chunk_bytes)
        kinds = update_kinds(progress.assign)
        sections = list(zip(kinds, report.sections, strict=True))
        self._mailbox.learn(client, report.update, sections)
        self._drop(client)  # what an earlier process of the device had reported
        self._waiting[client] = progress

    def take_failure(self, progress: Progress, failed: Failed) -> None:
        """The device says that it cannot do the work."""
        if progress.answer is not None:
            raise WireError("duplicate", f"round {failed.round} is closed for this device")
        needed_bytes = max(0, failed.needed_bytes)
        progress.answer = Answer("failed", failed.reason, needed_bytes=needed_bytes)

    def take_chunk(self, client: str, progress: Progress | None, chunk: Chunk) -> None:
        """A chunk of an update; the last one makes the answer."""
        if progress is None or progress.answer or not (progress.report and progress.download):
            raise WireError("unexpected-blob", "no transfer from this device is open")
        report, download = progress.report, progress.download
        try:
            ref = download.accept(chunk, self._clock())
        except WireError as error:
            if download.failed:
                progress.answer = Answer("rejected", str(error))
                self._drop(client)
            else:
                self._want(client, progress, self._clock())
            raise
        progress.heard_s = self._clock()
        if ref is None:
            self._want(client, progress, progress.heard_s)
        else:
            self._drop(client)
            self._finish(client, progress, report, download.take(ref.digest))

    def _look(self, now_s: float) -> None:
        """Ask again for what did not come; see who stalls, has left, or is back."""
        for client, progress in list(self._asked.items()):
            if progress.answer is not None:
                self._drop(client)
            elif progress.gone_at_s is not None:
                self._drop(client)
                self._away[client] = progress
            else:
                self._want(client, progress, now_s)
        back = {client: one for client, one in self._away.items() if one.gone_at_s is None}
        if back:  # those who have sent something go first
            self._away = {c: one for c, one in self._away.items() if c not in back}
            self._waiting = back | self._waiting

    def _want(self, client: str, progress: Progress, now_s: float) -> None:
        """Ask for what a download that was begun lacks now."""
        if client not in self._asked or progress.download is None or progress.gone_at_s is not None:
            return
        if wants := progress.download.wants(now_s).all:
            self._mailbox.send(client, Fetch(wants))
        self._busy_bytes -= self._busy.pop(client, 0)
        if progress.heard_s is not None and now_s - progress.heard_s < STALL_S:
            self._busy[client] = progress.update_bytes
            self._busy_bytes += progress.update_bytes

    def _drop(self, client: str) -> None:
        self._busy_bytes -= self._busy.pop(client, 0)
        for group in (self._waiting, self._asked, self._away):
            group.pop(client, None)

    def _forget_all(self) -> None:
        for group in (self._waiting, self._asked, self._away, self._busy):
            group.clear()
        self._busy_bytes = 0

    def _finish(self, client: str, progress: Progress, report: Report, data: bytes) -> None:
        """The update is whole: accept it if it makes sense."""
        observed, progress.download = progress.observed(), None
        self._mailbox.send(client, Received(report.session, report.round, report.attempt))
        size, model = progress.samples, progress.work.model
        try:
            decode_update(data, report, progress.assign, size, model)
        except WireError as error:
            progress.answer = Answer("rejected", str(error))
            raise
        self._spool.put(client, data)
        progress.answer = Answer("ok", report=report, observed=observed)
