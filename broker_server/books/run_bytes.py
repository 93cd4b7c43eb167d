"""What a run's bytes add up to: each round's rows are read once, and none is kept.

Memory grows with the devices and kinds, not with the rounds.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from broker_server.books.link_bytes import LinkFigures, by_client, link_figures
from broker_server.books.link_costs import BudgetedRounds, MeanRounds
from broker_server.record import BytesRow, RoundRecord
from edge_runtime.protocol.ledger import Direction


@dataclass
class Way:
    """Bytes and messages in one direction."""

    payload_bytes: int = 0
    wire_bytes: int = 0
    messages: int = 0

    def add(self, payload_bytes: int, wire_bytes: int, messages: int) -> None:
        self.payload_bytes += payload_bytes
        self.wire_bytes += wire_bytes
        self.messages += messages

    @property
    def mqtt_bytes(self) -> int:
        """What MQTT adds to the payload."""
        return self.wire_bytes - self.payload_bytes


@dataclass
class Sums:
    """Bytes and messages, up and down."""

    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)

    def way(self, direction: Direction) -> Way:
        return self.up if direction == "up" else self.down

    @property
    def wire_bytes(self) -> int:
        return self.up.wire_bytes + self.down.wire_bytes

    def as_dict(self) -> dict[str, int]:
        """Wire bytes up and down, payload bytes and messages of both ways."""
        return {
            "uplink_bytes": self.up.wire_bytes,
            "downlink_bytes": self.down.wire_bytes,
            "payload_bytes": self.up.payload_bytes + self.down.payload_bytes,
            "messages": self.up.messages + self.down.messages,
        }


def added(many: Iterable[Sums]) -> Sums:
    """All of them as one."""
    total = Sums()
    for one in many:
        for mine, more in ((total.up, one.up), (total.down, one.down)):
            mine.add(more.payload_bytes, more.wire_bytes, more.messages)
    return total


@dataclass
class RoundBytes:
    """A round's bytes: those of all links, and those of the server's own socket."""

    name: str
    links: Sums = field(default_factory=Sums)
    server: Sums = field(default_factory=Sums)


class RunBytes:
    """The sums of a run; `add` each round.

    `links` and `server` are all `rounds` together. `devices` are the links by client and family of
    kinds (``expert`` is one), `kinds` all links by kind, `takers` the clients whose link carried a
    kind, `sent` the server by kind.
    """

    def __init__(self) -> None:
        self.rounds: list[RoundBytes] = []
        self.devices: defaultdict[str, defaultdict[str, Sums]] = defaultdict(_sums)
        self.kinds: defaultdict[str, Sums] = _sums()
        self.takers: defaultdict[str, set[str]] = defaultdict(set)
        self.sent: defaultdict[str, Sums] = _sums()
        self.means = MeanRounds()
        self.budgets = BudgetedRounds()

    @classmethod
    def of(cls, records: Iterable[RoundRecord]) -> RunBytes:
        """The sums of these rounds."""
        run = cls()
        for record in records:
            run.add(record)
        return run

    def with_last(self, record: RoundRecord) -> RunBytes:
        """The sums with a round that may still change."""
        run = copy.deepcopy(self)
        run.add(record)
        return run

    def add(self, record: RoundRecord) -> None:
        """Count a round; rounds come in order."""
        links = by_client(self._add(str(record.round), record.bytes))
        self.means.add(record, links)
        self.budgets.add(record, links)

    @property
    def links(self) -> Sums:
        return added(one.links for one in self.rounds)

    @property
    def server(self) -> Sums:
        return added(one.server for one in self.rounds)

    @property
    def egress(self) -> dict[str, int]:
        """The wire bytes that the server sent, by kind, where there were any."""
        sent = {kind: self.sent[kind].down.wire_bytes for kind in sorted(self.sent)}
        return {kind: count for kind, count in sent.items() if count}

    def _add(self, name: str, rows: Iterable[BytesRow]) -> LinkFigures:
        rows = list(rows)
        figures, one = link_figures(rows), RoundBytes(name)
        for (client, direction, kind), amounts in figures.items():
            family = kind.partition(":")[0]
            self.devices[client][family].way(direction).add(*amounts)
            self.kinds[kind].way(direction).add(*amounts)
            self.takers[kind].add(client)
            one.links.way(direction).add(*amounts)
        for row in rows:
            if row.side == "server":
                amounts = (row.payload_bytes, row.wire_bytes, row.messages)
                self.sent[row.kind].way(row.direction).add(*amounts)
                one.server.way(row.direction).add(*amounts)
        self.rounds.append(one)
        return figures


def _sums() -> defaultdict[str, Sums]:
    return defaultdict(Sums)
