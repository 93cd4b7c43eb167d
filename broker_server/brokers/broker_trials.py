"""What `flexmoe doctor` tries on a broker, beyond the limits that every run needs to know."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

from broker_server.brokers.broker_counters import TOPICS as COUNTER_TOPICS
from broker_server.brokers.broker_limits import (
    ANSWER_S,
    ARRIVAL_S,
    BrokerLimits,
    clear,
    probe,
    probe_topic,
    subscribe,
)
from broker_server.brokers.probe_client import ProbeClient
from edge_runtime.protocol.messages import CHUNK_BYTES

QUEUE_MESSAGES = 256
"""How many messages for a client that does not read are tried."""
RETAINED_BYTES = 16 << 20
"""How much is left with the broker, and read back."""
_ECHOES = 20
_WINDOW = 8  # chunks that are asked for at a time, as a device does
_TELLS_S = 2.5
_VERSION_TOPIC = "$SYS/broker/version"


@dataclass(frozen=True)
class Trials:
    """What was found. `version` is empty if the broker does not tell it.

    `queued_messages` of `QUEUE_MESSAGES` small ones reached a client that began to read late.
    `retained_bytes` came back of `retained_asked_bytes` that were left there; 0 asked if it does
    not retain. Rates are in bytes a second: to the broker, and from what it retains.
    """

    version: str
    tells_counters: bool
    round_trip_s: float
    limits: BrokerLimits
    queued_messages: int
    retained_asked_bytes: int
    retained_bytes: int
    publish_rate: float
    read_rate: float


def examine(host: str, port: int) -> Trials:
    """Try everything; takes seconds, and some 34 MiB over the link. Leaves nothing behind.

    `BrokerError` if the broker cannot be reached, or does not let us subscribe.
    """
    version, tells_counters = _told(host, port)
    round_trip_s = _round_trip_s(host, port)
    limits = probe(host, port, CHUNK_BYTES)
    queued = _queued(host, port)
    asked = RETAINED_BYTES if limits.retains and limits.chunk_bytes else 0
    kept, publish_rate, read_rate = _retained(host, port, asked, limits.chunk_bytes)
    return Trials(
        version,
        tells_counters,
        round_trip_s,
        limits,
        queued,
        asked,
        kept,
        publish_rate,
        read_rate,
    )


def _told(host: str, port: int) -> tuple[str, bool]:
    """The version, and whether byte counters are told."""
    version, counters = "", False
    with ProbeClient(host, port) as client:
        client.subscribe([_VERSION_TOPIC, *COUNTER_TOPICS], 0)
        deadline = time.monotonic() + _TELLS_S
        while not (version and counters):
            message = client.receive(max(0.0, deadline - time.monotonic()))
            if message is None:
                break
            if message.topic == _VERSION_TOPIC:
                version = message.payload.decode(errors="replace")[:80]
            else:
                counters = counters or message.payload.isdigit()
    return version, counters


def _round_trip_s(host: str, port: int) -> float:
    """The median time of a small message to the broker and back; infinite if none comes back."""
    topic, times = probe_topic(), []
    with ProbeClient(host, port) as client:
        subscribe(client, [topic])
        for _ in range(_ECHOES):
            started = time.perf_counter()
            client.publish(topic, b"echo")
            if client.receive(ARRIVAL_S) is None:
                return float("inf")
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _queued(host: str, port: int) -> int:
    """How many of `QUEUE_MESSAGES` a client gets that acknowledges none before all are sent."""
    topic, count = probe_topic(), 0
    with ProbeClient(host, port) as slow, ProbeClient(host, port) as sender:
        subscribe(slow, [topic])
        for index in range(QUEUE_MESSAGES):
            sender.publish(topic, index.to_bytes(2, "big"))
        sender.flush(ANSWER_S)
        while count < QUEUE_MESSAGES and slow.receive(ARRIVAL_S) is not None:
            count += 1
    return count


def _retained(host: str, port: int, size_bytes: int, chunk_bytes: int) -> tuple[int, float, float]:
    """Bytes that came back of those left there; the rates of both ways."""
    if not size_bytes:
        return 0, 0.0, 0.0
    first = probe_topic()
    topics = [f"{first}/{index}" for index in range(size_bytes // chunk_bytes)]
    data = os.urandom(chunk_bytes)
    try:
        with ProbeClient(host, port) as writer:
            started = time.perf_counter()
            for topic in topics:
                writer.publish(topic, data, retain=True)
            writer.flush(ANSWER_S * 3)
            publish_rate = size_bytes / (time.perf_counter() - started)
        with ProbeClient(host, port) as reader:
            started, kept = time.perf_counter(), 0
            for index in range(0, len(topics), _WINDOW):
                window = topics[index : index + _WINDOW]
                subscribe(reader, window)
                for _ in window:
                    message = reader.receive(ARRIVAL_S)
                    if message is None:
                        return kept, publish_rate, 0.0
                    kept += len(message.payload) if message.payload == data else 0
            return kept, publish_rate, kept / (time.perf_counter() - started)
    finally:
        clear(host, port, topics)
