"""One round's conversation: hand out work, publish its frames, collect answers, until all are in.

One thread handles one message at a time. Frames go out once, for all devices (`Broadcast`); updates
are fetched from a few devices at a time (`Intake`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from broker_server.books.accounts import Accounts
from broker_server.handout import Handout
from broker_server.intake import Intake
from broker_server.life import Life
from broker_server.open_work import OpenWork
from broker_server.processes import Processes, Restart
from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.holdings import Holdings
from broker_server.roster import Roster
from broker_server.spool import Spool
from broker_server.work import Answer, Work
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
)

log = logging.getLogger("flexmoe.server")

POLL_S = 0.25
ROLLCALL_EVERY_S = 2.0
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
        life: Life | None = None,
    ) -> None:
        """`experts` in all; `watch` is called often, and raises when a round cannot go on."""
        self._mailbox = mailbox
        self._roster = roster
        self._broadcast = broadcast
        self._session = session
        self._watch = watch
        self._clock = clock
        self._intake = Intake(mailbox, spool, clock)
        self._connections = mailbox.link.connections
        self._life = life or Life()
        self._open = OpenWork(self._life, clock)
        self._processes = Processes(self._life.sees_ends)
        self.restarted: Mapping[str, Restart] = self._processes.restarted
        self._ahead_s = 0.0  # of life: how much more of it has passed than here
        self._stop: Stop | None = None
        self._told_s = 0.0  # when the last account came
        self.holdings = Holdings()
        self._handout = Handout(mailbox, broadcast, self.holdings)
        self.accounts = Accounts(session, experts, mailbox.link.settled_bytes)

    def now_s(self) -> float:
        """Seconds of life: the server's own as they pass here, others as devices live them."""
        return self._clock() + self._ahead_s

    def gather(
        self,
        expected: int,
        timeout_s: float,
        joined: Callable[[int], None] = lambda count: None,
        watch: Callable[[], None] = lambda: None,
        enough: Callable[[], int] | None = None,
    ) -> None:
        """Call the roll until `expected` devices are there or `timeout_s` of life is over.

        `joined` is told of each new count; `watch` is called often, and may raise; `enough` says
        how many of those expected there can be now.
        """
        count, quiet, began_s = -1, False, self._clock()
        called_s = began_s - ROLLCALL_EVERY_S
        while True:
            if count != (count := self._roster.count):
                joined(count)
            now_s = self._clock()
            left_s = began_s + timeout_s / self._life.time_scale - now_s
            if count >= (enough() if enough else expected) or left_s <= 0:
                self._ahead_s += (self._life.time_scale - 1) * (now_s - began_s)
                return
            # Before the first call all is heard that was said: it need not be said again.
            quiet |= now_s - began_s >= ROLLCALL_EVERY_S
            if quiet and now_s - called_s >= ROLLCALL_EVERY_S:
                self._mailbox.broadcast(Rollcall(self._session))
                called_s = now_s
            self._look()
            watch()
            quiet |= not self._turn(min(POLL_S, left_s) if quiet else 0.0)

    def run(self, work: Work, deadline_s: float, rejoin_s: float) -> dict[str, Answer]:
        """Hand out `work`, and return each client's answer when all are in.

        A device has `deadline_s` seconds of its life; whoever is missing is not awaited any more
        when it has been gone for `rejoin_s`.
        """
        began_s = self._clock()
        self._intake.begin()
        self._look()  # who was killed before was not killed by this work
        self._processes.given_work(work.assigns)
        self._hand_out(work, deadline_s)
        while self._open.awaits(rejoin_s):
            self._look()
            self._mind_own_connection()
            self._intake.ask()
            self._turn(POLL_S)
            self._open.expire_all()
        self._look()  # who went last may have been killed
        answers = self._open.close()
        for client in [client for client, answer in answers.items() if answer.status == "gone"]:
            self._roster.leave(client)
        self._intake.end()
        self._ahead_s += self._open.lived_s - (self._clock() - began_s)
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

    def _hand_out(self, work: Work, deadline_s: float) -> None:
        """All frames, then the work that names them: so they are there when it comes."""
        # A device that returns with other data, or is refused, does not change this round's count.
        samples = {client: self._roster[client].hello.samples for client in work.assigns}
        self._open.begin(work, samples, deadline_s)
        end_s = self._clock() + deadline_s / self._life.time_scale
        self._handout.offer(work)
        while not self._broadcast.idle and self._clock() < end_s:
            self._look()
            self._turn(POLL_S)
        present = set(self._roster.present)
        for client, progress in self._open.hand_out(present).items():
            if client in present:
                self._handout.send(client, progress)
            self.holdings.given(client)

    def _look(self) -> None:
        """See whether all can go on, and whom its memory limit has killed."""
        self._watch()
        for client in self._life.killed():
            self._processes.killed(client)
            self._roster.leave(client)  # its last will is on the way
            self._kill(client)

    def _kill(self, client: str) -> None:
        """A device was killed: the same work would kill it again."""
        if (progress := self._open.unanswered(client)) is not None:
            detail = self._processes.kill_of(client, len(progress.assign.experts))
            self._open.answer(client, Answer("killed", detail, observed=progress.observed()))

    def _mind_own_connection(self) -> None:
        """After a reconnect of ours: what was said in between is lost, so ask who is there."""
        if self._connections == (connections := self._mailbox.link.connections):
            return
        self._connections = connections
        self._open.all_left()
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
        self._open.expire(client)
        try:
            self._handle(client, message)
        except WireError as error:
            log.info("%s: dropped a message: %s", client, error)
            self._mailbox.drop(client, error.reason)
        finally:
            self._open.settle(client)
        return True

    def _handle(self, client: str, message: Message) -> None:
        match message:
            case Hello():
                self._greet(client, message)
            case Gone(reason):
                self._leave(client, reason)
            case Holding():
                self._handout.plan_again(client, self._open.current(client, message), message)
            case Fetch():
                self._handout.ask_again(self._open.unanswered(client), message)
            case Report():
                self._take_report(client, message)
            case Chunk():
                self._intake.take_chunk(client, self._open.get(client), message)
            case Failed():
                self._intake.take_failure(self._open.current(client, message), message)
            case Account():
                if client not in self._roster:
                    raise WireError("unknown-client", "an account of a device that never joined")
                self.accounts.close(client, message)
                self._told_s = self._clock()
            case _:
                raise WireError("stale", f"{type(message).__name__} outside of a round")

    def _greet(self, client: str, hello: Hello) -> None:
        there = client in self._roster and self._roster[client].present
        answer, restart = self._roster.admit(client, hello), None
        if isinstance(answer, Welcome):
            self._mailbox.know(client)
            self.holdings.say(client, hello.held)
            fresh = hello.session != self._session  # a process knows its session until it ends
            restart = self._processes.greeted(client, hello.memory_kills, fresh, there)
            if restart == "killed":
                self._kill(client)
            if self._stop is not None:
                self.accounts.wait_for([client])
        self._mailbox.send(client, self._stop or answer)
        progress = self._open.unanswered(client)
        if progress is None:
            return
        if isinstance(answer, Welcome):
            # It lost the connection, or died and came back: it may not know of its work.
            self._open.came(client, restart)
            if restart is not None:
                self._handout.plan(client, progress)
            self._handout.send(client, progress)
        else:
            progress.answer = Answer("rejected", answer.reason)

    def _leave(self, client: str, reason: str) -> None:
        self._roster.leave(client)
        self.accounts.give_up(client)
        self._open.left(client, reason)
        if self._stop is None:
            # The last will of a connection may come after the next one's hello: ask.
            self._mailbox.send(client, Rollcall(self._session))

    def _take_report(self, client: str, report: Report) -> None:
        wrong = None
        try:
            if client in self._roster:
                self.accounts.report(client, report)  # in time or not, its bytes were moved
                self._processes.measured(client, report.telemetry)
        except WireError as error:
            wrong = error
        progress = self._open.current(client, report)
        self._intake.take_report(client, progress, report, wrong)
        self._roster.worked(client)
        self.holdings.worked(client, progress.assign, report.dropped)
