"""Mailboxes: who hears what, which bytes are booked where, and what is dropped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.brokers.broker import Broker
from edge_runtime.errors import ConfigError, WireError
from edge_runtime.protocol import mailbox as mailbox_module
from edge_runtime.protocol.blob import chunk
from edge_runtime.protocol.ledger import CONNECTION, EVERYONE, Ledger, from_moved
from edge_runtime.protocol.mailbox import UNKNOWN, DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import (
    CHUNK_BYTES,
    VERSION,
    Account,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Holding,
    Message,
    Moved,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Welcome,
    pack,
)
from edge_runtime.protocol.topics import all_topic, blob_topic, down_topic, up_topic, valid_name
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from edge_runtime.transport.mqtt import MqttLink
from edge_runtime.transport.packet import publish_packet_bytes
from tests.edge_runtime.examples import ASSIGN, EXAMPLES, HELLO, REPORT, name

FED = "fed"
FROM_DEVICE: list[Message] = [
    EXAMPLES[cls] for cls in (Hello, Holding, Fetch, Chunk, Report, Failed, Gone, Account)
]
TO_ALL: list[Message] = [EXAMPLES[cls] for cls in (Rollcall, Stop)]
FROM_SERVER: list[Message] = [
    *TO_ALL,
    *(EXAMPLES[cls] for cls in (Welcome, Reject, Assign, Fetch, Received)),
]
SECTIONS = [
    (kind, size)
    for kind, size in zip(
        ["backbone", "gate", "expert:1", "expert:4"], REPORT.sections, strict=True
    )
]
UPDATE = bytes(REPORT.update.size_bytes)


def parts_of_update() -> list[Chunk]:
    count = REPORT.update.chunks(CHUNK_BYTES)
    return [chunk(REPORT.update.digest, UPDATE, index, CHUNK_BYTES) for index in range(count)]


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
        (EVERYONE, "down", "control"): (payload, wire, 1),
        (EVERYONE, "up", "control"): (0, 4, 0),
    }
    for device in (world.ann, world.bob):
        assert booked(device.ledger)[device.client, "down", "control"] == (payload, wire, 1)


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


def test_updates_are_booked_by_their_sections(world: World) -> None:
    for box in (world.server, world.ann):
        box.chunk_bytes = CHUNK_BYTES
    world.ann.learn(REPORT.update, SECTIONS)
    world.ann.send(REPORT)
    assert world.server.receive(0) == ("ann", REPORT)
    world.server.learn("ann", REPORT.update, SECTIONS)
    for part in parts_of_update():
        world.ann.send(part)
    world.ann.send(Chunk(name(99), 0, bytes(100)))  # nobody named this one
    while world.server.receive(0):
        pass
    server = booked(world.server.ledger)
    assert server == booked(world.ann.ledger)
    around_bytes = sum(len(pack(part)) - len(part.data) for part in parts_of_update())
    for kind, size in SECTIONS:
        most = max(size for _, size in SECTIONS)
        assert server["ann", "up", kind][0] == size + (around_bytes if size == most else 0)
    assert sum(server["ann", "up", kind][2] for kind, _ in SECTIONS) == 1  # one chunk in all
    assert server["ann", "up", "control"][2] == 2  # the report and the unknown chunk
    assert server["ann", "down", "backbone"] == (0, 4, 0)  # the PUBACK goes with the largest


def test_updates_are_of_one_client_until_the_round_is_over(world: World) -> None:
    world.server.learn("ann", REPORT.update, SECTIONS)
    [part] = parts_of_update()
    world.bob.send(part)
    world.server.receive(0)
    assert {row.kind for row in world.server.ledger.rows()} == {"control"}
    world.ann.send(part)
    world.server.receive(0)
    assert {row.kind for row in world.server.ledger.cut()} == {"control", *dict(SECTIONS)}
    world.server.forget_updates()
    world.ann.send(part)
    world.server.receive(0)
    assert {row.kind for row in world.server.ledger.cut()} == {"control"}


def test_a_report_that_nobody_accepted_teaches_no_kinds(world: World) -> None:
    world.ann.send(REPORT)
    world.ann.send(parts_of_update()[0])
    while world.server.receive(0):
        pass
    assert {row.kind for row in world.server.ledger.rows()} == {"control"}


def test_only_the_last_update_has_kinds(world: World) -> None:
    """So what a client can make the server remember is bounded by a round."""
    for i in range(100, 105):
        world.server.learn("ann", BlobRef(name(i), 10), [("gate", 10)])
    for i in range(100, 105):
        world.stranger.publish(up_topic(FED, "ann"), pack(Chunk(name(i), 0, bytes(10))))
    while world.server.receive(0):
        pass
    rows = booked(world.server.ledger)
    assert rows["ann", "up", "gate"][2] == 1
    assert rows["ann", "up", "control"][2] == 4


def test_sections_that_are_not_the_updates_are_refused(world: World) -> None:
    bad = [("backbone", REPORT.update.size_bytes + 1)]
    with pytest.raises(WireError, match="bad-sections"):
        world.server.learn("ann", REPORT.update, bad)
    with pytest.raises(WireError, match="bad-sections"):
        world.ann.learn(REPORT.update, bad)


_section_sizes = st.lists(st.integers(1, 900), min_size=1, max_size=6)


@given(_section_sizes, st.integers(16, 400), st.data())
def test_the_rows_of_an_update_are_its_packets(
    sizes: list[int], chunk_bytes: int, data: st.DataObject
) -> None:
    """Byte by byte: an oracle that knows nothing of shares colours the update's bytes."""
    kinds = ["backbone", "gate", *(f"expert:{i}" for i in range(len(sizes)))]
    sections = [(data.draw(st.sampled_from(kinds)), size) for size in sizes]
    blob = bytes(sum(sizes))
    update = BlobRef(name(7), len(blob))
    colours = [kind for kind, size in sections for _ in range(size)]
    world = World()
    world.server.chunk_bytes = world.ann.chunk_bytes = chunk_bytes
    world.server.learn("ann", update, sections)
    world.ann.learn(update, sections)
    payload_bytes, wire_bytes = Counter[str](), 0
    count = update.chunks(chunk_bytes)
    for index in range(count):
        part = chunk(update.digest, blob, index, chunk_bytes)
        world.ann.send(part)
        assert world.server.receive(0) == ("ann", part)
        own = Counter(colours[index * chunk_bytes : (index + 1) * chunk_bytes])
        own[own.most_common(1)[0][0]] += len(pack(part)) - len(part.data)
        payload_bytes += own
        wire_bytes += publish_packet_bytes(up_topic(FED, "ann"), len(pack(part)))
    for box in (world.server, world.ann):
        up = [row for row in box.ledger.rows() if row.direction == "up"]
        assert {row.kind: row.payload_bytes for row in up} == payload_bytes
        assert sum(row.wire_bytes for row in up) == wire_bytes
        assert sum(row.messages for row in up) == count
    assert booked(world.server.ledger) == booked(world.ann.ledger)
    assert sent_and_received(world.ann) == world.links["ann"].settled_bytes()
    assert sent_and_received(world.server) == world.server_link.settled_bytes()


def test_chunks_that_are_offered_reach_who_listens(world: World) -> None:
    for index in range(3):
        world.server.offer(name(1), "gate", index, bytes([index]) * 100, retain=True)
    world.ann.listen(name(1), "gate", [0, 2])
    assert world.ann.receive(0) == Chunk(name(1), 0, bytes([0]) * 100)
    assert world.ann.receive(0) == Chunk(name(1), 2, bytes([2]) * 100)
    assert world.ann.receive(0) is None and world.bob.receive(0) is None
    world.ann.unlisten(name(1), [0, 2])
    world.server.offer(name(1), "gate", 0, b"again", retain=False)
    assert world.ann.receive(0) is None and not world.ann.drops
    topic = blob_topic(FED, name(1), 0)
    packet_bytes = publish_packet_bytes(topic, 100)
    assert booked(world.ann.ledger) == {
        ("ann", "down", "gate"): (200, 2 * packet_bytes, 2),
        ("ann", "up", "gate"): (0, 8, 0),
    }
    again_bytes = publish_packet_bytes(topic, 5)
    assert booked(world.server.ledger) == {
        (EVERYONE, "down", "gate"): (305, 3 * packet_bytes + again_bytes, 4),
        (EVERYONE, "up", "gate"): (0, 16, 0),
    }


def test_what_is_not_retained_is_for_who_listens_now(world: World) -> None:
    world.ann.listen(name(1), "program", [5])
    world.server.offer(name(1), "program", 5, b"now", retain=False)
    world.bob.listen(name(1), "program", [5])
    assert world.ann.receive(0) == Chunk(name(1), 5, b"now")
    assert world.bob.receive(0) is None


def test_a_withdrawn_chunk_is_gone_and_booked_alike_on_both_sides(world: World) -> None:
    world.server.offer(name(1), "gate", 0, b"data", retain=True)
    world.ann.listen(name(1), "gate", [0])
    assert world.ann.receive(0) == Chunk(name(1), 0, b"data")
    world.server.withdraw(name(1), 0)
    assert world.ann.receive(0) is None
    assert world.ann.drops == {("ann", "withdrawn"): 1}
    world.bob.listen(name(1), "gate", [0])
    assert world.bob.receive(0) is None
    server, ann = booked(world.server.ledger), booked(world.ann.ledger)
    for way in ("up", "down"):
        for kind in ("gate", "control"):
            assert server[EVERYONE, way, kind] == ann["ann", way, kind]


def test_what_is_on_its_way_when_a_device_has_enough_is_booked_by_its_kind(world: World) -> None:
    world.ann.listen(name(1), "gate", [0])
    world.server.offer(name(1), "gate", 0, b"data", retain=True)
    world.ann.unlisten(name(1), [0])
    assert world.ann.receive(0) == Chunk(name(1), 0, b"data")
    world.ann.listen(name(1), "gate", [0])
    world.ann.forget_blobs()  # it belongs to the work before
    assert world.ann.receive(0) == Chunk(name(1), 0, b"data")
    world.ann.listen(name(1), "gate", [0])
    world.ann.forget_blobs()
    world.ann.forget_blobs()
    assert world.ann.receive(0) is None
    assert world.ann.drops == {("", "topic"): 1}
    assert {(row.client, row.kind) for row in world.ann.ledger.rows()} == {
        ("ann", "gate"), ("", "control"),
    }  # fmt: skip


def test_a_chunk_that_comes_back_is_no_part_of_the_update(world: World) -> None:
    world.ann.learn(REPORT.update, SECTIONS)
    world.stranger.publish(down_topic(FED, "ann"), pack(parts_of_update()[0]))
    assert world.ann.receive(0) is None
    assert world.ann.drops == {("ann", "direction"): 1}
    assert {row.kind for row in world.ann.ledger.rows()} == {"control"}


def test_tables_do_not_grow_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_module, "MAX_CLIENTS", 3)
    for i in range(6):
        world.stranger.publish(up_topic(FED, f"new-{i}"), pack(REPORT))
        world.stranger.publish(up_topic(FED, f"new-{i}"), b"garbage")
    while world.server.receive(0):
        pass
    assert set(booked(world.server.ledger)) == {
        (UNKNOWN, "up", "control"),
        (UNKNOWN, "down", "control"),
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
    world.server.send("eve", EXAMPLES[Welcome])
    rows = booked(world.server.ledger)
    assert set(early) == {(UNKNOWN, "up", "control"), (UNKNOWN, "down", "control")}
    assert early.items() <= rows.items()
    assert rows["eve", "up", "control"][0] == rows[UNKNOWN, "up", "control"][0] == len(pack(HELLO))
    assert rows["eve", "down", "control"][2] == 1
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
    f"fm{VERSION}/{FED}/up/": "name",
    f"fm{VERSION}/{FED}/up/{'x' * 65}": "name",
    f"fm{VERSION}/{FED}/up/a b": "name",
    f"fm{VERSION}/{FED}/up": "topic",
    f"fm{VERSION}/{FED}/up/a/b": "topic",
    f"fm{VERSION + 1}/{FED}/up/ann": "topic",
    f"fm{VERSION}/other/up/ann": "topic",
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
    world.server.send("bob", EXAMPLES[Welcome])
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
    for owner, link in [("server", world.server_link), *world.links.items()]:
        box = boxes.get(owner, world.server)
        assert sent_and_received(box) == (link.sent_bytes, link.received_bytes)
    spoken = Counter(speaker for speaker, _ in conversation)
    for owner, box in boxes.items():
        total = sum(row.messages for row in box.ledger.rows())
        heard = spoken["all"] + (spoken["server"] if owner == "ann" else 0)
        assert total == spoken[owner] + heard


_acts = st.lists(
    st.tuples(
        st.sampled_from(["up", "down", "all", "offer", "take", "tell", "junk"]), st.integers(0, 9)
    ),
    max_size=40,
)


@given(_acts)
def test_a_devices_accounts_add_up_to_its_socket(acts: list[tuple[str, int]]) -> None:
    world, told = World(), Ledger()
    link = world.links["ann"]
    world.ann.listen(name(1), "gate", range(5))
    world.ann.learn(REPORT.update, SECTIONS)
    for act, number in acts:
        match act:
            case "up":
                world.ann.send(FROM_DEVICE[number] if number < 8 else parts_of_update()[0])
            case "down":
                world.server.send("ann", FROM_SERVER[number % len(FROM_SERVER)])
            case "all":
                world.server.broadcast(TO_ALL[number % 2])
            case "offer":
                world.server.offer(name(1), "gate", number, bytes(number + 1), retain=True)
            case "junk":
                world.stranger.publish(down_topic(FED, "ann"), bytes(number))
            case "take":
                world.ann.receive(0)
            case "tell":
                account = world.ann.account()
                told.merge(from_moved("ann", account))
                settled = link.settled_bytes()
                assert (told.uplink_bytes, told.downlink_bytes) == settled
                # Every byte on this link belongs to a packet that is booked.
                assert CONNECTION not in {moved.kind for moved in account}
    while world.ann.receive(0):
        pass
    told.merge(from_moved("ann", world.ann.account()))
    assert (told.uplink_bytes, told.downlink_bytes) == (link.sent_bytes, link.received_bytes)
    assert world.ann.account() == []


def test_an_account_names_the_bytes_that_nobody_booked(world: World) -> None:
    """As SUBSCRIBE and PING packets, which a real link moves."""
    link = world.links["ann"]
    world.ann.send(HELLO)
    link.sent_bytes += 50
    link.received_bytes += 7
    wire_bytes = publish_packet_bytes(up_topic(FED, "ann"), len(pack(HELLO)))
    assert world.ann.account() == [
        Moved(CONNECTION, 0, 50, 0, 0, 7, 0),
        Moved("control", len(pack(HELLO)), wire_bytes, 1, 0, 4, 0),
    ]
    assert world.ann.account() == []


def sent_and_received(box: ServerMailbox | DeviceMailbox) -> tuple[int, int]:
    """What the ledger says went out of this side and came in."""
    up, down = box.ledger.uplink_bytes, box.ledger.downlink_bytes
    return (down, up) if isinstance(box, ServerMailbox) else (up, down)


def test_over_a_real_broker_ledger_and_socket_agree(
    broker: Broker, unique: str, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    """Beyond the ledger the server's socket saw CONNECT, SUBSCRIBE and their answers, and nothing
    else; a device tells of all that its socket moved, those included."""
    with ExitStack() as stack:

        def connect(owner: str) -> MqttLink:
            link = MqttLink(broker.host, broker.port, f"{unique}-{owner}")
            return stack.enter_context(closing(link))

        server_link, device_link = connect("server"), connect("ann")
        server = ServerMailbox(server_link, unique, Ledger())
        server.know("ann")
        device = DeviceMailbox(device_link, unique, "ann", Ledger())
        overhead = server_link.sent_bytes, server_link.received_bytes
        told = Ledger()
        server.broadcast(EXAMPLES[Rollcall])
        assert device.receive(15) == EXAMPLES[Rollcall]
        device.send(HELLO)
        assert server.receive(15) == ("ann", HELLO)
        server.send("ann", ASSIGN)
        assert device.receive(15) == ASSIGN
        told.merge(from_moved("ann", device.account()))
        for index in range(3):
            server.offer(name(1), "program", index, bytes(100_000 + index), retain=True)
        assert server_link.flush(15)  # else one may come twice: retained, and as it is published
        device.listen(name(1), "program", range(3))
        parts = [device.receive(15) for _ in range(3)]
        assert sorted(len(part.data) for part in parts if isinstance(part, Chunk)) == [
            100_000, 100_001, 100_002,
        ]  # fmt: skip
        device.unlisten(name(1), range(3))
        for index in range(3):
            server.withdraw(name(1), index)
        device.learn(REPORT.update, SECTIONS)
        device.send(REPORT)
        assert server.receive(15) == ("ann", REPORT)
        server.learn("ann", REPORT.update, SECTIONS)
        [part] = parts_of_update()
        device.send(part)
        assert server.receive(15) == ("ann", part)

        # The last acknowledgements may still be on their way.
        def server_moved() -> tuple[int, int]:
            sent, received = overhead
            return server_link.sent_bytes - sent, server_link.received_bytes - received

        assert eventually(lambda: sent_and_received(server) == server_moved())

        def all_told() -> bool:
            assert device.receive(0) is None  # what was withdrawn may still come
            told.merge(from_moved("ann", device.account()))
            moved = (device_link.sent_bytes, device_link.received_bytes)
            return (told.uplink_bytes, told.downlink_bytes) == moved

        assert eventually(all_told)
        one, other = booked(server.ledger), booked(told)
        assert one[EVERYONE, "down", "program"] == other["ann", "down", "program"]
        for kind, _ in SECTIONS:
            assert one["ann", "up", kind] == other["ann", "up", kind]
        assert other["ann", "up", CONNECTION][1] > 3 * len(blob_topic(unique, name(1), 0))


@pytest.mark.parametrize("bad", ["", "a/b", "+", "#", "x" * 65, "a\n"])
def test_bad_names_are_refused(world: World, bad: str) -> None:
    with pytest.raises(ConfigError, match="federation name"):
        ServerMailbox(world.server_link, bad, Ledger())
    with pytest.raises(ConfigError, match="device name"):
        DeviceMailbox(world.stranger, FED, bad, Ledger())
    with pytest.raises(ValueError, match="device name"):
        world.server.send(bad, EXAMPLES[Welcome])
