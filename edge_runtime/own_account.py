"""`OwnAccount`: what a device tells of its bytes, from where a server was there to hear it.

A server counts from its own start. A device that began before has said hellos in vain: neither they
nor what its connection took meanwhile are in the server's count, so they are not in this one.
"""

from __future__ import annotations

from collections import deque

from edge_runtime.protocol.ledger import NOBODY, Ledger, from_moved, to_moved
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import Moved

_MOST_PIECES = 100  # of older hellos: whoever hears those answers before as many are said


class OwnAccount:
    """Cuts a device's running count into what it tells; begins with the first hello heard.

    A server answers each hello that it hears, and hears all after the first one: those without an
    answer were the first.
    """

    def __init__(self, mailbox: DeviceMailbox) -> None:
        self._mailbox = mailbox
        # What moved before each hello, until the first answer.
        self._before: deque[list[Moved]] = deque(maxlen=_MOST_PIECES)
        self._first = self._said = self._answered = 0

    def hello(self) -> None:
        """A hello is about to be said."""
        self._said += 1
        if not self._answered:
            self._first += 1
            self._before.append(self._mailbox.account())

    def answered(self) -> None:
        """A server answered a hello."""
        self._answered += 1

    def forget(self) -> None:
        """Another session: what moved so far is none of its bytes."""
        self._mailbox.account()
        self._before.clear()
        self._first = self._said = self._answered = 0

    def tell(self) -> list[Moved]:
        """What moved since this was last told, by kind."""
        pieces, told = list(self._before), Ledger()
        unheard = self._said - self._answered
        if self._first > 1 and unheard > 0:
            count = max(0, self._first - 1 - unheard)
            pieces = pieces[len(pieces) - count :]
        self._before.clear()
        self._first = 1  # what comes from now on is heard
        for piece in (*pieces, self._mailbox.account()):
            told.merge(from_moved(NOBODY, piece))
        return to_moved(told.rows())
