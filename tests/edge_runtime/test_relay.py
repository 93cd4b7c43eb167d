"""A link emulated in user space: real bytes through real sockets, and a real broker behind it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from broker_server.brokers.broker import Broker, free_port, open_broker
from edge_runtime.errors import BrokerError
from edge_runtime.transport import mqtt, relay
from edge_runtime.transport.mqtt import MqttLink
from edge_runtime.transport.relay import Relay
from edge_runtime.transport.shape import Shape

WAIT_S = 15.0
Eventually = Callable[[Callable[[], bool]], bool]


class Ends:
    """A device's socket that has gone through a relay, and the broker's end of it."""

    def __init__(self, shape: Shape) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.relay = Relay(*self.listener.getsockname(), shape)
        self.device, self.broker = self.connect()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        device = socket.create_connection((self.relay.host, self.relay.port), WAIT_S)
        self.listener.settimeout(WAIT_S)
        broker, _ = self.listener.accept()
        broker.settimeout(WAIT_S)
        return device, broker

    def close(self) -> None:
        for sock in (self.device, self.broker, self.listener):
            sock.close()
        self.relay.close()


SHAPES = {
    "open": Shape(0, 0),
    "rates": Shape(20e6, 10e6),
    "delay": Shape(0, 0, delay_s=0.02),
    "all": Shape(20e6, 10e6, delay_s=0.01, loss=0.01, seed=3),
}


@pytest.fixture(params=SHAPES)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with closing(Ends(SHAPES[request.param])) as made:
        yield made


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return bytes(data)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_bytes_pass_both_ways_at_once(ends: Ends) -> None:
    up, down = os.urandom(400_000), os.urandom(300_000)
    got: dict[str, bytes] = {}

    def send(sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    def read(name: str, sock: socket.socket) -> None:
        got[name] = read_all(sock)

    threads = [
        threading.Thread(target=send, args=(ends.device, up)),
        threading.Thread(target=send, args=(ends.broker, down)),
        threading.Thread(target=read, args=("up", ends.broker)),
        threading.Thread(target=read, args=("down", ends.device)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert got == {"up": up, "down": down}


def test_an_end_half_closed_still_receives(ends: Ends) -> None:
    ends.device.sendall(b"question")
    ends.device.shutdown(socket.SHUT_WR)
    assert read_all(ends.broker) == b"question"
    ends.broker.sendall(b"answer")
    ends.broker.close()
    assert read_all(ends.device) == b"answer"


def test_a_reader_that_sleeps_stops_the_sender_and_loses_nothing() -> None:
    """What waits is bounded: by the lane, and by the kernel's buffers before and behind it."""
    with closing(Ends(Shape(0, 0))) as ends:
        for sock in (ends.device, ends.broker):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        ends.broker.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 << 20:
                sent += ends.broker.send(bytes(1 << 16))
        ends.broker.shutdown(socket.SHUT_WR)
        assert len(read_all(ends.device)) == sent


def test_a_reset_by_the_broker_is_a_reset_for_the_device(ends: Ends) -> None:
    reset(ends.broker)
    with pytest.raises(ConnectionResetError):
        ends.device.recv(1)


def test_a_device_that_is_gone_is_gone_for_the_broker(ends: Ends) -> None:
    ends.device.sendall(b"last words")
    ends.device.close()
    assert read_all(ends.broker) == b"last words"


def test_last_words_arrive_also_where_the_broker_still_talks(eventually: Eventually) -> None:
    with closing(Ends(Shape(0, 0, delay_s=0.05))) as ends:
        ends.broker.sendall(bytes(100_000))
        ends.device.sendall(b"last words")
        reset(ends.device)
        with contextlib.suppress(OSError):
            ends.broker.sendall(bytes(100_000))
        assert ends.broker.recv(100) == b"last words"
        assert eventually(lambda: not ends.relay._connections)


def ask(alone: Relay) -> bytes:
    """Connect and read; the reset may come while either is under way."""
    with socket.create_connection((alone.host, alone.port), WAIT_S) as device:
        return device.recv(1)


def test_nobody_listens() -> None:
    with closing(Relay("127.0.0.1", free_port(), Shape(0, 0, delay_s=5))) as alone:
        with pytest.raises(ConnectionResetError):
            ask(alone)
        with pytest.raises(BrokerError, match=f"127.0.0.1:{alone.port}"):
            MqttLink(alone.host, alone.port, "device", connect_timeout_s=WAIT_S)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_a_host_that_does_not_exist(host: str) -> None:
    with closing(Relay(host, 1883, Shape(0, 0))) as alone, pytest.raises(ConnectionResetError):
        ask(alone)


def test_close_delivers_what_is_on_its_way() -> None:
    """A goodbye must not become a last will."""
    ends = Ends(Shape(0, 0, delay_s=0.2))
    with closing(ends.broker), closing(ends.listener):
        ends.device.sendall(b"goodbye")
        ends.device.close()
        threading.Thread(target=ends.broker.shutdown, args=(socket.SHUT_WR,)).start()
        ends.relay.close()
        assert read_all(ends.broker) == b"goodbye"


def test_close_cuts_who_stays_and_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CLOSE_TIMEOUT_S", 0.1)
    ends = Ends(Shape(1000, 1000))
    with closing(ends.broker), closing(ends.device), closing(ends.listener):
        ends.device.sendall(bytes(10_000))
        ends.relay.close()
        ends.relay.close()
        assert not ends.relay._thread.is_alive()
        with contextlib.suppress(ConnectionResetError):
            assert read_all(ends.device) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ends.relay.host, ends.relay.port), WAIT_S)


def test_an_idle_relay_sleeps(ends: Ends, eventually: Eventually) -> None:
    """Once all is moved, its thread has nothing to wake for."""
    ends.device.sendall(b"ping")
    assert ends.broker.recv(100) == b"ping"
    ends.broker.sendall(b"pong")
    assert ends.device.recv(100) == b"pong"
    (connection,) = ends.relay._connections
    assert eventually(lambda: connection.next_s() == float("inf"))


# A real broker and a real link


@pytest.fixture
def quick_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_MIN_S", 0.05)


def test_packets_pass(broker: Broker, unique: str) -> None:
    with (
        closing(Relay(broker.host, broker.port, SHAPES["all"])) as shaped,
        closing(MqttLink(shaped.host, shaped.port, f"{unique}-device")) as device,
        closing(MqttLink(broker.host, broker.port, f"{unique}-server")) as server,
    ):
        device.subscribe(f"{unique}/down")
        server.subscribe(f"{unique}/up")
        sizes = [65_536, 0, 17, 1500, 40_000]
        for size in sizes:
            device.publish(f"{unique}/up", os.urandom(size))
            server.publish(f"{unique}/down", os.urandom(size))
        for link in (device, server):
            packets = [link.receive(WAIT_S) for _ in sizes]
            assert [len(packet.payload) for packet in packets if packet is not None] == sizes
            assert link.flush(WAIT_S)


def test_a_goodbye_is_no_last_will(broker: Broker, unique: str) -> None:
    with closing(MqttLink(broker.host, broker.port, f"{unique}-watcher")) as watcher:
        watcher.subscribe(f"{unique}/#")
        shaped = Relay(broker.host, broker.port, Shape(1e6, 1e6, delay_s=0.1))
        device = MqttLink(
            shaped.host, shaped.port, f"{unique}-device", will=(f"{unique}/will", b"gone")
        )
        device.close()
        shaped.close()
        watcher.publish(f"{unique}/end", b"end")
        packet = watcher.receive(WAIT_S)
        assert packet is not None and packet.payload == b"end"


@pytest.mark.usefixtures("quick_reconnect")
def test_a_broker_that_dies_and_comes_back_is_found_again(
    broker_kind: str, tmp_path: Path, unique: str, eventually: Eventually
) -> None:
    port = free_port()
    with open_broker(broker_kind, port, tmp_path) as first:
        shaped = Relay(first.host, port, SHAPES["all"])
        device = MqttLink(shaped.host, shaped.port, f"{unique}-device")
        device.subscribe(f"{unique}/down")
    with closing(shaped), closing(device):
        assert eventually(lambda: not device.connected)
        with open_broker(broker_kind, port, tmp_path) as second:
            assert eventually(lambda: device.connected and device.connections == 2)
            with closing(MqttLink(second.host, port, f"{unique}-server")) as server:
                server.publish(f"{unique}/down", b"back")
                packet = device.receive(WAIT_S)
                assert packet is not None and packet.payload == b"back"
