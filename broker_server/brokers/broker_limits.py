"""`BrokerLimits`: what a broker can take, as far as a run depends on it.

MQTT 3.1.1 has no way to ask. A broker that we start has limits that we know; another one is probed,
by short connections of their own, on topics that nobody else uses.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass

from broker_server.brokers.broker import Broker
from broker_server.brokers.probe_client import ProbeClient
from edge_runtime.errors import BrokerError
from edge_runtime.protocol.messages import CHUNK_BYTES, DIGEST_BYTES, MIN_CHUNK_BYTES
from edge_runtime.protocol.topics import blob_topic

MESSAGE_ROOM_BYTES = 1024
"""Of a message with a chunk in it, beyond the chunk; rather too much."""

ANSWER_S = 20.0  # for one chunk to be acknowledged, on a slow link
ARRIVAL_S = 2.0  # between the acknowledgement of a message and its arrival, on a fast link
# On a slow link the way back may take so many times what the way there took.
SLOWER_BACK = 2.0


@dataclass(frozen=True)
class BrokerLimits:
    """`retains`: it keeps retained messages. `chunk_bytes`: the largest chunk that passes, or 0."""

    retains: bool
    chunk_bytes: int


OWN = BrokerLimits(retains=True, chunk_bytes=CHUNK_BYTES)
"""Those of the brokers that we start (broker.py, embedded_broker.py)."""


def limits_of(broker: Broker, largest_bytes: int = CHUNK_BYTES) -> BrokerLimits:
    """The limits of a broker: known if it is ours, else probed with chunks up to that size.

    `BrokerError` if not even the smallest chunk passes.
    """
    if broker.process is not None:
        return OWN
    limits = probe(broker.host, broker.port, largest_bytes)
    if not limits.chunk_bytes:
        where = f"{broker.host}:{broker.port}"
        raise BrokerError(
            f"the broker at {where} passes on no message of {MIN_CHUNK_BYTES} bytes; see "
            f"`flexmoe doctor --broker {where}`"
        )
    return limits


def probe(host: str, port: int, largest_bytes: int = CHUNK_BYTES) -> BrokerLimits:
    """Find a broker's limits; nothing of the probe stays there.

    It sends and receives at least one chunk of `largest_bytes`; if that does not pass, one of half
    that size, and so on down to `MIN_CHUNK_BYTES`. `BrokerError` if the broker cannot be reached,
    or does not let us subscribe.
    """
    topic = probe_topic()
    return BrokerLimits(
        _retains(host, port, topic), _largest_chunk(host, port, topic, largest_bytes)
    )


def probe_topic(index: int = 0) -> str:
    """A topic as chunks have them, of a federation that there is only once."""
    return blob_topic(f"probe-{secrets.token_hex(6)}", bytes(DIGEST_BYTES), index)


def subscribe(client: ProbeClient, topics: list[str]) -> None:
    """Subscribe as devices do; `BrokerError` if that is refused."""
    if not client.subscribe(topics, 1):
        raise BrokerError(
            f"the broker refuses the subscription to {topics[0]}; let its access rules allow fm4/#"
        )


def clear(host: str, port: int, topics: list[str]) -> None:
    """Take from a broker what it retains on these topics."""
    with ProbeClient(host, port) as client:
        for topic in topics:
            client.publish(topic, b"", retain=True)
        client.flush(ANSWER_S)


def _retains(host: str, port: int, topic: str) -> bool:
    # A broker may refuse to retain by ending the connection (mosquitto does), or in silence.
    with ProbeClient(host, port) as writer:
        writer.publish(topic, b"kept", retain=True)
        if not writer.flush(ANSWER_S):
            return False
    try:
        with ProbeClient(host, port) as reader:
            subscribe(reader, [topic])
            kept = reader.receive(ARRIVAL_S)
            return kept is not None and kept.retained and kept.payload == b"kept"
    finally:
        clear(host, port, [topic])


def _largest_chunk(host: str, port: int, topic: str, largest_bytes: int) -> int:
    chunk_bytes = largest_bytes
    while chunk_bytes >= MIN_CHUNK_BYTES:
        if _passes(host, port, topic, chunk_bytes + MESSAGE_ROOM_BYTES):
            return chunk_bytes
        chunk_bytes //= 2
    return 0


def _passes(host: str, port: int, topic: str, size_bytes: int) -> bool:
    """Whether a message of this size comes back whole. An acknowledgement alone says little."""
    payload = os.urandom(size_bytes)
    with ProbeClient(host, port) as client:
        subscribe(client, [topic])
        began_s = time.monotonic()
        client.publish(topic, payload)
        if not client.flush(ANSWER_S):
            return False
        back = client.receive(ARRIVAL_S + SLOWER_BACK * (time.monotonic() - began_s))
        return back is not None and back.payload == payload
