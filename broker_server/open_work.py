"""The work that is open: each device's progress, and who is still awaited."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from broker_server.life import Life
from broker_server.processes import Restart
from broker_server.work import Answer, Progress, Work
from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import Failed, Holding, Report, same_work

LOOK_S = 0.25


class OpenWork:
    """A round's progresses by client. Seconds are those of the devices' lives (`Life`)."""

    def __init__(self, life: Life, clock: Callable[[], float]) -> None:
        self._life = life
        self._clock = clock
        self._planned: dict[str, Progress] = {}  # and not handed out yet
        self._progress: dict[str, Progress] = {}
        # Those without an answer; who is gone comes after who is not.
        self._open: OrderedDict[str, Progress] = OrderedDict()
        self._looked_s = -LOOK_S  # for those whose time is over
        self.lived_s = 0.0
        """How long the round was for the device that took longest to its answer."""

    def begin(self, work: Work, samples: Mapping[str, int], deadline_s: float) -> None:
        """A new round, with nobody at work yet. `samples` of each client as they count in it."""
        self.lived_s = 0.0
        self._planned = {
            client: Progress(
                work, assign, samples[client], self._life.clock_of(client, self._clock), deadline_s
            )
            for client, assign in work.assigns.items()
        }

    def hand_out(self, present: Collection[str]) -> Mapping[str, Progress]:
        """Those who are `present` are at work; the others left without having had it."""
        self._progress = self._planned
        self._open.update({c: one for c, one in self._progress.items() if c in present})
        for client, progress in self._progress.items():
            if client not in present:
                progress.go("")
                self._open[client] = progress
        return self._progress

    def close(self) -> dict[str, Answer]:
        """What came of the work: there is no more time for answers."""
        for client in list(self._open):
            self.answer(client, self._open[client].closed())
        answers = {client: progress.closed() for client, progress in self._progress.items()}
        self._progress = {}
        return answers

    def get(self, client: str) -> Progress | None:
        """A device's progress, if it has work."""
        return self._progress.get(client)

    def unanswered(self, client: str) -> Progress | None:
        """A device's progress, if it has work and has not answered it."""
        return self._open.get(client)

    def current(self, client: str, message: Holding | Report | Failed) -> Progress:
        """The progress that `message` belongs to; `WireError` if its time is over."""
        progress = self._progress.get(client)
        if progress is None:
            raise WireError("stale", "no work is open for this device")
        if not same_work(message, progress.assign):
            where = f"round {message.round} (attempt {message.attempt})"
            raise WireError("stale", f"{where} of session {message.session!r}")
        return progress

    def awaits(self, rejoin_s: float) -> bool:
        """Whether somebody may still answer; who is gone has `rejoin_s` to come back."""
        return any(progress.awaited(rejoin_s) for progress in self._open.values())

    def left(self, client: str, reason: str) -> None:
        """A device is gone."""
        if (progress := self._progress.get(client)) is not None:
            progress.go(reason)
            if client in self._open:
                self._open.move_to_end(client)

    def came(self, client: str, restart: Restart | None) -> None:
        """A device without an answer is back; `restart`: as another process."""
        self._open[client].come(restart, self._life.sees_ends)
        self._open.move_to_end(client, last=False)

    def all_left(self) -> None:
        """Who is there is not known."""
        for progress in self._progress.values():
            if progress.gone_at_s is None:
                progress.gone_at_s = progress.clock()

    def expire(self, client: str) -> None:
        """The device's time may be over, though others have more."""
        if (progress := self._open.get(client)) is not None and progress.late:
            self.answer(client, progress.closed())

    def expire_all(self) -> None:
        """The time of any device may be over, though it says nothing; looks now and then."""
        if (now_s := self._clock()) - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            for client in list(self._open):
                self.expire(client)

    def answer(self, client: str, answer: Answer) -> None:
        """This is what came of a device's open work, which it does not finish any more.

        It may hang with its turn, and life stands still for all who wait for that.
        """
        self._open[client].answer = answer
        self.settle(client)
        self._life.end_turn(client)

    def settle(self, client: str) -> None:
        """The device may have an answer by now."""
        if (progress := self._open.get(client)) is not None and progress.answer is not None:
            del self._open[client]
            self.lived_s = max(self.lived_s, min(progress.lived_s, progress.deadline_s))
