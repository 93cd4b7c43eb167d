"""`Subscriptions`: what a link subscribes to, and what its broker has said to that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Subscriptions:
    """Patterns that a link cannot do without, and topics that it listens to for a while.

    Both are asked for on every new connection; only the patterns decide whether the link is ready.
    Not thread-safe: its link locks.
    """

    def __init__(self) -> None:
        self._patterns: list[str] = []
        self._topics: dict[str, None] = {}  # a set in the order of asking
        self._granted: set[str] = set()
        self._refused: set[str] = set()
        self._silent: set[str] = set()  # topics that the broker refused on this connection
        self._asked: dict[int, list[str]] = {}  # by the id of their SUBSCRIBE

    def add(self, pattern: str) -> None:
        """The link needs `pattern` from now on."""
        self._patterns.append(pattern)
        self._refused.discard(pattern)

    def remove(self, pattern: str) -> None:
        """The link goes on without `pattern`."""
        self._patterns.remove(pattern)

    def listen(self, topics: Iterable[str]) -> None:
        """The link would like what comes on `topics`."""
        self._topics.update(dict.fromkeys(topics))

    def unlisten(self, topics: Iterable[str]) -> None:
        """The link has enough of `topics`."""
        for topic in topics:
            self._topics.pop(topic, None)
            self._silent.discard(topic)

    def all(self) -> list[str]:
        """What to ask for on a new connection, what is needed first."""
        return [*self._patterns, *self._topics]

    def asked(self, packet_id: int, names: list[str]) -> None:
        """`names` were asked for in one packet."""
        self._asked[packet_id] = names

    def answered(self, packet_id: int, granted: Sequence[bool]) -> None:
        """The broker answered the packet, name by name; what was not asked is ignored."""
        for name, good in zip(self._asked.pop(packet_id, []), granted, strict=False):
            if name in self._patterns:
                (self._granted if good else self._refused).add(name)
            elif name in self._topics and not good:
                self._silent.add(name)

    def lost(self) -> None:
        """The connection has ended, and with it what the broker granted."""
        self._granted.clear()
        self._silent.clear()
        self._asked.clear()

    def is_granted(self, pattern: str) -> bool:
        """Whether the broker said yes, on this connection."""
        return pattern in self._granted

    def is_refused(self, pattern: str) -> bool:
        """Whether the broker said no since the pattern was added."""
        return pattern in self._refused

    @property
    def silent(self) -> str:
        """A topic that is listened to and that the broker refused, or nothing."""
        return min(self._silent.copy(), default="")

    @property
    def in_place(self) -> bool:
        """Whether all patterns are granted."""
        return self._granted.issuperset(self._patterns)
