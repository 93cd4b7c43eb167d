"""Updates on their way in: from a few devices at a time, each checked and put on disk when whole.

So the server's memory is bounded, whatever the number of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker_server.spool import Spool
from broker_server.update import check_report, decode_update, update_kinds
from broker_server.work import Answer, Progress
from edge_runtime.errors import WireError
from edge_runtime.mailbox import ServerMailbox
from edge_runtime.messages import Chunk, Fetch, Received, Report

MAX_DOWNLOADS = 4
STALL_S = 10.0


class Intake:
    """Asks for updates, and takes them in."""

    def __init__(self, mailbox: ServerMailbox, spool: Spool, clock: Callable[[], float]) -> None:
        self._mailbox = mailbox
        self._spool = spool
        self._clock = clock

    def begin(self) -> None:
        """A new round: the last one's updates are of no use."""
        self._spool.clear()

    def end(self) -> None:
        """The round is over: no more chunks are booked as parts of an update."""
        self._mailbox.forget_updates()

    def ask(self, progresses: Mapping[str, Progress]) -> None:
        """Keep the windows of a few open downloads full; one that stalls holds up no other."""
        active = 0
        for client, progress in progresses.items():
            if progress.download is None or progress.answer is not None:
                continue
            if progress.gone_at_s is None:
                now_s = self._clock()
                if wants := progress.download.wants(now_s).all:
                    self._mailbox.send(client, Fetch(wants))
                progress.asked_s = progress.asked_s or now_s
                progress.heard_s = progress.heard_s or now_s
                active += now_s - progress.heard_s < STALL_S
            if active == MAX_DOWNLOADS:
                return

    def take_report(self, client: str, progress: Progress, report: Report) -> None:
        """A report on this work: from now on its update is asked for."""
        if progress.answer is not None:
            self._mailbox.send(client, Received(report.session, report.round, report.attempt))
            raise WireError("duplicate", f"round {report.round} is closed for this device")
        if progress.report == report:
            raise WireError("duplicate", f"round {report.round} was reported before")
        try:
            check_report(report, progress.assign, progress.samples, progress.work.model)
        except WireError as error:
            progress.answer = Answer("rejected", str(error))
            raise
        progress.begin_download(report, self._mailbox.chunk_bytes)
        kinds = update_kinds(progress.assign)
        sections = list(zip(kinds, report.sections, strict=True))
        self._mailbox.learn(client, report.update, sections)

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
            raise
        progress.heard_s = self._clock()
        if ref is not None:
            self._finish(client, progress, report, download.take(ref.digest))

    def _finish(self, client: str, progress: Progress, report: Report, data: bytes) -> None:
        """The update is whole: accept it if it makes sense."""
        observed, progress.download = progress.observed(self._clock()), None
        self._mailbox.send(client, Received(report.session, report.round, report.attempt))
        size, model = progress.samples, progress.work.model
        try:
            decode_update(data, report, progress.assign, size, model)
        except WireError as error:
            progress.answer = Answer("rejected", str(error))
            raise
        self._spool.put(client, data)
        progress.answer = Answer("ok", report=report, observed=observed)
