"""The ledger: bytes by client, direction and kind.

Directions are the devices': ``up`` is device to server, ``down`` server to device, in a server's
ledger and in a device's. `wire_bytes` are whole MQTT packets, `payload_bytes` what they carry.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edge_runtime.protocol.messages import Moved

Direction = Literal["up", "down"]
Role = Literal["server", "device"]

NOBODY = ""
EVERYONE = "*"  # what is published once, for whoever listens; no client can be called so
CONNECTION = "connection"
_Key = tuple[str, Direction, str]
_Sums = tuple[int, int, int]  # payload bytes, wire bytes, messages
_ZERO: _Sums = (0, 0, 0)


@dataclass(frozen=True, order=True)
class LedgerRow:
    """What one client moved in one direction for one kind of thing."""

    client: str
    direction: Direction
    kind: str
    payload_bytes: int
    wire_bytes: int
    messages: int


class Ledger:
    """Sums of booked bytes. Thread-safe: a network thread may book while another one reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[_Key, _Sums] = {}
        self._at_cut: dict[_Key, _Sums] = {}

    def book(
        self,
        client: str,
        direction: Direction,
        kind: str,
        payload_bytes: int,
        wire_bytes: int,
        messages: int = 1,
    ) -> None:
        """Add a message; with `messages` 0 a packet that is none, such as a PUBACK.

        Raises `ValueError` for a negative count, or a payload larger than its packet.
        """
        if not 0 <= payload_bytes <= wire_bytes or messages < 0:
            raise ValueError(
                f"cannot book {payload_bytes} payload bytes, {wire_bytes} wire bytes, "
                f"{messages} messages: expected 0 <= payload <= wire and 0 <= messages"
            )
        with self._lock:
            self._add((client, direction, kind), (payload_bytes, wire_bytes, messages))

    def move(self, row: LedgerRow, client: str) -> None:
        """Put what `row` says, booked since the last cut, on another client's account."""
        sums = (row.payload_bytes, row.wire_bytes, row.messages)
        with self._lock:
            self._add((row.client, row.direction, row.kind), _minus(_ZERO, sums))
            self._add((client, row.direction, row.kind), sums)

    def merge(self, rows: Iterable[LedgerRow]) -> None:
        """Add the rows of another ledger, for totals; do not `reconcile` afterwards."""
        with self._lock:
            for row in rows:
                key: _Key = (row.client, row.direction, row.kind)
                self._add(key, (row.payload_bytes, row.wire_bytes, row.messages))

    def rows(self) -> list[LedgerRow]:
        """Everything so far, by client, direction and kind."""
        with self._lock:
            return _rows(self._sums)

    def cut(self) -> list[LedgerRow]:
        """What was booked since the last cut (or the start); all cuts add up to `rows`."""
        with self._lock:
            since = {
                key: _minus(sums, self._at_cut.get(key, _ZERO)) for key, sums in self._sums.items()
            }
            self._at_cut = dict(self._sums)
            return _rows(since)

    @property
    def uplink_bytes(self) -> int:
        """Wire bytes from devices to the server, the connection's included."""
        return total_wire_bytes(self.rows(), "up")

    @property
    def downlink_bytes(self) -> int:
        """Wire bytes from the server to devices, the connection's included."""
        return total_wire_bytes(self.rows(), "down")

    def reconcile(self, sent_bytes: int, received_bytes: int, role: Role) -> int:
        """Book what the socket moved beyond all other rows as kind ``connection`` of no client.

        Takes the socket's totals since the start, without packets that nobody can have booked yet
        (`Link.settled_bytes`): a cut would show them as ``connection``, and the next one again. The
        ``connection`` rows are *set* to the remainder, not added to: they heal when packets are
        booked late. They never sink below the last `cut`, so that no cut shows negative bytes.

        Returns the bytes that the ledger holds beyond the socket's totals: 0 when both agree, more
        while booked packets still wait to be sent.
        """
        sent: Direction = "down" if role == "server" else "up"
        received: Direction = "up" if role == "server" else "down"
        with self._lock:
            return self._settle(sent, sent_bytes) + self._settle(received, received_bytes)

    def _settle(self, direction: Direction, total_bytes: int) -> int:
        key: _Key = (NOBODY, direction, CONNECTION)
        booked_bytes = sum(
            sums[1] for other, sums in self._sums.items() if other[1] == direction and other != key
        )
        remainder_bytes = max(total_bytes - booked_bytes, self._at_cut.get(key, _ZERO)[1])
        self._sums[key] = (0, remainder_bytes, 0)
        return booked_bytes + remainder_bytes - total_bytes

    def _add(self, key: _Key, more: _Sums) -> None:
        had = self._sums.get(key, _ZERO)
        self._sums[key] = _plus(had, more)


def total_wire_bytes(rows: Iterable[LedgerRow], direction: Direction) -> int:
    """The wire bytes of these rows in one direction, for the totals of a cut too."""
    return sum(row.wire_bytes for row in rows if row.direction == direction)


def to_moved(rows: Iterable[LedgerRow]) -> list[Moved]:
    """A device's rows as it tells them: both directions of a kind together."""
    kinds: dict[str, dict[Direction, _Sums]] = {}
    for row in rows:
        sums = kinds.setdefault(row.kind, {}).get(row.direction, _ZERO)
        more = (row.payload_bytes, row.wire_bytes, row.messages)
        kinds[row.kind][row.direction] = _plus(sums, more)
    return [
        Moved(kind, *ways.get("up", _ZERO), *ways.get("down", _ZERO))
        for kind, ways in sorted(kinds.items())
    ]


def from_moved(client: str, account: Iterable[Moved]) -> list[LedgerRow]:
    """The rows of a client's account."""
    ledger = Ledger()
    for item in account:
        up = (item.up_payload_bytes, item.up_wire_bytes, item.up_messages)
        down = (item.down_payload_bytes, item.down_wire_bytes, item.down_messages)
        ledger.book(client, "up", item.kind, *up)
        ledger.book(client, "down", item.kind, *down)
    return ledger.rows()


def _rows(sums: dict[_Key, _Sums]) -> list[LedgerRow]:
    return sorted(LedgerRow(*key, *values) for key, values in sums.items() if values != _ZERO)


def _minus(left: _Sums, right: _Sums) -> _Sums:
    return (left[0] - right[0], left[1] - right[1], left[2] - right[2])


def _plus(left: _Sums, right: _Sums) -> _Sums:
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2])
