"""One device's life: say hello, take work, fetch what it lacks, train, report, until told to stop.

One thread runs all of it. The link's own thread only fills the inbox, so training never blocks the
network; between two training steps the agent looks into the inbox and answers what is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edge_runtime.contents import Contents
from edge_runtime.errors import FlexmoeError, WireError
from edge_runtime.greeting import Greeting, Refused
from edge_runtime.local_gate import LocalGate
from edge_runtime.protocol.blob import make_ref
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import (
    Account,
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
from edge_runtime.protocol.transfer import serve
from edge_runtime.residual import Residuals
from edge_runtime.session import Finished, Session
from edge_runtime.shard import Shard
from edge_runtime.supply import Supply
from edge_runtime.telemetry import Telemetry
from edge_runtime.trainer import Trainer
from edge_runtime.turn import NoTurn, Phase, Turn
from edge_runtime.work import TooLarge, check_work, contents_of, same_task
from edge_runtime.workbench import Workbench

log = logging.getLogger("flexmoe.device")

POLL_S = 0.5


class Stopped(Exception):
    """The server ended the run; the reason is the message."""


class Superseded(Exception):
    """Other work arrived while this was under way."""


class Agent:
    """A device. `live()` returns the reason for which the server ended it."""

    def __init__(
        self,
        mailbox: DeviceMailbox,
        shard: Shard,
        trainer: Trainer,
        contents: Contents,
        local_gate: LocalGate | None = None,
        residuals: Residuals | None = None,
        link_class: str = "",
        memory_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        board: str = "",
        telemetry: Telemetry | None = None,
        turns: Turn | None = None,
    ) -> None:
        """`link_class` and `board` by name, or empty. `memory_limit_bytes`: what training may use;
        None: what is free when it begins. `turns`: None: it may always compute."""
        self._mailbox = mailbox
        self._contents = contents
        self._local_gate = local_gate or LocalGate()
        self._residuals = residuals or Residuals()
        own = self._local_gate, self._residuals
        self._workbench = Workbench(trainer, shard, contents, *own, memory_limit_bytes, clock)
        self._greeting = Greeting(
            mailbox, shard, trainer.name, contents, link_class, memory_limit_bytes, clock, board
        )
        self._clock = clock
        self._telemetry = telemetry or Telemetry()
        self._turns = turns or NoTurn()
        self._session = Session()
        self._supply: Supply | None = None

    def live(self) -> str:
        """Serve until the server says stop. `Refused` if this device cannot take part."""
        try:
            while True:
                self._do(self._next_work())
        except Stopped as stopped:
            self._mailbox.send(Account(self._session.name, self._greeting.account.tell()))
            return str(stopped)

    def leave(self, reason: str) -> None:
        """Tell the server that this device goes; a dead connection tells it by its last will."""
        self._mailbox.send(Gone(reason))

    # --- one round -----------------------------------------------------------------------------

    def _next_work(self) -> Assign:
        while self._session.next_work is None:
            self._listen(POLL_S)
        work, self._session.next_work = self._session.next_work, None
        return work

    def _do(self, work: Assign) -> None:
        done = self._session.finished
        if done is not None and same_task(done.assign, work):
            if self._greeting.said != done.greeted:  # a hello that crossed the report is no loss
                self._mailbox.send(done.report)
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
            session.finished = None  # its report may be what cannot be sent
            log.error("round %d: %s", work.round, error)
            needed = error.needed_bytes if isinstance(error, TooLarge) else 0
            why = str(error) or "the device ran out of memory"
            self._mailbox.send(Failed(work.session, work.round, work.attempt, why[:500], needed))
        finally:
            session.doing = None
            self._turns.over()

    def _work(self, work: Assign) -> Finished:
        """Fetch, train, evaluate; the report and the update that it names."""
        welcome = self._session.welcome
        assert welcome is not None  # without one no work is taken
        check_work(work)
        self._telemetry.begin()
        began_s, waited_s = self._clock(), self._turns.waited_s
        supply = Supply(work, welcome, self._contents, self._mailbox, self._clock)
        try:
            self._get(supply, work)
            fetch_s = self._clock() - began_s
            self._begin("work", work)
            before = self._workbench.prepare(work)
        finally:
            supply.close()
        self._begin("train", work)
        trained = self._workbench.train(work, before, lambda: self._out_of_date(work))
        if trained is None:
            raise Superseded
        self._begin("work", work)
        update = self._workbench.code(work, before)
        self._turns.over()
        result, tested = trained.result, trained.tested
        ref = make_ref(update.data)
        self._mailbox.learn(ref, update.sections)
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
                **self._telemetry.read(
                    self._turns.waited_s - waited_s,
                    fetch_s=fetch_s,
                    train_s=trained.train_s,
                    previous_upload_s=self._session.upload_s,
                ),
                "fetch_bytes": float(supply.fetched_bytes),
                "train_steps": float(result.steps),
                "train_cpu_s": trained.train_cpu_s,
            },
            update=ref,
            sections=[size_bytes for _, size_bytes in update.sections],
            account=self._greeting.account.tell(),
            dropped=self._contents.tell_dropped(part.digest for _, part in contents_of(work)),
        )
        log.info("round %d: experts %s, loss %.4f", work.round, work.experts, result.train_loss)
        return Finished(work, report, update.data, self._clock(), self._greeting.said)

    def _get(self, supply: Supply, work: Assign) -> None:
        """Ask for what is not here, a window of chunks at a time, until all is."""
        self._supply = supply
        try:
            supply.ask()
            while not supply.complete:
                self._listen(min(POLL_S, supply.next_ask_s()))
                if self._superseded(work):
                    raise Superseded
                supply.ask()
        finally:
            self._supply = None

    def _begin(self, phase: Phase, work: Assign) -> None:
        """Wait for the turn to begin `phase`, and answer the inbox meanwhile."""
        if not self._turns.begin(phase, lambda: self._out_of_date(work)):
            raise Superseded

    # --- the inbox -----------------------------------------------------------------------------

    def _listen(self, timeout_s: float) -> None:
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
                self._session.called = True
                self._greeting.repeat()
            case Welcome(session) if self._answers(session):
                self._enter(session)
                self._session.welcome, self._session.called = message, True
                self._mailbox.chunk_bytes = message.chunk_bytes
                self._greeting.answered()
            case Reject(session, reason) if self._answers(session):
                raise Refused(f"the server rejected this device: {reason}")
            case Stop(session, reason) if session == self._session.name:
                raise Stopped(reason)
            case Assign(session=session) if session == self._session.name:
                self._take_work(message)
            case Fetch() if (done := self._session.finished) is not None:
                self._serve(message, done)
            case Chunk() if self._supply is not None:
                self._supply.accept(message)
            case Received() if (done := self._session.finished) and same_work(message, done.assign):
                self._session.upload_s = self._clock() - done.at_s
                self._session.finished = None
            case _:
                raise WireError("stale", type(message).__name__)

    def _take_work(self, work: Assign) -> None:
        """The server repeats the work when it hears a hello: what is under way goes on."""
        session = self._session
        if session.welcome is None:
            raise WireError("stale", "work for a device that was not welcomed")
        place = work.round, work.attempt
        if place < session.latest and not session.called:  # a resumed server may go back
            raise WireError("stale", f"round {work.round}, attempt {work.attempt} is over")
        session.latest, session.called = place, False
        same = session.doing is not None and same_task(work, session.doing)
        session.next_work = None if same else work
        if same and self._supply is not None:
            self._supply.replan(work, session.welcome)

    def _serve(self, fetch: Fetch, finished: Finished) -> None:
        """Send chunks of the update."""
        update = {finished.report.update.digest: finished.update}
        chunk_bytes, has_room = self._mailbox.chunk_bytes, self._mailbox.link.has_room
        for part in serve(fetch, update.get, chunk_bytes, has_room=has_room):
            self._mailbox.send(part)

    def _answers(self, session: str) -> bool:
        """Whether this may be the answer to a hello: from another session only if one is due."""
        return session == self._session.name or self._greeting.waits

    def _enter(self, session: str) -> None:
        if session != self._session.name:
            if self._session.name:
                self._greeting.account.forget()
            self._session = Session(session)
            self._local_gate.enter(session)
            self._residuals.enter(session)
