"""What only a real network shows: bytes against two other counters, failures, hostile peers."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker_server.brokers import broker as broker_module
from broker_server.brokers.broker import Broker, free_port, open_broker
from edge_runtime.errors import BrokerError
from edge_runtime.protocol.messages import CHUNK_BYTES, MAX_MESSAGE_BYTES
from edge_runtime.transport import contest, mqtt
from edge_runtime.transport.mqtt import MqttLink
from edge_runtime.transport.packet import Packet
from tests.conftest import require_broker

WAIT_S = 15.0
ROOT = Path(__file__).resolve().parents[2]
CONNACK = b"\x20\x02\x00\x00"
RECEIVED_TOPICS = {"mosquitto": "bytes/received", "amqtt": "load/bytes/received"}
SENT_TOPICS = {"mosquitto": "bytes/sent", "amqtt": "load/bytes/sent"}
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(autouse=True)
def quick_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_MIN_S", 0.05)


def payload_of(link: MqttLink) -> bytes:
    packet = link.receive(WAIT_S)
    assert packet is not None
    return packet.payload


def exchange(one: MqttLink, two: MqttLink, topic: str) -> None:
    """Chunks and small messages in both directions, all acknowledged and received."""
    one.subscribe(f"{topic}/one")
    two.subscribe(f"{topic}/two")
    sizes = [CHUNK_BYTES] * 8 + [0, 17, 1500, 16384]
    for size in sizes:
        one.publish(f"{topic}/two", os.urandom(size))
        two.publish(f"{topic}/one", os.urandom(size))
    for link in (one, two):
        assert [len(payload_of(link)) for _ in sizes] == sizes
        assert link.flush(WAIT_S)


def test_bytes_agree_with_the_brokers_own_count(broker_kind: str, tmp_path: Path) -> None:
    """The broker's totals are those of all its clients' sockets, byte for byte.

    The broker publishes its totals every second, and the packets that an observer exchanges are in
    them too. So the sums are compared at ticks, and must agree at one; by chance they never would.
    """
    with ExitStack() as stack:
        broker = stack.enter_context(open_broker(broker_kind, None, tmp_path))
        links: list[MqttLink] = []

        def connect(name: str) -> MqttLink:
            links.append(MqttLink(broker.host, broker.port, name))
            return stack.enter_context(closing(links[-1]))

        def agrees(topic: str, counter: str) -> bool:
            observer = connect("observer")
            observer.subscribe(f"$SYS/broker/{topic}")
            agreed = any(surplus(observer, counter) == 0 for _ in range(5))
            observer.close()
            return agreed

        def surplus(observer: MqttLink, counter: str) -> int:
            """What the broker counted at its next tick beyond all sockets just before it."""
            while observer.receive(0.3) is not None:  # until well after the last tick
                pass
            counted: int = sum(getattr(link, counter) for link in links)
            return int(payload_of(observer)) - counted

        # `open_broker` has greeted the broker once; its bytes are those of this twin.
        greeting = connect(f"flexmoe-probe-{os.getpid()}")
        greeting.close()
        links.append(greeting)

        exchange(connect("one"), connect("two"), "t")
        assert agrees(RECEIVED_TOPICS[broker_kind], "sent_bytes")
        assert agrees(SENT_TOPICS[broker_kind], "received_bytes")


def tcp_info(link: MqttLink) -> tuple[int, int]:
    """The kernel's (bytes acknowledged by the peer, bytes received) of a link's connection."""
    sock = link._client.socket()
    assert isinstance(sock, socket.socket)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    acked, received = struct.unpack_from("=QQ", info, 120)  # struct tcp_info, linux/tcp.h
    return acked, received


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO with byte counts is Linux's")
def test_bytes_agree_with_the_kernels_count(
    broker: Broker, unique: str, eventually: Eventually
) -> None:
    with (
        closing(MqttLink(broker.host, broker.port, f"{unique}-1")) as one,
        closing(MqttLink(broker.host, broker.port, f"{unique}-2")) as two,
    ):
        exchange(one, two, unique)
        for link in (one, two):
            # The kernel counts the connection's SYN as one byte, too.
            assert eventually(lambda: tcp_info(link) == (link.sent_bytes + 1, link.received_bytes))  # noqa: B023
            assert link.sent_bytes > 8 * CHUNK_BYTES


def test_small_packets_are_not_delayed(broker: Broker, unique: str) -> None:
    with closing(MqttLink(broker.host, broker.port, unique)) as link:
        sock = link._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_broker_that_dies_and_comes_back_is_found_again(
    broker_kind: str, tmp_path: Path, eventually: Eventually
) -> None:
    broker = open_broker(broker_kind, None, tmp_path)
    with (
        closing(MqttLink(broker.host, broker.port, "one")) as one,
        closing(MqttLink(broker.host, broker.port, "two")) as two,
    ):
        two.subscribe("x")
        assert broker.process is not None
        broker.process.signal(signal.SIGKILL)
        assert eventually(lambda: not one.connected and not two.connected)
        one.publish("x", b"while it was down")
        assert not one.flush(0)
        broker.stop()
        with open_broker(broker_kind, broker.port, tmp_path):
            assert eventually(lambda: two.connected and two.connections == 2)
            # `one` may have been back, and sent, before `two` had its subscription.
            assert one.flush(WAIT_S)
            one.publish("x", b"after")
            while payload_of(two) != b"after":
                pass
            assert one.connections == 2


VICTIM = """
import sys
from edge_runtime.transport.mqtt import MqttLink
link = MqttLink(sys.argv[1], int(sys.argv[2]), sys.argv[3], will=(sys.argv[4], b"gone"))
print("ready", flush=True)
link.receive(600)
"""


def test_a_killed_process_leaves_its_last_will(broker: Broker, unique: str) -> None:
    with closing(MqttLink(broker.host, broker.port, f"{unique}-watcher")) as watcher:
        watcher.subscribe(f"{unique}/#")
        where = [broker.host, str(broker.port), f"{unique}-victim", f"{unique}/up/victim"]
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, *where], cwd=ROOT, stdout=subprocess.PIPE
        ) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"ready\n"
            victim.kill()
        assert payload_of(watcher) == b"gone"


@pytest.fixture
def boundless_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A broker that passes on packets of any size."""
    require_broker("mosquitto")
    config = broker_module._mosquitto_config

    def without_limit(host: str, port: int) -> str:
        return re.sub(r"max_packet_size .*\n", "", config(host, port))

    monkeypatch.setattr(broker_module, "_mosquitto_config", without_limit)
    with open_broker("mosquitto", None, tmp_path) as broker:
        yield broker


@contextmanager
def stranger(broker: Broker, name: str) -> Iterator[paho.Client]:
    client = paho.Client(CallbackAPIVersion.VERSION2, name)
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def test_an_oversized_message_is_counted_and_never_seen(
    boundless_broker: Broker, unique: str
) -> None:
    with (
        closing(MqttLink(boundless_broker.host, boundless_broker.port, unique)) as link,
        stranger(boundless_broker, "stranger") as client,
    ):
        link.subscribe("t/#")
        client.publish("t", bytes(MAX_MESSAGE_BYTES + 1), qos=1)
        client.publish("t/" + "x" * 65_000, bytes(MAX_MESSAGE_BYTES), qos=1)
        client.publish("t", b"small", qos=1)
        assert len(payload_of(link)) == MAX_MESSAGE_BYTES
        assert payload_of(link) == b"small"
        assert (link.oversized, link.overflowed, link.connections) == (1, 0, 1)


def test_what_could_never_be_a_message_is_not_even_read(
    boundless_broker: Broker, unique: str, eventually: Eventually
) -> None:
    """The connection ends, and the broker does not send the packet again on the next one."""
    with (
        closing(MqttLink(boundless_broker.host, boundless_broker.port, unique)) as link,
        stranger(boundless_broker, "stranger") as client,
    ):
        link.subscribe("t")
        for number in range(1, contest.LOSSES + 2):
            client.publish("t", bytes(8 << 20), qos=1)
            assert eventually(lambda: link.connected and link.connections == number + 1)  # noqa: B023
            assert link.oversized == number
        client.publish("t", b"small", qos=1)
        assert payload_of(link) == b"small"
        assert link.received_bytes < 2000
        assert not link.contested  # a stranger must not end us


def test_a_half_read_packet_is_not_settled(eventually: Eventually) -> None:
    go_on = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.sendall(CONNACK + b"\x30\x05\x00\x02o")
        go_on.wait(WAIT_S)
        connection.sendall(b"k!\xd0\x00")  # the rest, and a PINGRESP
        wait_for_end(connection)

    with peer(talk) as port, closing(MqttLink("127.0.0.1", port, "device")) as link:
        assert eventually(lambda: link.received_bytes == 9)
        assert link.settled_bytes() == (link.sent_bytes, 4)
        go_on.set()
        assert eventually(lambda: link.settled_bytes() == (link.sent_bytes, 6))
        assert link.received_bytes == 13
        assert payload_of(link) == b"!"
        assert link.settled_bytes() == (link.sent_bytes, 13)


def test_an_acknowledgement_may_overtake_its_publish(
    broker: Broker, unique: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(MqttLink(broker.host, broker.port, unique)) as link:
        publish = link._client.publish

        def slow_publish(topic: str, payload: bytes, **options: Any) -> paho.MQTTMessageInfo:
            info = publish(topic, payload, **options)
            info.wait_for_publish(WAIT_S)
            return info

        monkeypatch.setattr(link._client, "publish", slow_publish)
        link.publish(unique, b"data")
        assert link.flush(0) and not link._early


def test_two_devices_with_one_name_are_told_so(
    broker: Broker, unique: str, eventually: Eventually
) -> None:
    with (
        closing(MqttLink(broker.host, broker.port, f"{unique}-other")) as other,
        closing(MqttLink(broker.host, broker.port, unique)) as one,
        closing(MqttLink(broker.host, broker.port, unique)) as two,
    ):
        assert eventually(lambda: one.contested or two.contested)
        assert not other.contested


def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(BrokerError, match=rf"127\.0\.0\.1:{port} .*flexmoe broker"):
        MqttLink("127.0.0.1", port, "device")


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(BrokerError, match=r"no\.such\.host\.invalid:1883"):
        MqttLink("no.such.host.invalid", 1883, "device")


@contextmanager
def peer(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that hands each connection to `talk`, and then closes it; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(WAIT_S)
                try:
                    connection.recv(4096)  # CONNECT
                    talk(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def wait_for_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def silent(connection: socket.socket) -> None:
    wait_for_end(connection)


def hang_up(connection: socket.socket) -> None:
    pass


def web_server(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def refuse(connection: socket.socket) -> None:
    connection.sendall(b"\x20\x02\x00\x05")
    wait_for_end(connection)


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (silent, "no answer in 0.5 s"),
        (hang_up, "connection ended"),
        (web_server, "connection ended"),
        (refuse, "refused: Not authorized"),
    ],
)
def test_what_is_no_broker_or_refuses_us_is_named(
    talk: Callable[[socket.socket], None], reason: str
) -> None:
    timeout_s = 0.5 if talk is silent else WAIT_S
    with peer(talk) as port, pytest.raises(BrokerError, match=rf":{port} .*{reason}"):
        MqttLink("127.0.0.1", port, "device", connect_timeout_s=timeout_s)


def hostile_packets() -> list[bytes]:
    """Well-framed packets with wrong insides, packets of no known type, and noise."""
    rng = random.Random(5)
    framed = [
        bytes([kind << 4 | flags, len(body)]) + body
        for kind in range(16)
        for flags in (0, 2, 15)
        for body in (b"", b"\xff", b"\x00\x09ab", rng.randbytes(60))
    ]
    bad_topic = b"\x30\x05\x00\x02\xff\xfe!"
    return [*framed, bad_topic, *(rng.randbytes(40) for _ in range(20))]


def take_packet(connection: socket.socket) -> tuple[int, bytes]:
    """The type and the body of one short MQTT packet."""
    header = connection.recv(2, socket.MSG_WAITALL)
    if len(header) < 2:
        raise ConnectionError("the link has left")
    kind, length = header
    assert length < 128
    return kind >> 4, connection.recv(length, socket.MSG_WAITALL) if length else b""


def test_many_topics_are_asked_for_in_one_packet_and_a_refusal_does_no_harm(
    eventually: Eventually,
) -> None:
    """Also on the next connection, where they are asked for with everything else."""
    asked: list[tuple[int, bytes]] = []
    hang_up_now = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.sendall(CONNACK)
        while True:
            kind, body = take_packet(connection)
            asked.append((kind, body[2:]))
            topics = asked[-1][1].count(b"\x01t") or 1
            granted = body.count(b"\x01p")
            if kind == 8:
                codes = b"\x01" * granted + b"\x80" * (topics - granted)
                connection.sendall(bytes([0x90, 2 + len(codes)]) + body[:2] + codes)
            elif kind == 10:
                connection.sendall(b"\xb0\x02" + body[:2])
                if hang_up_now.is_set():
                    return

    def names(*topics: str, qos: bytes = b"\x01") -> bytes:
        return b"".join(len(t).to_bytes(2, "big") + t.encode() + qos for t in topics)

    with peer(talk) as port, closing(MqttLink("127.0.0.1", port, "device")) as link:
        link.subscribe("p")
        link.listen(["t1", "t2", "t3"])
        link.listen([])
        link.unlisten([])
        assert eventually(lambda: link.refused == "t1")
        link.unlisten(["t2"])
        assert eventually(lambda: len(asked) == 3)
        assert asked == [
            (8, names("p")),
            (8, names("t1", "t2", "t3")),
            (10, names("t2", qos=b"")),
        ]
        assert link.connected and link.connections == 1
        hang_up_now.set()
        link.unlisten(["t4"])
        assert eventually(lambda: link.connected and link.connections == 2)
        assert asked[4:] == [(8, names("p", "t1", "t3"))]


def test_garbage_from_a_broker_does_not_end_the_link(eventually: Eventually) -> None:
    packets = iter(hostile_packets())
    all_sent = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.sendall(CONNACK)
        garbage = next(packets, None)
        if garbage is None:
            all_sent.set()
            connection.sendall(b"\x30\x05\x00\x02ok!")  # a PUBLISH of "!" on "ok"
            wait_for_end(connection)
        else:
            connection.sendall(garbage)

    with peer(talk) as port, closing(MqttLink("127.0.0.1", port, "device")) as link:
        link._client.reconnect_delay_set(0, 1)
        assert eventually(all_sent.is_set)
        topics = set()
        while (packet := link.receive(WAIT_S)) is not None and packet.topic != "ok":
            topics.add(packet.topic)
        assert packet == Packet("ok", b"!", wire_bytes=7, ack_bytes=0)  # QoS 0: no PUBACK
        assert link.contested  # and this is how its owner hears of such a broker


def test_close_does_not_hang_on_a_peer_that_reads_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr(mqtt, "CLOSE_TIMEOUT_S", 0.2)
    done = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.sendall(CONNACK)
        done.wait(WAIT_S)

    with peer(talk) as port:
        link = MqttLink("127.0.0.1", port, "device")
        for _ in range(64):  # more than the kernel's buffers take
            link.publish("t", bytes(CHUNK_BYTES))
        link.close()
        thread = link._client._thread
        done.set()
        assert thread is None or not thread.is_alive()
