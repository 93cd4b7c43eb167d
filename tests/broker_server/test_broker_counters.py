"""The broker's counters against the sockets of everyone that was connected."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from broker_server.brokers.broker import free_port, open_broker
from broker_server.brokers.broker_counters import BrokerCounters, Counted
from edge_runtime.protocol.messages import CHUNK_BYTES
from edge_runtime.transport.mqtt import MqttLink
from tests.broker_server.own_config import mosquitto

WAIT_S = 15.0
Eventually = Callable[[Callable[[], bool]], bool]


def test_what_all_others_moved_is_known_to_the_byte(
    broker_kind: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Retained chunks for two listeners, messages both ways, connections that come and go."""
    with open_broker(broker_kind, None, tmp_path) as broker, ExitStack() as stack:
        links: list[MqttLink] = []

        def connect(name: str) -> MqttLink:
            links.append(MqttLink(broker.host, broker.port, name))
            return stack.enter_context(closing(links[-1]))

        counters = BrokerCounters(broker.host, broker.port)
        before = counters.read(WAIT_S)
        server, *devices = (connect(name) for name in ("server", "one", "two"))
        topics = [f"b/{i}" for i in range(6)]
        for topic in topics:
            server.publish(topic, os.urandom(CHUNK_BYTES // 4), retain=True)
        server.subscribe("up")
        for device in devices:
            device.listen(topics)
            for _ in topics:
                assert device.receive(WAIT_S)
            device.unlisten(topics[:3])
            device.publish("up", b"done")
            assert server.receive(WAIT_S)
        devices[0].close()
        assert server.flush(WAIT_S) and devices[1].flush(WAIT_S)

        def agree() -> bool:
            after = counters.read(WAIT_S)
            assert before is not None and after is not None
            moved = after.since(before)
            sent = sum(link.sent_bytes for link in links)
            received = sum(link.received_bytes for link in links)
            return moved == Counted(sent, received)

        # Not at once if the last acknowledgements are still on their way; and they stay so.
        assert eventually(agree)
        assert agree()
        assert before is not None and before.received_bytes > 0


def test_nobody_there_or_nothing_told_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BrokerCounters("127.0.0.1", free_port()).read(1.0) is None
    with mosquitto(tmp_path, monkeypatch, "sys_interval 0") as broker:
        assert BrokerCounters(broker.host, broker.port).read(0.2) is None


def test_what_was_told_before_is_not_told_as_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mosquitto retains its counters: a new reader gets those of the last interval first."""
    with (
        mosquitto(tmp_path, monkeypatch, "sys_interval 1") as broker,
        closing(MqttLink(broker.host, broker.port, "between")) as link,
    ):
        counters = BrokerCounters(broker.host, broker.port)
        first = counters.read(WAIT_S)
        start = (link.sent_bytes, link.received_bytes)
        link.publish("nobody/listens", bytes(1000))
        assert link.flush(WAIT_S)
        second = counters.read(WAIT_S)
        assert first is not None and second is not None
        moved = second.since(first)
        assert moved == Counted(link.sent_bytes - start[0], link.received_bytes - start[1])


def test_the_difference_leaves_our_own_bytes_out() -> None:
    before = Counted(1000, 2000, 10, 20)
    assert Counted(1700, 2900, 40, 70).since(before) == Counted(670, 850)
