"""`BrokerCounters`: the bytes that a broker says its connections moved, from its `$SYS` topics.

A count that is neither the server's nor a device's. mosquitto tells it every `sys_interval` (10 s
unless set), and only when it has changed; amqtt as often as its plugin is set. Both count every
byte of every connection, those of the connection that reads them too: it is ours, it exists only
while it reads, and what it moved is told apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from broker_server.brokers.probe_client import Arrived, ProbeClient
from edge_runtime.errors import BrokerError

READ_S = 12.0  # mosquitto tells every 10 s by default
FIRST_S = 3.0  # brokers retain what they tell: one that tells at all has answered by then
_SYS = "$SYS/broker/"


class _Source(NamedTuple):
    """Where a kind of broker tells its counters, the first message first.

    `in_turn`: the second value is taken after the first message was sent, and so holds it.
    """

    received: str
    sent: str
    in_turn: bool


_SOURCES = (
    _Source(f"{_SYS}bytes/received", f"{_SYS}bytes/sent", in_turn=True),  # mosquitto
    _Source(f"{_SYS}load/bytes/received", f"{_SYS}load/bytes/sent", in_turn=False),  # amqtt
)
TOPICS = [topic for source in _SOURCES for topic in (source.received, source.sent)]


@dataclass(frozen=True)
class Counted:
    """Bytes that a broker received and sent since it started, as it told them at one moment.

    `own_sent_bytes` of the received ones came from the connections that read these counters,
    `own_received_bytes` of the sent ones went to them.
    """

    received_bytes: int
    sent_bytes: int
    own_sent_bytes: int = 0
    own_received_bytes: int = 0

    def since(self, before: Counted) -> Counted:
        """What all others moved in between, by the same `BrokerCounters`: nothing of it our own."""
        return Counted(
            self.received_bytes
            - before.received_bytes
            - (self.own_sent_bytes - before.own_sent_bytes),
            self.sent_bytes
            - before.sent_bytes
            - (self.own_received_bytes - before.own_received_bytes),
        )


class BrokerCounters:
    """Reads one broker's counters, each time by a short connection of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._own_sent_bytes = self._own_received_bytes = 0

    def read(self, timeout_s: float = READ_S) -> Counted | None:
        """The counters as first told after this call; None if none are within the time.

        What others have on its way meanwhile may be in them or not: for an exact figure all must
        be quiet. Returns early, with None, if the broker cannot be reached or does not allow it.
        """
        try:
            client = ProbeClient(*self._where, timeout_s)
        except BrokerError:
            return None
        try:
            # At QoS 0: an acknowledgement of the one value would already change the next.
            allowed = client.subscribe(TOPICS, 0, timeout_s)
            return self._listen(client, timeout_s) if allowed else None
        finally:
            client.close()
            self._own_sent_bytes += client.sent_bytes
            self._own_received_bytes += client.received_bytes

    def _listen(self, client: ProbeClient, timeout_s: float) -> Counted | None:
        fresh: dict[str, Arrived] = {}
        began = time.monotonic()
        deadline = began + min(timeout_s, FIRST_S)
        while (message := client.receive(max(0.0, deadline - time.monotonic()))) is not None:
            deadline = began + timeout_s
            if message.retained or not message.payload.isdigit():
                continue  # what was told before we came; what is no counter
            fresh[message.topic] = message
            for source in _SOURCES:
                if source.received in fresh and source.sent == message.topic:
                    return self._counted(source, fresh, client.sent_bytes)
        return None

    def _counted(self, source: _Source, fresh: dict[str, Arrived], own_sent_bytes: int) -> Counted:
        received, sent = fresh[source.received], fresh[source.sent]
        own_received_bytes = (sent if source.in_turn else received).bytes_before
        return Counted(
            int(received.payload),
            int(sent.payload),
            self._own_sent_bytes + own_sent_bytes,
            self._own_received_bytes + own_received_bytes,
        )
