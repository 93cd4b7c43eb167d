"""What devices say that their own sockets moved, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple

from edge_runtime.errors import WireError
from edge_runtime.protocol.kinds import valid_kind
from edge_runtime.protocol.messages import Account, Moved, Report

SLACK_BYTES = 16 << 20
SLACK_FACTOR = 4
"""A device may have moved this much more than the server did: frames that it took again after an
interruption, what came while the server was away."""


def check_account(
    account: Sequence[Moved], experts: int, moved_bytes: tuple[int, int] = (0, 0)
) -> None:
    """Raise `WireError` unless these may be the figures of a device of `experts` experts in all.

    `moved_bytes`: what the server's own socket sent and received so far. A device's account of some
    rounds cannot be much more than that.
    """
    kinds = [moved.kind for moved in account]
    for kind in kinds:
        expert = kind.removeprefix("expert:")
        if not valid_kind(kind) or (expert != kind and int(expert) >= experts):
            raise WireError("bad-account", f"kind {kind!r} is none of this model's")
    if len(set(kinds)) < len(kinds):
        raise WireError("bad-account", "a kind is there twice")
    most_down, most_up = (SLACK_BYTES + SLACK_FACTOR * size for size in moved_bytes)
    # A message is a byte at least: this bounds the messages too.
    up = sum(max(moved.up_wire_bytes, moved.up_messages) for moved in account)
    down = sum(max(moved.down_wire_bytes, moved.down_messages) for moved in account)
    for way, size, most in (("up", up, most_up), ("down", down, most_down)):
        if size > most:
            raise WireError("bad-account", f"{size} bytes {way}, expected at most {most}")


class Accounts:
    """What the devices of a session said and nobody has taken yet, by client."""

    def __init__(
        self, session: str, experts: int, moved_bytes: Callable[[], tuple[int, int]]
    ) -> None:
        """`experts` in all: of which there may be kinds. `moved_bytes`: what the server's own
        socket sent and received so far."""
        self._session = session
        self._experts = experts
        self._moved_bytes = moved_bytes
        self._said: dict[str, dict[str, Moved]] = {}
        self._reported: dict[str, tuple[int, int]] = {}  # round and attempt of the last report
        self._awaited: set[str] = set()
        self._closed: set[str] = set()

    def report(self, client: str, report: Report) -> None:
        """A report came, in time or not: its account counts once.

        `WireError` if that makes no sense.
        """
        number = report.round, report.attempt
        if report.session == self._session and number > self._reported.get(client, (0, 0)):
            self._say(client, report.account)
            self._reported[client] = number

    def wait_for(self, clients: Iterable[str]) -> None:
        """The run is over: these are to tell what no report told of."""
        self._awaited.update(clients)

    @property
    def awaited(self) -> bool:
        """Whether one of those is still to tell."""
        return bool(self._awaited)

    def close(self, client: str, message: Account) -> None:
        """A device's last word; `WireError` if nobody waits for it, or it makes no sense."""
        if message.session != self._session or client not in self._awaited:
            raise WireError("stale", "an account that nobody waits for")
        self._say(client, message.account)
        self._awaited.discard(client)
        self._closed.add(client)

    def give_up(self, client: str) -> None:
        """The device is gone, and will not tell."""
        self._awaited.discard(client)

    def take(self) -> dict[str, list[Moved]]:
        """What devices said since this was last asked."""
        said, self._said = self._said, {}
        return {client: list(kinds.values()) for client, kinds in sorted(said.items())}

    def take_closed(self) -> dict[str, Account]:
        """All that those who have had their last word said since this was last asked."""
        closed = sorted(self._closed & self._said.keys())
        return {c: Account(self._session, list(self._said.pop(c).values())) for c in closed}

    def _say(self, client: str, account: Sequence[Moved]) -> None:
        check_account(account, self._experts, self._moved_bytes())
        said = self._said.setdefault(client, {})
        for moved in account:
            before = said.get(moved.kind)
            said[moved.kind] = moved if before is None else _plus(before, moved)


def _plus(one: Moved, other: Moved) -> Moved:
    kind, *before = astuple(one)
    _, *more = astuple(other)
    return Moved(kind, *map(sum, zip(before, more, strict=True)))
