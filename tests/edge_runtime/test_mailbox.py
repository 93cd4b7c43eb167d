"""Mailboxes: who hears what, which bytes are booked where, and what is dropped."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.broker import Broker
from edge_runtime import mailbox as mailbox_module
from edge_runtime.errors import ConfigError
from edge_runtime.ledger import Ledger
from edge_runtime.mailbox import (
    UNKNOWN,
    DeviceMailbox,
    ServerMailbox,
    all_topic,
    down_topic,
    up_topic,
    valid_name,
)
from edge_runtime.memory_link import MemoryBroker, MemoryLink
from edge_runtime.messages import (
    VERSION,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Message,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Want,
    Welcome,
    pack,
)
from edge_runtime.mqtt import MqttLink
from edge_runtime.packet import publish_packet_bytes

FED = "fed"
HELLO = Hello("s", 10, 2, [64], 10, "executorch", "x86_64", 2.0, 1 << 30, "0.1")


def ref(kind: str, number: int, size_bytes: int = 1000) -> BlobRef:
    return BlobRef(kind, number.to_bytes(16, "big"), size_bytes)


def chunk(of: BlobRef, data: bytes = b"data") -> Chunk:
    return Chunk(of.digest, 0, of.chunks, of.size_bytes, data)


ASSIGN = Assign(
    "s", 1, 1, [3, 5], ref("program", 1), ref("program", 2), ref("backbone", 3), ref("gate", 4),
    [ref("expert:3", 5), ref("expert:5", 6)], False, 1, 8, "sgd", 0.1, 0.9, 0.0, 0.9, 0.99, 1e-8,
    0.0, 7,
)  # fmt: skip
REPORT = Report(
    "s", 1, 1, [3, 5], [4, 6], [0.5, 0.25], [3, 6], 0.4, 1, 2, {"train_s": 1.5},
    [ref("backbone", 13), ref("gate", 14), ref("expert:3", 15), ref("expert:5", 16)],
)  # fmt: skip
WANTS = Fetch([Want(ref("gate", 4).digest, 0, 1)])
FROM_DEVICE: list[Message] = [
    HELLO,
    WANTS,
    chunk(ref("gate", 9)),
    REPORT,
    Failed("s", 1, 1, "x", 0),
    Gone("x"),
]
TO_ALL: list[Message] = [Rollcall("s"), Stop("s", "done")]
FROM_SERVER: list[Message] = [
    *TO_ALL, Welcome("s"), Reject("s", "x"), ASSIGN, WANTS, chunk(ref("gate", 9)),
    Received("s", 1, 1),
]  # fmt: skip


class World:
    """A server, two devices, and a stranger who may publish anything, in memory."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.server_link = MemoryLink(self.broker, "server")
        self.server = ServerMailbox(self.server_link, FED, Ledger())
        self.server.know("ann")
        self.server.know("bob")
        self.links = {name: MemoryLink(self.broker, name) for name in ("ann", "bob")}
        self.ann, self.bob = (
            DeviceMailbox(link, FED, name, Ledger()) for name, link in self.links.items()
        )
        self.stranger = MemoryLink(self.broker, "stranger")


@pytest.fixture
def world() -> World:
    return World()


def booked(ledger: Ledger) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    return {
        (row.client, row.direction, row.kind): (row.payload_bytes, row.wire_bytes, row.messages)
        for row in ledger.rows()
    }


@pytest.mark.parametrize("message", FROM_DEVICE, ids=lambda m: type(m).__name__)
def test_a_device_speaks_to_the_server_alone(world: World, message: Message) -> None:
    world.ann.send(message)
    assert world.server.receive(0) == ("ann", message)
    assert world.server.receive(0) is None
    assert world.bob.receive(0) is None and not world.bob.drops


@pytest.mark.parametrize("message", FROM_SERVER, ids=lambda m: type(m).__name__)
def test_the_server_speaks_to_one_device(world: World, message: Message) -> None:
    world.server.send("ann", message)
    assert world.ann.receive(0) == message
    assert world.bob.receive(0) is None and not world.bob.drops


@pytest.mark.parametrize("message", TO_ALL, ids=lambda m: type(m).__name__)
def test_a_broadcast_reaches_all_and_leaves_once(world: World, message: Message) -> None:
    world.server.broadcast(message)
    assert world.ann.receive(0) == world.bob.receive(0) == message
    payload = len(pack(message))
    wire = publish_packet_bytes(all_topic(FED), payload)
    assert booked(world.server.ledger) == {
        ("", "down", "message"): (payload, wire, 1),
        ("", "up", "message"): (0, 4, 0),
    }
    for device in (world.ann, world.bob):
        assert booked(device.ledger)[device.client, "down", "message"] == (payload, wire, 1)


def test_each_type_has_its_direction(world: World) -> None:
    """What a side does not send is refused there, and dropped where it arrives anyway."""
    everything = [*FROM_DEVICE, *FROM_SERVER]
    for message in everything:
        if message not in FROM_DEVICE:
            with pytest.raises(ValueError, match="never sent"):
                world.ann.send(message)
            world.stranger.publish(up_topic(FED, "ann"), pack(message))
        if message not in FROM_SERVER:
            with pytest.raises(ValueError, match="never sent"):
                world.server.send("ann", message)
            world.stranger.publish(down_topic(FED, "ann"), pack(message))
        if message not in TO_ALL:
            with pytest.raises(ValueError, match="never sent"):
                world.server.broadcast(message)
            world.stranger.publish(all_topic(FED), pack(message))
    assert world.server.receive(0) is None and world.ann.receive(0) is None
    only_server = [message for message in FROM_SERVER if message not in FROM_DEVICE]
    only_device = [message for message in FROM_DEVICE if message not in FROM_SERVER]
    not_all = [message for message in everything if message not in TO_ALL]
    assert world.server.drops == {("ann", "direction"): len(only_server)}
    assert world.ann.drops == {("ann", "direction"): len(only_device) + len(not_all)}


def test_chunks_are_booked_by_what_they_carry(world: World) -> None:
    world.server.send("ann", ASSIGN)
    refs = [ASSIGN.training_program, ASSIGN.backbone, ASSIGN.gate, *ASSIGN.expert_blobs]
    for blob in refs:
        world.server.send("ann", chunk(blob, bytes(100)))
    while world.ann.receive(0):
        pass
    world.ann.send(REPORT)
    assert world.server.receive(0) == ("ann", REPORT)
    world.server.learn("ann", REPORT)
    for blob in REPORT.update:
        world.ann.send(chunk(blob, bytes(200)))
    world.ann.send(chunk(ref("expert:3", 99)))  # nobody named this one
    while world.server.receive(0):
        pass
    server = booked(world.server.ledger)
    assert server == booked(world.ann.ledger)
    down_kinds = {blob.kind for blob in refs}
    up_kinds = {blob.kind for blob in REPORT.update}
    for kind in down_kinds | up_kinds:
        assert server["ann", "down", kind][2] == (kind in down_kinds)
        assert server["ann", "up", kind][2] == (kind in up_kinds)
        assert server["ann", "down", kind][1] > 0 and server["ann", "up", kind][1] > 0
    assert server["ann", "up", "message"][2] == 2  # the report and the unknown chunk
    assert server["ann", "up", "program"] == (0, 4, 0)  # the PUBACK of a program's chunk


def test_kinds_are_of_one_client_until_the_round_is_over(world: World) -> None:
    world.server.send("ann", ASSIGN)
    for client in ("ann", "bob"):
        world.server.send(client, chunk(ASSIGN.gate))
    rows = booked(world.server.ledger)
    assert rows["ann", "down", "gate"][2] == 1
    assert ("bob", "down", "gate") not in rows
    world.server.forget_blobs()
    world.server.send("ann", chunk(ASSIGN.gate))
    rows = booked(world.server.ledger)
    assert rows["ann", "down", "gate"][2] == 1
    assert rows["ann", "down", "message"][2] == 2


def test_a_report_that_nobody_accepted_teaches_no_kinds(world: World) -> None:
    world.ann.send(REPORT)
    world.ann.send(chunk(REPORT.update[0]))
    while world.server.receive(0):
        pass
    assert {row.kind for row in world.server.ledger.rows()} == {"message"}


def test_only_the_last_work_and_report_name_kinds(world: World) -> None:
    """So what a client can make the server remember is bounded by a round."""
    for i in range(100, 105):
        report = dataclasses.replace(REPORT, update=[ref("backbone", i), ref("gate", i + 50)])
        world.server.send("ann", ASSIGN)
        world.server.learn("ann", report)
    for i in range(100, 105):
        world.stranger.publish(up_topic(FED, "ann"), pack(chunk(ref("backbone", i))))
    world.stranger.publish(up_topic(FED, "ann"), pack(chunk(ASSIGN.gate)))
    while world.server.receive(0):
        pass
    rows = booked(world.server.ledger)
    assert rows["ann", "up", "backbone"][2] == rows["ann", "up", "gate"][2] == 1
    assert rows["ann", "up", "message"][2] == 4


def test_a_device_cannot_invent_kinds(world: World) -> None:
    for kind in (
        "message",
        "connection",
        "expert:",
        "expert:x",
        "expert:1234567",
        "Gate",
        "é" * 99,
    ):
        bad = dataclasses.replace(REPORT, update=[ref(kind, 50)])
        world.stranger.publish(up_topic(FED, "ann"), pack(bad))
        world.stranger.publish(up_topic(FED, "ann"), pack(chunk(ref(kind, 50))))
    while world.server.receive(0):
        pass
    assert {row.kind for row in world.server.ledger.rows()} == {"message"}


def test_tables_do_not_grow_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_module, "MAX_CLIENTS", 3)
    for i in range(6):
        world.stranger.publish(up_topic(FED, f"new-{i}"), pack(REPORT))
        world.stranger.publish(up_topic(FED, f"new-{i}"), b"garbage")
    while world.server.receive(0):
        pass
    assert not world.server._kinds._kinds
    assert set(booked(world.server.ledger)) == {
        (UNKNOWN, "up", "message"),
        (UNKNOWN, "down", "message"),
    }
    for i in range(6):
        world.server.know(f"new-{i}")  # ann and bob are two of the three that it may know
        world.ann.link.publish(up_topic(FED, f"new-{i}"), b"garbage")
    while world.server.receive(0):
        pass
    assert {row.client for row in world.server.ledger.rows()} == {UNKNOWN, "new-0"}
    assert len(world.server.drops) == 4
    assert sum(world.server.drops.values()) == 12
    assert world.server.drops["", "malformed"] == 6


def test_a_client_has_an_account_of_its_own_once_it_is_known(world: World) -> None:
    eve = DeviceMailbox(MemoryLink(world.broker, "eve"), FED, "eve", Ledger())
    eve.send(HELLO)  # too early: nobody answers
    assert world.server.receive(0) == ("eve", HELLO)
    early = booked(world.server.ledger)
    world.ann.send(HELLO)
    assert world.server.receive(0) == ("ann", HELLO)
    eve.send(HELLO)
    assert world.server.receive(0) == ("eve", HELLO)
    world.server.know("eve")
    world.server.send("eve", Welcome("s"))
    rows = booked(world.server.ledger)
    assert set(early) == {(UNKNOWN, "up", "message"), (UNKNOWN, "down", "message")}
    assert early.items() <= rows.items()
    assert rows["eve", "up", "message"][0] == rows[UNKNOWN, "up", "message"][0] == len(pack(HELLO))
    assert rows["eve", "down", "message"][2] == 1
    assert sent_and_received(world.server) == (
        world.server_link.sent_bytes,
        world.server_link.received_bytes,
    )
    world.ann.send(HELLO)
    world.server.receive(0)
    world.server.know("late")  # whose hello is not the last message
    assert booked(world.server.ledger).keys() == {*rows.keys()}
    assert not valid_name(UNKNOWN)


BAD_TOPICS = {
    f"flexmoe/{VERSION}/{FED}/up/": "name",
    f"flexmoe/{VERSION}/{FED}/up/{'x' * 65}": "name",
    f"flexmoe/{VERSION}/{FED}/up/a b": "name",
    f"flexmoe/{VERSION}/{FED}/up": "topic",
    f"flexmoe/{VERSION}/{FED}/up/a/b": "topic",
    f"flexmoe/{VERSION + 1}/{FED}/up/ann": "topic",
    f"flexmoe/{VERSION}/other/up/ann": "topic",
    "up/ann": "topic",
}


@pytest.mark.parametrize("topic", BAD_TOPICS, ids=list(BAD_TOPICS.values()))
def test_wrong_topics_and_names_are_dropped(world: World, topic: str) -> None:
    world.server_link.subscribe("#")
    world.stranger.publish(topic, pack(HELLO))
    assert world.server.receive(0) is None
    reason = BAD_TOPICS[topic]
    assert list(world.server.drops.elements()) == [("", reason)]


def test_another_devices_mail_is_dropped(world: World) -> None:
    world.links["ann"].subscribe("#")
    world.server.send("bob", Welcome("s"))
    assert world.ann.receive(0) is None
    assert world.ann.drops == {("", "topic"): 1}


def test_receive_goes_on_past_bad_messages_and_then_stops(world: World) -> None:
    for _ in range(3):
        world.stranger.publish(up_topic(FED, "ann"), b"\xc1")
    world.ann.send(HELLO)
    assert world.server.receive(0) == ("ann", HELLO)
    world.stranger.publish(up_topic(FED, "ann"), b"\xc1")
    started = time.monotonic()
    assert world.server.receive(0.05) is None
    assert time.monotonic() - started >= 0.05
    assert world.server.drops == {("ann", "malformed"): 4}


def test_owners_count_what_they_drop_later(world: World) -> None:
    world.server.drop("bob", "stale")
    world.ann.drop("stale")
    assert world.server.drops == {("bob", "stale"): 1}
    assert world.ann.drops == {("ann", "stale"): 1}


@given(st.lists(st.binary(max_size=60), max_size=8), st.sampled_from(["ann", "bob", "x.y-Z_9"]))
def test_no_bytes_get_past_and_all_are_booked(payloads: list[bytes], client: str) -> None:
    world = World()
    for payload in payloads:
        world.stranger.publish(up_topic(FED, client), payload)
        world.stranger.publish(down_topic(FED, "ann"), payload)
    assert world.server.receive(0) is None and world.ann.receive(0) is None
    for box, link in ((world.server, world.server_link), (world.ann, world.links["ann"])):
        assert sum(box.drops.values()) == len(payloads)
        assert sent_and_received(box) == (link.sent_bytes, link.received_bytes)


MESSAGES = st.one_of(
    st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from(FROM_DEVICE)),
    st.tuples(st.just("server"), st.sampled_from(FROM_SERVER)),
    st.tuples(st.just("all"), st.sampled_from(TO_ALL)),
)


@given(st.lists(MESSAGES, max_size=30))
def test_every_ledger_is_its_socket(conversation: list[tuple[str, Any]]) -> None:
    world = World()
    for speaker, message in conversation:
        if speaker == "server":
            world.server.send("ann", message)
        elif speaker == "all":
            world.server.broadcast(message)
        else:
            {"ann": world.ann, "bob": world.bob}[speaker].send(message)
    for box in (world.server, world.ann, world.bob):
        while box.receive(0):
            pass
    boxes = {"ann": world.ann, "bob": world.bob}
    for name, link in [("server", world.server_link), *world.links.items()]:
        box = boxes.get(name, world.server)
        assert sent_and_received(box) == (link.sent_bytes, link.received_bytes)
    spoken = Counter(speaker for speaker, _ in conversation)
    for name, box in boxes.items():
        total = sum(row.messages for row in box.ledger.rows())
        heard = spoken["all"] + (spoken["server"] if name == "ann" else 0)
        assert total == spoken[name] + heard


def sent_and_received(box: ServerMailbox | DeviceMailbox) -> tuple[int, int]:
    """What the ledger says went out of this side and came in."""
    up, down = box.ledger.uplink_bytes, box.ledger.downlink_bytes
    return (down, up) if isinstance(box, ServerMailbox) else (up, down)


def test_over_a_real_broker_ledger_and_socket_agree(
    broker: Broker, unique: str, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    """Beyond the ledger the socket saw CONNECT, SUBSCRIBE and their answers, and nothing else."""
    with ExitStack() as stack:

        def connect(name: str) -> MqttLink:
            link = MqttLink(broker.host, broker.port, f"{unique}-{name}")
            return stack.enter_context(closing(link))

        server_link, device_link = connect("server"), connect("ann")
        server = ServerMailbox(server_link, unique, Ledger())
        server.know("ann")
        device = DeviceMailbox(device_link, unique, "ann", Ledger())
        overhead = [(link.sent_bytes, link.received_bytes) for link in (server_link, device_link)]
        server.broadcast(Rollcall("s"))
        assert device.receive(15) == Rollcall("s")
        device.send(HELLO)
        assert server.receive(15) == ("ann", HELLO)
        server.send("ann", ASSIGN)
        assert device.receive(15) == ASSIGN
        for blob in (ASSIGN.gate, *ASSIGN.expert_blobs):
            server.send("ann", chunk(blob, bytes(100_000)))
            assert device.receive(15) == chunk(blob, bytes(100_000))
        device.send(REPORT)
        assert server.receive(15) == ("ann", REPORT)
        boxes: list[ServerMailbox | DeviceMailbox] = [server, device]
        for box, link, (sent, received) in zip(
            boxes, (server_link, device_link), overhead, strict=True
        ):

            def moved() -> tuple[int, int]:
                return link.sent_bytes - sent, link.received_bytes - received  # noqa: B023

            # The last acknowledgements may still be on their way.
            assert eventually(lambda: sent_and_received(box) == moved())  # noqa: B023
        one_way = booked(server.ledger)
        assert (
            one_way["ann", "down", "expert:3"] == booked(device.ledger)["ann", "down", "expert:3"]
        )


@given(st.text(max_size=70))
def test_names(text: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert valid_name(text) == (0 < len(text) <= 64 and set(text) <= allowed)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "x" * 65, "a\n"])
def test_bad_names_are_refused(world: World, name: str) -> None:
    with pytest.raises(ConfigError, match="federation name"):
        ServerMailbox(world.server_link, name, Ledger())
    with pytest.raises(ConfigError, match="device name"):
        DeviceMailbox(world.stranger, FED, name, Ledger())
    with pytest.raises(ValueError, match="device name"):
        world.server.send(name, Welcome("s"))
