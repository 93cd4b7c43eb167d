"""Work on its way out: frames published once for all devices, then what names them."""

from __future__ import annotations

from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.holdings import Holdings, frames_of
from broker_server.work import Answer, Progress, Work
from edge_runtime.errors import WireError
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import Fetch, Holding

MAX_PLANS = 4


class Handout:
    """Plans each device's work by what it holds, and publishes what it lacks."""

    def __init__(self, mailbox: ServerMailbox, broadcast: Broadcast, holdings: Holdings) -> None:
        self._mailbox = mailbox
        self._broadcast = broadcast
        self._holdings = holdings

    def offer(self, work: Work) -> None:
        """The frames of all work, in place of those of the last."""
        self._broadcast.tidy()
        for assign in work.assigns.values():
            self._broadcast.offer(frames_of(assign))
        self._broadcast.pump()

    def send(self, client: str, progress: Progress) -> None:
        """A device's work as it is planned."""
        self._mailbox.send(client, progress.assign)

    def ask_again(self, progress: Progress | None, fetch: Fetch) -> None:
        """A device asks for frames of its open work."""
        if progress is None:
            raise WireError("stale", "no work is open for this device")
        names = {ref.digest for ref in frames_of(progress.assign)}
        progress.ask_again(fetch, self._mailbox.chunk_bytes)
        self._broadcast.ask(fetch, names)

    def plan(self, client: str, progress: Progress) -> None:
        """Plan a device's work by what it is known to hold now, and publish what it lacks."""
        progress.assign = progress.work.plan(client)
        self._holdings.given(client)
        self._broadcast.offer(frames_of(progress.assign))
        self._broadcast.pump()

    def plan_again(self, client: str, progress: Progress, holding: Holding) -> None:
        """The device lacks what its work was planned on."""
        if progress.answer is not None or progress.report is not None:
            raise WireError("stale", f"round {holding.round} was reported before")
        self._holdings.say(client, holding.held)
        if progress.plans == MAX_PLANS:
            progress.answer = Answer("failed", f"lacks what {MAX_PLANS} plans of its work built on")
            return
        progress.plans += 1
        self.plan(client, progress)
        self.send(client, progress)
