"""One round's conversation: hand out work, publish its frames, collect answers, until all are in.

One thread handles one message at a time. Frames go out once, for all devices (`Broadcast`); updates
are fetched from a few devices at a time (`Intake`).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from broker_server.books.accounts import Accounts
from broker_server.intake import Intake
from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.holdings import Holdings, frames_of
from broker_server.roster import Roster
from broker_server.spool import Spool
from broker_server.work import Answer, Progress, Work
from edge_runtime.errors import BrokerError, WireError
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import (
    Account,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Holding,
    Message,
    Report,
    Rollcall,
    Stop,
    Welcome,
    same_work,
)

log = logging.getLogger("flexmoe.server")

POLL_S = 0.25
ROLLCALL_EVERY_S = 2.0
MAX_PLANS = 4
ACCOUNTS_S = 2.0  # how long the next device's last word is waited for
MAX_ACCOUNTS_S = 15.0
FLUSH_S = 2.0


class Exchange:
    """The server's end of the conversation with all devices of one session."""

    def __init__(
        self,
        mailbox: ServerMailbox,
        roster: Roster,
        broadcast: Broadcast,
        session: str,
        spool: Spool,
        experts: int,
        watch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`experts` in all; `watch` is called often in a round, and raises when it cannot go on."""
        self._mailbox = mailbox
        self._roster = roster
        self._broadcast = broadcast
        self._session = session
        self._watch = watch
        self._clock = clock
        self._intake = Intake(mailbox, spool, clock)
        self._connections = mailbox.link.connections
        self._progress: dict[str, Progress] = {}
        # Those without an answer; who is gone comes after who is not.
        self._open: OrderedDict[str, Progress] = OrderedDict()
        self._stop: Stop | None = None
        self._told_s = 0.0  # when the last account came
        self.holdings = Holdings()
        self.accounts = Accounts(session, experts, mailbox.link.settled_bytes)
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
        count, quiet, began_s = -1, False, self._clock()
        called_s = began_s - ROLLCALL_EVERY_S
        while True:
            if count != (count := self._roster.count):
                joined(count)
            now_s = self._clock()
            left_s = began_s + timeout_s - now_s
            if count >= expected or left_s <= 0:
                return
            # Before the first call all is heard that was said: it need not be said again.
            quiet |= now_s - began_s >= ROLLCALL_EVERY_S
            if quiet and now_s - called_s >= ROLLCALL_EVERY_S:
                self._mailbox.broadcast(Rollcall(self._session))
                called_s = now_s
            watch()
            quiet |= not self._turn(min(POLL_S, left_s) if quiet else 0.0)

    def run(self, work: Work, deadline_s: float, rejoin_s: float) -> dict[str, Answer]:
        """Hand out `work`, and return each client's answer when all are in.

        The round closes after `deadline_s` seconds, or when whoever is missing has been gone for
        `rejoin_s` seconds.
        """
        end_s = self._clock() + deadline_s
        self._intake.begin()
        self.restarted -= work.assigns.keys()
        self._hand_out(work, end_s)
        while (now_s := self._clock()) < end_s:
            if not any(p.awaited(now_s, rejoin_s) for p in self._open.values()):
                break
            self._watch()
            self._mind_own_connection()
            self._intake.ask()
            self._turn(POLL_S)
        answers = {c: progress.closed(self._clock()) for c, progress in self._progress.items()}
        for client in [client for client, answer in answers.items() if answer.status == "gone"]:
            self._roster.leave(client)
        self._progress = {}
        self._open.clear()
        self._intake.end()
        return answers

    def stop(self, reason: str) -> dict[str, Account]:
        """Tell every device that the session is over, and take from the broker what is ours there.

        Returns the last accounts that came in time, with what `accounts` has not told of yet.
        """
        self._stop = Stop(self._session, reason)
        self._mailbox.broadcast(self._stop)
        self.accounts.wait_for(self._roster.present)
        link = self._mailbox.link
        last_s = self._clock() + MAX_ACCOUNTS_S
        self._told_s = self._clock()
        while self.accounts.awaited and link.connected:
            left_s = min(self._told_s + ACCOUNTS_S, last_s) - self._clock()
            if left_s <= 0:
                break
            self._hear(min(POLL_S, left_s))
        self._broadcast.clear()
        link.flush(FLUSH_S)
        return self.accounts.take_closed()

    def _hand_out(self, work: Work, end_s: float) -> None:
        """All frames, then the work that names them: so they are there when it comes."""
        # A device that returns with other data, or is refused, does not change this round's count.
        progresses = {
            client: Progress(work, assign, self._roster[client].hello.samples)
            for client, assign in work.assigns.items()
        }
        self._broadcast.tidy()
        for assign in work.assigns.values():
            self._broadcast.offer(frames_of(assign))
        self._broadcast.pump()
        while not self._broadcast.idle and self._clock() < end_s:
            self._watch()
            self._turn(POLL_S)
        present, gone = set(self._roster.present), dict[str, Progress]()
        for client, progress in progresses.items():
            if client in present:
                self._mailbox.send(client, progress.assign)
                self._open[client] = progress
            else:  # it left in the meantime, without having had work
                progress.go("", self._clock())
                gone[client] = progress
            self.holdings.given(client)
        self._progress = progresses
        self._open.update(gone)

    def _mind_own_connection(self) -> None:
        """After a reconnect of ours: what was said in between is lost, so ask who is there."""
        if self._connections == (connections := self._mailbox.link.connections):
            return
        self._connections = connections
        for progress in self._progress.values():
            progress.gone_at_s = progress.gone_at_s or self._clock()
        self._mailbox.broadcast(Rollcall(self._session))

    # --- the inbox -----------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> bool:
        """Publish what is due, and handle at most one message; whether there was one."""
        if self._mailbox.link.contested:
            raise BrokerError(
                f"another server uses federation {self._mailbox.federation!r} on this broker: stop "
                "it, or set broker.federation; or else the broker refuses what we send: see its log"
            )
        self._broadcast.pump()
        return self._hear(min(timeout_s, self._broadcast.next_s()))

    def _hear(self, timeout_s: float) -> bool:
        received = self._mailbox.receive(max(0.0, timeout_s))
        if received is None:
            return False
        client, message = received
        try:
            self._handle(client, message)
        except WireError as error:
            log.info("%s: dropped a message: %s", client, error)
            self._mailbox.drop(client, error.reason)
        finally:
            if (progress := self._open.get(client)) is not None and progress.answer is not None:
                del self._open[client]
        return True

    def _handle(self, client: str, message: Message) -> None:
        match message:
            case Hello():
                self._greet(client, message)
            case Gone(reason):
                self._leave(client, reason)
            case Holding():
                self._plan_again(client, message)
            case Fetch():
                progress = self._progress.get(client)
                if progress is None or progress.answer is not None:
                    raise WireError("stale", "no work is open for this device")
                names = {ref.digest for ref in frames_of(progress.assign)}
                progress.ask_again(message, self._mailbox.chunk_bytes)
                self._broadcast.ask(message, names)
            case Report():
                self._take_report(client, message)
            case Chunk():
                self._intake.take_chunk(client, self._progress.get(client), message)
            case Failed():
                progress = self._current(client, message)
                if progress.answer is not None:
                    raise WireError("duplicate", f"round {message.round} is closed for this device")
                needed_bytes = max(0, message.needed_bytes)
                progress.answer = Answer("failed", message.reason, needed_bytes=needed_bytes)
            case Account():
                if client not in self._roster:
                    raise WireError("unknown-client", "an account of a device that never joined")
                self.accounts.close(client, message)
                self._told_s = self._clock()
            case _:
                raise WireError("stale", f"{type(message).__name__} outside of a round")

    def _greet(self, client: str, hello: Hello) -> None:
        # A process knows its session until it ends; at first it may say the same hello twice.
        there = client in self._roster and self._roster[client].present
        anew = hello.session != self._session and not there
        answer = self._roster.admit(client, hello)
        if isinstance(answer, Welcome):
            self._mailbox.know(client)
            self.holdings.say(client, hello.held)
            if anew:
                self.restarted.add(client)
            if self._stop is not None:
                self.accounts.wait_for([client])
        self._mailbox.send(client, self._stop or answer)
        progress = self._progress.get(client)
        if progress is None or progress.answer is not None:
            return
        if isinstance(answer, Welcome):
            # It lost the connection, or died and came back: it may not know of its work.
            progress.come(anew)
            self._open.move_to_end(client, last=False)
            if anew:
                self._plan(client, progress)
            self._mailbox.send(client, progress.assign)
        else:
            progress.answer = Answer("rejected", answer.reason)

    def _leave(self, client: str, reason: str) -> None:
        self._roster.leave(client)
        self.accounts.give_up(client)
        if (progress := self._progress.get(client)) is not None:
            progress.go(reason, self._clock())
            if client in self._open:
                self._open.move_to_end(client)
        if self._stop is None:
            # The last will of a connection may come after the next one's hello: ask.
            self._mailbox.send(client, Rollcall(self._session))

    def _plan(self, client: str, progress: Progress) -> None:
        """Plan a device's work by what it is known to hold now, and publish what it lacks."""
        progress.assign = progress.work.plan(client)
        self.holdings.given(client)
        self._broadcast.offer(frames_of(progress.assign))
        self._broadcast.pump()

    def _plan_again(self, client: str, holding: Holding) -> None:
        """The device lacks what its work was planned on."""
        progress = self._current(client, holding)
        if progress.answer is not None or progress.report is not None:
            raise WireError("stale", f"round {holding.round} was reported before")
        self.holdings.say(client, holding.held)
        if progress.plans == MAX_PLANS:
            progress.answer = Answer("failed", f"lacks what {MAX_PLANS} plans of its work built on")
            return
        progress.plans += 1
        self._plan(client, progress)
        self._mailbox.send(client, progress.assign)

    def _current(self, client: str, message: Holding | Report | Failed) -> Progress:
        """The progress that `message` belongs to; `WireError` if its time is over."""
        progress = self._progress.get(client)
        if progress is None:
            raise WireError("stale", "no work is open for this device")
        if not same_work(message, progress.assign):
            where = f"round {message.round} (attempt {message.attempt})"
            raise WireError("stale", f"{where} of session {message.session!r}")
        return progress

    def _take_report(self, client: str, report: Report) -> None:
        wrong = None
        try:
            if client in self._roster:
                self.accounts.report(client, report)  # in time or not, its bytes were moved
        except WireError as error:
            wrong = error
        progress = self._current(client, report)
        self._intake.take_report(client, progress, report, wrong)
        self._roster.worked(client)
        self.holdings.worked(client, progress.assign, report.dropped)
