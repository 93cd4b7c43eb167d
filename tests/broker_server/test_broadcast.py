"""Frames on a broker: what is published, when it is published again, and what stays there."""

from __future__ import annotations

import math
from contextlib import closing

import numpy as np
import pytest

from broker_server.brokers.broker import Broker
from broker_server.publishing import broadcast
from broker_server.publishing.broadcast import GATHER_S, Broadcast, sweep
from broker_server.publishing.history import Frame
from edge_runtime.errors import WireError
from edge_runtime.protocol.ledger import EVERYONE, Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import MIN_CHUNK_BYTES, Chunk, Fetch, Want
from edge_runtime.protocol.topics import all_blobs_topic, blob_topic
from edge_runtime.protocol.transfer import MAX_CHUNKS_PER_FETCH
from edge_runtime.transport import link as link_module
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from edge_runtime.transport.mqtt import MqttLink

FEDERATION = "fed"
CHUNK_BYTES = MIN_CHUNK_BYTES


def frame(seed: int, size_bytes: int = 3 * CHUNK_BYTES - 1, kind: str = "gate") -> Frame:
    return Frame.of(kind, np.random.default_rng(seed).bytes(size_bytes), ())


class World:
    """A server with frames, and a broker."""

    def __init__(self, retains: bool = True, retained_bytes: int = 1 << 20) -> None:
        self.broker = MemoryBroker(retains)
        self.link = MemoryLink(self.broker, "server")
        self.mailbox = ServerMailbox(self.link, FEDERATION, Ledger())
        self.mailbox.chunk_bytes = CHUNK_BYTES
        self.now_s = 100.0
        self.frames: dict[bytes, Frame] = {}
        self.broadcast = Broadcast(
            self.mailbox, self.frames.get, retains, lambda: self.now_s, retained_bytes
        )

    def add(self, *frames: Frame) -> None:
        self.frames |= {one.ref.digest: one for one in frames}

    def offer(self, *frames: Frame) -> None:
        self.add(*frames)
        self.broadcast.offer([one.ref for one in frames])
        self.broadcast.pump()

    def ask(self, *wants: Want, names: set[bytes] | None = None) -> None:
        allowed = set(self.frames) if names is None else names
        self.broadcast.ask(Fetch(list(wants)), allowed)

    @property
    def published(self) -> int:
        """Chunks."""
        rows = self.mailbox.ledger.rows()
        return sum(row.messages for row in rows if row.client == EVERYONE and row.kind != "control")

    @property
    def kept(self) -> dict[str, bytes]:
        packets = self.broker.retained(all_blobs_topic(FEDERATION))
        return {packet.topic: packet.payload for packet in packets}


def topics(one: Frame) -> list[str]:
    count = one.ref.chunks(CHUNK_BYTES)
    return [blob_topic(FEDERATION, one.ref.digest, index) for index in range(count)]


def want(one: Frame, first: int = 0, count: int = 1) -> Want:
    return Want(one.ref.digest, first, count)


@pytest.fixture
def world() -> World:
    return World()


def test_a_frame_is_there_for_who_comes_later(world: World) -> None:
    one = frame(1)
    world.offer(one)
    assert b"".join(world.kept[topic] for topic in topics(one)) == one.data
    device = DeviceMailbox(MemoryLink(world.broker, "d"), FEDERATION, "d", Ledger())
    device.listen(one.ref.digest, "gate", range(3))
    got = [device.receive(0) for _ in range(4)]
    assert got[:3] == [
        Chunk(one.ref.digest, i, one.data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES])
        for i in range(3)
    ]
    assert got[3] is None
    booked = [row for row in world.mailbox.ledger.rows() if row.payload_bytes]
    assert [(row.client, row.kind, row.payload_bytes) for row in booked] == [
        (EVERYONE, "gate", len(one.data))
    ]


def test_what_the_broker_was_given_is_not_given_again(world: World) -> None:
    one, other = frame(1), frame(2)
    world.offer(one)
    world.offer(one, other)
    world.offer(other, one)
    assert world.published == 6 and world.broadcast.idle


def test_on_a_new_connection_only_what_is_needed_is_given_again(world: World) -> None:
    one, other = frame(1), frame(2)
    world.offer(one, other)
    world.broker.restart()
    world.link.restore()
    world.broadcast.pump()
    assert world.published == 6 and world.kept == {}
    world.offer(other)
    assert world.published == 9 and set(world.kept) == set(topics(other))
    world.broadcast.clear()
    assert world.kept == {}


def test_one_that_keeps_nothing_is_given_what_is_asked_for() -> None:
    world = World(retains=False)
    one = frame(1)
    world.offer(one)
    assert world.published == 0 and world.broadcast.idle
    world.ask(want(one, 1, 2))
    world.now_s += GATHER_S
    world.broadcast.pump()
    assert world.published == 2
    world.broadcast.tidy()
    world.broadcast.clear()
    assert {row.kind for row in world.mailbox.ledger.rows()} == {"gate"}  # nothing to withdraw


def test_those_who_ask_shortly_one_after_the_other_are_answered_together(world: World) -> None:
    one = frame(1)
    world.offer(one)
    assert world.broadcast.next_s() == math.inf
    world.ask(want(one))
    world.now_s += 0.6 * GATHER_S
    world.ask(want(one, 0, 2), want(one))
    assert world.broadcast.next_s() == pytest.approx(0.4 * GATHER_S)
    world.broadcast.pump()
    assert world.published == 3 and not world.broadcast.idle
    world.now_s += 0.5 * GATHER_S
    world.broadcast.pump()
    assert world.published == 4
    world.now_s += 0.5 * GATHER_S
    world.broadcast.pump()
    assert world.published == 5 and world.broadcast.idle
    world.ask(want(one))  # again, later: it was lost once more
    world.now_s += GATHER_S
    world.broadcast.pump()
    assert world.published == 6


def test_what_waits_to_leave_is_not_asked_for_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "OUTBOX_PACKETS", 2)
    one = frame(1, 20 * CHUNK_BYTES)
    world.link.connected = False
    world.offer(one)
    assert world.published == 2 and 0 < world.broadcast.next_s() < GATHER_S
    for _ in range(100):
        world.ask(want(one, 0, 20))
        world.now_s += GATHER_S
        world.broadcast.pump()
    assert world.published == 2
    monkeypatch.setattr(link_module, "OUTBOX_PACKETS", 100)
    world.link.restore()
    world.broadcast.pump()
    # The first two were asked for again after they had left.
    assert world.published == 22 and len(world.kept) == 20 and world.broadcast.idle


@pytest.mark.parametrize(
    ("reason", "wants", "served"),
    [
        ("unknown-blob", [Want(bytes(16), 0, 1)], 0),
        ("unknown-blob", [Want(frame(2).ref.digest, 0, 1)], 0),  # of others' work
        ("unknown-blob", [Want(frame(3).ref.digest, 0, 1)], 0),  # there is none such any more
        ("bad-want", [want(frame(1), 2, 2)], 0),
        ("bad-want", [want(frame(1), 0, 4096)], 0),
        ("greedy-fetch", [want(frame(1), 0, 3)] * 4096, 3),
        ("unknown-blob", [want(frame(1), 0, 1), Want(bytes(16), 0, 1), want(frame(1), 2, 1)], 2),
    ],
)
def test_nonsense_is_refused_and_the_rest_is_served(
    world: World, reason: str, wants: list[Want], served: int
) -> None:
    world.add(frame(1), frame(2))
    with pytest.raises(WireError) as caught:
        world.ask(*wants, names={frame(1).ref.digest, frame(3).ref.digest})
    assert caught.value.reason == reason
    world.now_s += GATHER_S
    world.broadcast.pump()
    assert world.published == served


def test_one_question_costs_at_most_so_many_chunks(world: World) -> None:
    one = frame(1, 3 * MAX_CHUNKS_PER_FETCH * CHUNK_BYTES)
    world.add(one)
    with pytest.raises(WireError, match="greedy-fetch"):
        world.ask(want(one, 0, 2 * MAX_CHUNKS_PER_FETCH))
    world.now_s += GATHER_S
    world.broadcast.pump()
    assert world.published == MAX_CHUNKS_PER_FETCH


def test_what_no_device_can_be_sent_any_more_is_withdrawn(world: World) -> None:
    one, other = frame(1), frame(2)
    world.offer(one, other)
    world.ask(want(one))
    del world.frames[one.ref.digest]
    world.broadcast.tidy()
    assert set(world.kept) == set(topics(other))
    world.now_s += GATHER_S
    world.broadcast.pump()
    assert set(world.kept) == set(topics(other)) and world.broadcast.idle


def test_what_was_named_the_longest_time_ago_leaves_when_it_is_too_much() -> None:
    frames = [frame(seed) for seed in range(5)]
    world = World(retained_bytes=3 * len(frames[0].data))
    world.offer(*frames[:3])
    world.offer(frames[0])
    world.offer(frames[3])
    there = {topic for index in (0, 2, 3) for topic in topics(frames[index])}
    assert set(world.kept) == there
    world.offer(frames[1])  # it was withdrawn: so it is given again
    assert set(world.kept) == {topic for index in (0, 1, 3) for topic in topics(frames[index])}
    assert world.published == 15
    large = frame(9, 5 * len(frames[0].data))
    world.offer(large)
    assert set(world.kept) == set(topics(large))


def test_what_a_killed_server_left_is_swept_away() -> None:
    world, other = World(), World()
    world.offer(frame(1), frame(2))
    world.link.publish("fm4/other/b/x/0", b"of another federation", retain=True)
    assert sweep(MemoryLink(world.broker, "sweep"), FEDERATION, quiet_s=0.01) == 6
    assert world.kept == {} and len(world.broker.retained("#")) == 1
    assert sweep(MemoryLink(other.broker, "sweep"), FEDERATION, quiet_s=0.01) == 0


def test_a_broker_that_drops_what_is_too_much_is_swept_too(broker: Broker, unique: str) -> None:
    """mosquitto keeps 1000 messages for a subscriber, and drops what is beyond."""
    count = 3000
    with closing(MqttLink(broker.host, broker.port, f"{unique}-server")) as server:
        for index in range(count):
            server.publish(blob_topic(unique, bytes(16), index), b"left", retain=True)
        assert server.flush(30.0)
    with closing(MqttLink(broker.host, broker.port, f"{unique}-sweep")) as link:
        assert sweep(link, unique, quiet_s=0.3) == count
    with closing(MqttLink(broker.host, broker.port, f"{unique}-late")) as late:
        late.subscribe(all_blobs_topic(unique))
        assert late.receive(0.3) is None


def test_what_a_sweep_had_no_time_for_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.offer(frame(1), frame(2))
    monkeypatch.setattr(broadcast, "_SWEEP_S", 0.0)
    assert sweep(MemoryLink(world.broker, "sweep"), FEDERATION, quiet_s=0.01) == 0
    assert "still keeps chunks" in caplog.text and len(world.kept) == 6
