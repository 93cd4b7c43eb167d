"""The `Link` contract, on the in-memory twin and on MQTT over real brokers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import BrokerError, WireError
from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES
from edge_runtime.transport import link as link_module
from edge_runtime.transport import mqtt
from edge_runtime.transport.inbox import Inbox
from edge_runtime.transport.link import Link
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink, topic_matches
from edge_runtime.transport.mqtt import MqttLink
from edge_runtime.transport.packet import Packet, publish_packet_bytes

WAIT_S = 15.0
Connect = Callable[..., Link]
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(params=["memory", "mosquitto", "amqtt"])
def connect(
    request: pytest.FixtureRequest, running_broker: Any, unique: str, monkeypatch: Any
) -> Iterator[Connect]:
    """Opens links of one kind to one broker: `connect(name, will=..., inbox_packets=...)`."""
    monkeypatch.setattr(mqtt, "RECONNECT_MIN_S", 0.05)
    links: list[Link] = []
    memory = MemoryBroker()
    broker = None if request.param == "memory" else running_broker(request.param)

    def open_link(name: str, **options: Any) -> Link:
        if broker is None:
            link: Link = MemoryLink(memory, name, **options)
        else:
            link = MqttLink(broker.host, broker.port, f"{unique}-{name}", **options)
        links.append(link)
        return link

    yield open_link
    for link in links:
        link.close()


def lose_connection(link: Link) -> None:
    if isinstance(link, MemoryLink):
        link.kill()
    else:
        assert isinstance(link, MqttLink)
        sock = link._client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)


def restore_connection(link: Link) -> None:
    if isinstance(link, MemoryLink):
        link.restore()


def receive(link: Link) -> Packet:
    packet = link.receive(WAIT_S)
    assert packet is not None
    return packet


def test_a_packet_arrives_whole_at_every_subscriber_and_at_nobody_else(
    connect: Connect, unique: str
) -> None:
    sender, one, two, other = map(connect, ["sender", "one", "two", "other"])
    one.subscribe(f"{unique}/up/+")
    two.subscribe(f"{unique}/#")
    other.subscribe(f"{unique}/down/one")
    sent = sender.publish(f"{unique}/up/sender", b"\x00\xffdata")
    sender.publish(f"{unique}/down/one", b"the end")
    assert receive(one) == receive(two) == sent
    assert receive(other).payload == b"the end"
    assert other.receive(0) is None


def test_order_is_kept(connect: Connect, unique: str) -> None:
    sender, receiver = connect("sender"), connect("receiver")
    receiver.subscribe(unique)
    payloads = [bytes([i]) * (1 + 997 * (i % 7)) for i in range(200)]
    for payload in payloads:
        sender.publish(unique, payload)
    assert [receive(receiver).payload for _ in payloads] == payloads


# 127/128 and 16383/16384 are where the remaining length grows by a byte.
BOUNDARIES = [
    0,
    1,
    *(edge + delta for edge in (128, 16384) for delta in (-1, 0)),
    MAX_MESSAGE_BYTES,
]


def test_stated_sizes_are_what_the_socket_moved(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    sender, receiver = connect("sender"), connect("receiver")
    receiver.subscribe(unique)
    header_bytes = 2 + len(unique) + 2
    for remaining in BOUNDARIES:
        sent_before, acked_before = sender.sent_bytes, sender.received_bytes
        got_before, answered_before = receiver.received_bytes, receiver.sent_bytes
        sent = sender.publish(unique, bytes(max(0, remaining - header_bytes)))
        assert sender.flush(WAIT_S)
        assert sender.sent_bytes - sent_before == sent.wire_bytes
        assert sender.received_bytes - acked_before == sent.ack_bytes == 4
        assert receive(receiver) == sent
        assert receiver.received_bytes - got_before == sent.wire_bytes
        # The acknowledgement leaves after the packet is in the inbox.
        assert eventually(lambda: receiver.sent_bytes - answered_before == sent.ack_bytes)  # noqa: B023


def test_receive_gives_up_after_its_timeout(connect: Connect) -> None:
    link = connect("alone")
    assert link.receive(0) is None
    assert link.receive(0.01) is None
    assert link.receive(-1) is None


def test_a_full_inbox_drops_and_counts(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    sender, receiver = connect("sender"), connect("receiver", inbox_packets=3)
    receiver.subscribe(unique)
    for i in range(5):
        sender.publish(unique, bytes([i]))
    assert eventually(lambda: receiver.overflowed == 2)
    assert [receive(receiver).payload[0] for _ in range(3)] == [0, 1, 2]
    assert receiver.receive(0) is None
    sender.publish(unique, b"room again")
    assert receive(receiver).payload == b"room again"


def test_too_large_a_payload_never_leaves(connect: Connect, unique: str) -> None:
    link = connect("sender")
    before = link.sent_bytes
    with pytest.raises(WireError, match="oversized"):
        link.publish(unique, bytes(MAX_MESSAGE_BYTES + 1))
    assert link.flush(WAIT_S)
    assert link.sent_bytes == before


@pytest.mark.parametrize(("limit", "value"), [("OUTBOX_PACKETS", 3), ("OUTBOX_BYTES", 3 * 1000)])
def test_what_waits_to_be_acknowledged_fills_the_room(
    connect: Connect, unique: str, eventually: Eventually, monkeypatch: Any, limit: str, value: int
) -> None:
    monkeypatch.setattr(link_module, limit, value)
    link = connect("sender")
    lose_connection(link)
    assert eventually(lambda: not link.connected)
    if isinstance(link, MqttLink):
        link._client.reconnect_delay_set(1, 1)
    rooms = []
    for _ in range(4):
        rooms.append(link.has_room())
        link.publish(unique, bytes(1000))
    assert rooms == [True, True, True, False]
    restore_connection(link)
    assert link.flush(WAIT_S) and link.has_room()


def test_what_waits_to_be_taken_is_not_settled(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    sender, receiver = connect("sender"), connect("receiver")
    receiver.subscribe(unique)
    before = receiver.settled_bytes()
    sent = [sender.publish(unique, bytes(size)) for size in (10, 300, 5)]
    wire_bytes = [packet.wire_bytes for packet in sent]
    received_bytes = before[1] + sum(wire_bytes)
    assert eventually(lambda: receiver.received_bytes == received_bytes)
    assert eventually(lambda: receiver.sent_bytes == before[0] + 12)
    for taken in range(4):
        settled = (before[0] + 4 * taken, before[1] + sum(wire_bytes[:taken]))
        assert eventually(lambda: receiver.settled_bytes() == settled)  # noqa: B023
        receiver.receive(0)


def test_a_lost_connection_comes_back_with_subscriptions_and_what_was_published(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    steady, flaky = connect("steady"), connect("flaky")
    steady.subscribe(f"{unique}/up")
    flaky.subscribe(f"{unique}/down")
    assert flaky.connected and flaky.connections == 1
    lose_connection(flaky)
    assert eventually(lambda: not flaky.connected or flaky.connections > 1)
    flaky.publish(f"{unique}/up", b"from before")
    restore_connection(flaky)
    assert eventually(lambda: flaky.connected and flaky.connections == 2)
    steady.publish(f"{unique}/down", b"still there?")
    assert receive(flaky).payload == b"still there?"
    assert receive(steady).payload == b"from before"
    assert flaky.flush(WAIT_S)
    assert not flaky.contested


def test_what_is_retained_comes_to_whoever_listens_later(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    sender, late = connect("sender"), connect("late")
    topics = [f"{unique}/{i}" for i in range(5)]
    sent = {topic: sender.publish(topic, topic.encode() * 100, retain=True) for topic in topics}
    sender.publish(topics[0], b"for those who listen now")
    assert sender.flush(WAIT_S)
    before = late.settled_bytes()[1]
    late.listen(topics[:3])
    assert {packet.topic: packet for packet in (receive(late) for _ in range(3))} == {
        topic: sent[topic] for topic in topics[:3]
    }
    wire_bytes = sum(sent[topic].wire_bytes for topic in topics[:3])
    suback_bytes = 0 if isinstance(late, MemoryLink) else 2 + 2 + 3
    assert eventually(lambda: late.settled_bytes()[1] == before + wire_bytes + suback_bytes)
    sender.publish(topics[1], b"news")
    assert receive(late).payload == b"news"
    late.listen([topics[0]])  # again: so it comes again
    assert receive(late) == sent[topics[0]]
    assert late.receive(0) is None


def test_a_pattern_gets_what_is_retained_too(connect: Connect, unique: str) -> None:
    sender, late = connect("sender"), connect("late")
    sent = sender.publish(f"{unique}/a/b", b"kept", retain=True)
    assert sender.flush(WAIT_S)
    late.subscribe(f"{unique}/+/b")
    assert receive(late) == sent


def test_what_nobody_listens_to_any_more_does_not_come(connect: Connect, unique: str) -> None:
    sender, receiver = connect("sender"), connect("receiver")
    receiver.subscribe(f"{unique}/all")
    receiver.listen([f"{unique}/a", f"{unique}/b", f"{unique}/c"])
    receiver.unlisten([f"{unique}/a", f"{unique}/c", f"{unique}/never asked for"])
    receiver.listen([f"{unique}/d"])
    # The broker answers a client in order: when this has come, all of that was done.
    receiver.publish(f"{unique}/all", b"done")
    assert receive(receiver).payload == b"done"
    for name in ("a", "b", "c", "d", "all"):
        sender.publish(f"{unique}/{name}", name.encode())
    assert [receive(receiver).payload for _ in range(3)] == [b"b", b"d", b"all"]
    assert receiver.receive(0) is None


def test_an_empty_payload_clears_what_is_retained(connect: Connect, unique: str) -> None:
    sender, early, late = connect("sender"), connect("early"), connect("late")
    early.listen([unique, f"{unique}/ready"])
    early.publish(f"{unique}/ready", b"ready")
    assert receive(early).payload == b"ready"  # the broker has it on: a client is served in order
    sender.publish(unique, b"old", retain=True)
    sender.publish(unique, b"new", retain=True)
    assert [receive(early).payload for _ in range(2)] == [b"old", b"new"]
    sender.publish(unique, b"", retain=True)
    assert receive(early).payload == b""
    assert sender.flush(WAIT_S)
    late.listen([unique, f"{unique}/marker"])
    sender.publish(f"{unique}/marker", b"marker", retain=True)
    assert receive(late).payload == b"marker"


def test_listening_survives_a_lost_connection(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    sender, flaky = connect("sender"), connect("flaky")
    for name in "abcd":
        sender.publish(f"{unique}/{name}", name.encode(), retain=True)
    assert sender.flush(WAIT_S)
    flaky.listen([f"{unique}/a", f"{unique}/b"])
    assert sorted(receive(flaky).payload for _ in range(2)) == [b"a", b"b"]
    lose_connection(flaky)
    assert eventually(lambda: not flaky.connected or flaky.connections > 1)
    flaky.unlisten([f"{unique}/a"])
    flaky.listen([f"{unique}/c"])
    restore_connection(flaky)
    assert eventually(lambda: flaky.connected and flaky.connections == 2)
    came = {receive(flaky).payload for _ in range(2)}
    flaky.listen([f"{unique}/d"])
    while (packet := receive(flaky)).payload != b"d":  # `c` twice, if it was back before `listen`
        came.add(packet.payload)
    assert came <= {b"a", b"b", b"c"} and came >= {b"b", b"c"}


def test_the_will_is_published_for_a_lost_connection(connect: Connect, unique: str) -> None:
    watcher = connect("watcher")
    watcher.subscribe(f"{unique}/#")
    lose_connection(connect("victim", will=(f"{unique}/gone", b"victim")))
    assert (received := receive(watcher)).payload == b"victim"
    assert received.topic == f"{unique}/gone"


def test_close_sends_what_is_left_and_no_will(connect: Connect, unique: str) -> None:
    watcher, link = connect("watcher"), connect("link", will=(f"{unique}/gone", b"will"))
    watcher.subscribe(f"{unique}/#")
    link.publish(f"{unique}/last", b"words")
    link.close()
    link.close()
    assert not link.connected
    assert link.receive(WAIT_S) is None
    with pytest.raises(BrokerError, match="closed"):
        link.publish(unique, b"")
    assert receive(watcher).payload == b"words"
    # A will would come before this: the broker has seen the link end by now.
    connect("marker").publish(f"{unique}/marker", b"marker")
    assert receive(watcher).payload == b"marker"


def test_close_wakes_a_waiting_receive(connect: Connect) -> None:
    link = connect("waiting")
    answers: list[Packet | None] = []
    waiter = threading.Thread(target=lambda: answers.append(link.receive(60)))
    waiter.start()
    link.close()
    waiter.join(WAIT_S)
    assert answers == [None]


def test_the_same_name_takes_over_and_the_first_one_loses_its_connection(
    connect: Connect, unique: str, eventually: Eventually
) -> None:
    watcher = connect("watcher")
    watcher.subscribe(f"{unique}/#")
    first = connect("twin", will=(f"{unique}/gone", b"first"))
    with contextlib.suppress(BrokerError):  # the first one may be back before the second is in
        connect("twin")
    assert receive(watcher).payload == b"first"
    assert eventually(lambda: not first.connected or first.connections > 1)


def test_a_memory_broker_may_keep_nothing() -> None:
    broker = MemoryBroker(retains=False)
    sender, early, late = (MemoryLink(broker, name) for name in ("sender", "early", "late"))
    early.listen(["t"])
    sender.publish("t", b"data", retain=True)
    late.listen(["t"])
    assert receive(early).payload == b"data"
    assert late.receive(0) is None


def test_a_memory_broker_may_refuse_topics() -> None:
    broker = MemoryBroker(refuses="b/#")
    sender, receiver = MemoryLink(broker, "sender"), MemoryLink(broker, "receiver")
    sender.publish("b/1", b"retained", retain=True)
    receiver.listen(["a", "b/1"])
    assert receiver.refused == "b/1" and sender.refused == ""
    for topic in ("b/1", "a"):
        sender.publish(topic, b"now")
    assert receive(receiver).topic == "a" and receiver.receive(0) is None
    receiver.unlisten(["b/1"])
    assert receiver.refused == ""


def test_a_memory_broker_that_restarts_knows_nothing_and_nobody() -> None:
    broker = MemoryBroker()
    sender = MemoryLink(broker, "sender", will=("gone", b"sender"))
    receiver = MemoryLink(broker, "receiver")
    receiver.subscribe("gone")
    sender.publish("t", b"before", retain=True)
    broker.restart()
    assert not sender.connected and not receiver.connected
    sender.publish("t", b"meanwhile")
    receiver.listen(["t"])
    receiver.restore()
    assert receiver.receive(0) is None
    sender.restore()
    assert receive(receiver).payload == b"meanwhile"
    assert receiver.receive(0) is None


def test_inbox_is_bounded_by_bytes_too() -> None:
    inbox = Inbox(max_packets=100, max_bytes=10)
    for size in (6, 5, 4):
        inbox.put(Packet.of("t", bytes(size)))
    assert inbox.overflowed == 1
    assert [len(receive_from(inbox)) for _ in range(2)] == [6, 4]
    inbox.put(Packet.of("t", bytes(MAX_MESSAGE_BYTES + 1)))
    assert (inbox.oversized, inbox.overflowed) == (1, 1)


def receive_from(inbox: Inbox) -> bytes:
    packet = inbox.get(0)
    assert packet is not None
    return packet.payload


LEVELS = st.lists(st.sampled_from(["a", "b", "", "$x", "é"]), min_size=1, max_size=4)
WILD = st.lists(st.sampled_from(["a", "b", "", "+", "$x", "é"]), min_size=1, max_size=4)


@given(WILD, st.booleans(), LEVELS)
def test_topics_match_as_in_paho(pattern: list[str], hash_end: bool, topic: list[str]) -> None:
    text = "/".join([*pattern, "#"] if hash_end else pattern)
    name = "/".join(topic)
    if text and name:
        assert topic_matches(text, name) == paho.topic_matches_sub(text, name)


def varint_bytes(value: int) -> int:
    return next(n for n in itertools.count(1) if value < 128**n)


@given(st.text(min_size=1, max_size=80), st.integers(0, 2**28 - 200), st.sampled_from([0, 1]))
def test_packet_size_is_that_of_the_standard(topic: str, payload_bytes: int, qos: int) -> None:
    body = 2 + len(topic.encode()) + 2 * qos + payload_bytes
    if body < 128**4:
        expected = 1 + varint_bytes(body) + body
        assert publish_packet_bytes(topic, payload_bytes, qos) == expected


def test_no_packet_is_larger_than_mqtt_allows() -> None:
    with pytest.raises(ValueError, match="268435455"):
        publish_packet_bytes("t", 2**28)
