"""What brokers with odd configs can take, found by trying."""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from broker_server.brokers import broker_limits
from broker_server.brokers.broker import Broker, free_port
from broker_server.brokers.broker_limits import OWN, BrokerLimits, limits_of, probe
from broker_server.brokers.probe_client import ProbeClient
from edge_runtime.errors import BrokerError
from edge_runtime.protocol.messages import CHUNK_BYTES
from edge_runtime.transport.mqtt import MqttLink
from tests.broker_server.own_config import mosquitto
from tests.e2e import brokers


@pytest.fixture(autouse=True)
def a_near_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_limits, "ARRIVAL_S", 0.5)


def test_our_own_brokers_are_as_we_say(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(broker.host, broker.port) == OWN == BrokerLimits(True, CHUNK_BYTES)
    external = Broker(broker.host, broker.port, "external")
    assert limits_of(external, 8192) == BrokerLimits(True, 8192)
    monkeypatch.setattr(broker_limits, "probe", None)  # not asked for a broker of our own
    assert limits_of(broker) == OWN


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        ((), BrokerLimits(True, CHUNK_BYTES)),
        (("retain_available false",), BrokerLimits(False, CHUNK_BYTES)),
        (("max_packet_size 66560",), BrokerLimits(True, 32 * 1024)),  # 64 KiB and its room
        (("max_packet_size 66800",), BrokerLimits(True, 64 * 1024)),
        # It acknowledges what is larger, and drops it.
        (("message_size_limit 9000",), BrokerLimits(True, 4 * 1024)),
        (("max_packet_size 5000",), BrokerLimits(True, 0)),
    ],
)
def test_limits_of_a_config_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], limits: BrokerLimits
) -> None:
    with mosquitto(tmp_path, monkeypatch, *lines) as broker:
        assert probe(broker.host, broker.port) == limits


def test_nothing_stays(broker: Broker, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    topics: list[str] = []
    monkeypatch.setattr(broker_limits, "probe_topic", lambda: topics.append(unique) or unique)
    assert probe(broker.host, broker.port, 4096).retains
    assert topics
    with ProbeClient(broker.host, broker.port) as client:
        assert client.subscribe([unique], 1)
        client.publish(unique, b"the first to come")
        message = client.receive(5.0)
        assert message is not None and message.payload == b"the first to come"


def test_a_broker_that_is_not_there_or_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BrokerError, match="no MQTT broker answers"):
        probe("127.0.0.1", free_port())
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite other/#\n")
    rules.chmod(0o600)
    with mosquitto(tmp_path, monkeypatch, f"acl_file {rules}") as broker:
        # mosquitto grants the subscription all the same, and passes nothing on.
        assert probe(broker.host, broker.port, 4096) == BrokerLimits(False, 0)
        with pytest.raises(BrokerError, match="flexmoe doctor --broker"):
            limits_of(Broker(broker.host, broker.port, "external"), 4096)


def test_a_link_is_not_disturbed(broker: Broker, unique: str) -> None:
    with closing(MqttLink(broker.host, broker.port, unique)) as link:
        link.subscribe(f"{unique}/#")
        before = link.received_bytes
        probe(broker.host, broker.port, 4096)
        assert link.receive(0.1) is None
        assert (link.received_bytes, link.connections) == (before, 1)


def test_a_probe_notices_the_end_of_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        mosquitto(tmp_path, monkeypatch, "max_packet_size 1000") as broker,
        ProbeClient(broker.host, broker.port) as client,
    ):
        assert client.subscribe(["t"], 1) and client.alive
        client.publish("t", bytes(2000))
        assert not client.flush(5.0) and not client.alive
        assert client.receive(5.0) is None
        assert not client.subscribe(["t"], 1)
        client.publish("t", b"into the void")
        assert not client.flush(5.0)


def test_a_slow_link_is_given_its_time(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo of a chunk takes longer than a fast link is waited for."""
    monkeypatch.setattr(broker_limits, "ARRIVAL_S", 0.2)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 13):
                time.sleep(len(data) / 100_000)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(brokers, "_pump", pump)
    with closing(brokers.Proxy(broker.port)) as proxy:
        assert probe("127.0.0.1", proxy.port, 65536) == BrokerLimits(True, 65536)
