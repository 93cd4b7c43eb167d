"""Over 100,000 spoilt messages and blobs: each is one of the protocol, or a `WireError`.

What each is spoilt from, and how, is the same in every run.
"""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable

import msgpack
import numpy as np
import pytest

from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.compression import own_compressors
from edge_runtime.errors import WireError
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import (
    TO_ALL,
    TO_DEVICE,
    TO_SERVER,
    UNKNOWN,
    DeviceMailbox,
    ServerMailbox,
)
from edge_runtime.protocol.messages import MAX_ITEMS, VERSION, Chunk, Message, pack, unpack
from edge_runtime.protocol.topics import all_topic, blob_topic, down_topic, up_topic, valid_name
from edge_runtime.tensor_blob import Shapes
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from tests.edge_runtime.examples import CHUNK, EXAMPLES, REPORT, TYPES, name
from tests.edge_runtime.mutations import EXTREMES, mutant

MUTANTS_A_TYPE = 10_000
MUTANTS_A_CODING = 4_000  # half of them describe themselves
PACKETS = 20_000
MESSAGES = [pack(message) for message in EXAMPLES.values()]


# --- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", TYPES)
def test_spoilt_messages(cls: type[Message]) -> None:
    rng = random.Random(cls.__name__)
    valid = [pack(EXAMPLES[cls])] * 6 + MESSAGES  # more than half are of this type
    outcomes = Counter(outcome_of(mutant(valid, rng)) for _ in range(MUTANTS_A_TYPE))
    assert 0.01 < outcomes["good"] / MUTANTS_A_TYPE < 0.5, "too strong or too weak to tell anything"
    assert {"malformed", "version", "unknown", "good"} <= outcomes.keys()


def test_every_place_of_every_message_takes_every_extreme() -> None:
    reasons = Counter[str]()
    for payload in MESSAGES:
        for at in range(min(len(payload), 48)):
            for extreme in EXTREMES:
                for end in (at + 1, at + len(extreme)):
                    reasons[outcome_of(payload[:at] + extreme + payload[end:])] += 1
    assert {"malformed", "not-finite", "bad-size", "version", "unknown", "good"} <= reasons.keys()


def outcome_of(payload: bytes) -> str:
    """``good``, or the reason of the refusal; anything else fails the test."""
    try:
        message = unpack(payload)
    except WireError as error:
        assert len(str(error)) < 400, "a peer must not write long lines into our log"
        return error.reason
    assert type(message) in TYPES and unpack(pack(message)) == message
    return "good"


def test_spoilt_messages_take_little_memory() -> None:
    rng = random.Random("memory")
    assert most_memory(outcome_of, (mutant(MESSAGES, rng) for _ in range(3_000))) < 1 << 20


def test_a_hostile_message_takes_no_more_than_its_depth_times_its_longest_list() -> None:
    """Lists in lists, each of which claims to be the longest that is allowed."""
    deep = b"".join(b"\xdc" + MAX_ITEMS.to_bytes(2, "big") for _ in range(3_000))
    payloads = [
        deep,
        msgpack.packb([VERSION, TYPES.index(type(CHUNK))])[:-1] + deep,
        b"\xdc" + MAX_ITEMS.to_bytes(2, "big") + bytes([VERSION, 0]) + deep + bytes(MAX_ITEMS),
    ]
    assert most_memory(outcome_of, payloads) < 40 << 20  # 1024 levels: where msgpack ends


def most_memory(act: Callable[[bytes], object], payloads: Iterable[bytes]) -> int:
    """The most bytes that any of the calls had allocated at one time."""
    most = 0
    tracemalloc.start()
    try:
        for payload in payloads:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            act(payload)
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return most


# --- coded blobs -------------------------------------------------------------------------------

SHAPES: Shapes = {"bias": (7,), "empty": (0, 3), "kernel": (64, 3, 3), "scalar": ()}
MAX_BYTES = 4 * 4096
SPECS = [
    codec + compressor
    for codec in ("raw", "fp16", "int8", "int4", "topk(0.3)")
    for compressor in ("", *(f"+{compressor}" for compressor in own_compressors()))
]


def coded(spec: str, described: bool) -> bytes:
    """A coded blob of tensors that compress well, whatever the codec."""
    tensors = {key: np.full(shape, 0.5, np.float32) for key, shape in SHAPES.items()}
    return encode(tensors, parse_coding(spec), np.random.default_rng(1), described=described)


BLOBS = [coded(spec, described) for spec in SPECS for described in (False, True)]


def test_the_examples_are_compressed_where_they_should_be() -> None:
    flags = [coded(spec, described=False)[0] & 3 for spec in SPECS]
    assert flags == [("", "zlib", "zstd").index(spec.partition("+")[2]) for spec in SPECS]


@pytest.mark.parametrize("spec", SPECS)
def test_spoilt_blobs(spec: str) -> None:
    rng = random.Random(spec)
    for described in (False, True):
        valid = [coded(spec, described)] * 10 + BLOBS
        outcomes = Counter(
            decoded(mutant(valid, rng), None if described else SHAPES)
            for _ in range(MUTANTS_A_CODING // 2)
        )
        assert outcomes["good"] and len(outcomes) >= 3, outcomes


def decoded(blob: bytes, shapes: Shapes | None) -> str:
    """``good``, or the reason of the refusal; anything else fails the test."""
    try:
        tensors = decode(blob, shapes, MAX_BYTES)
    except WireError as error:
        assert len(str(error)) < 1_000, "a peer must not write long lines into our log"
        return error.reason
    assert shapes is None or {key: value.shape for key, value in tensors.items()} == dict(shapes)
    for tensor in tensors.values():
        assert tensor.dtype == np.float32 and np.isfinite(tensor).all()
    assert sum(tensor.nbytes for tensor in tensors.values()) <= MAX_BYTES
    return "good"


def test_spoilt_blobs_take_little_memory() -> None:
    rng = random.Random("memory")
    blobs = [mutant(BLOBS, rng) for _ in range(1_500)]
    for shapes in (SHAPES, None):
        assert most_memory(lambda blob: decoded(blob, shapes), blobs) < 40 * MAX_BYTES  # noqa: B023


# --- mailboxes ---------------------------------------------------------------------------------

FED = "fed"
SECTIONS = [("backbone", 100), ("gate", 200), ("expert:1", REPORT.update.size_bytes - 300)]
BLOB_TOPICS = {blob_topic(FED, name(1), index): index for index in range(4)}
GOOD_TOPICS = [
    up_topic(FED, "ann"),
    up_topic(FED, "eve"),
    down_topic(FED, "ann"),
    all_topic(FED),
    *BLOB_TOPICS,
]
BAD_TOPICS = [
    up_topic("other", "ann"), up_topic(FED, ""), up_topic(FED, "x" * 65), up_topic(FED, "a/b"),
    down_topic(FED, "bob"), blob_topic(FED, name(2), 0), blob_topic(FED, name(1), 9),
    "", "/", "#", "+", "fm2/fed/up/ann",
]  # fmt: skip


class Boxes:
    """A server and a device that hear everything that is published, and a stranger."""

    def __init__(self) -> None:
        broker = MemoryBroker()
        self.stranger = MemoryLink(broker, "stranger")
        self.links = MemoryLink(broker, "server"), MemoryLink(broker, "ann")
        self.server = ServerMailbox(self.links[0], FED, Ledger())
        self.device = DeviceMailbox(self.links[1], FED, "ann", Ledger())
        for link in self.links:
            link.subscribe("#")
        self.server.know("ann")
        self.server.chunk_bytes = 16  # the example's chunk has bytes of every section
        self.server.learn("ann", REPORT.update, SECTIONS)
        self.device.learn(REPORT.update, SECTIONS)
        self.device.listen(name(1), "program", range(4))


def test_spoilt_packets_are_dropped_counted_and_booked() -> None:
    boxes, rng = Boxes(), random.Random("packets")
    heard: Counter[str] = Counter()
    for number in range(PACKETS):
        topic = rng.choice(GOOD_TOPICS if rng.random() < 0.8 else BAD_TOPICS)
        if rng.random() < 0.1:
            topic = mutant([topic.encode() or b"x"], rng).decode("latin-1").replace("$", "S")
        payload = rng.choice(MESSAGES) if rng.random() < 0.2 else mutant(MESSAGES, rng)
        boxes.stranger.publish(topic, payload)
        message = readable(payload)
        for_server = server_hears(topic, message)
        for_device = device_hears(topic, payload, message)
        assert boxes.server.receive(0) == for_server
        assert boxes.device.receive(0) == for_device
        heard["server"] += for_server is not None
        heard["device"] += for_device is not None
        assert sum(boxes.server.drops.values()) == number + 1 - heard["server"]
        assert sum(boxes.device.drops.values()) == number + 1 - heard["device"]
    assert min(heard.values()) > PACKETS / 30
    server, device = boxes.server.ledger, boxes.device.ledger
    assert (server.downlink_bytes, server.uplink_bytes) == boxes.links[0].settled_bytes()
    assert (device.uplink_bytes, device.downlink_bytes) == boxes.links[1].settled_bytes()
    for ledger, way in ((server, "up"), (device, "down")):
        assert sum(row.messages for row in ledger.rows() if row.direction == way) == PACKETS
    assert {row.client for row in server.rows()} == {"", "ann", UNKNOWN}
    assert {row.kind for row in server.rows()} == {"control", *dict(SECTIONS)}
    assert {row.kind for row in device.rows()} == {"control", "program"}


def readable(payload: bytes) -> Message | None:
    try:
        return unpack(payload)
    except WireError:
        return None


def server_hears(topic: str, message: Message | None) -> tuple[str, Message] | None:
    """What the server should make of a packet."""
    client = topic.removeprefix(up_topic(FED, ""))
    good = client != topic and valid_name(client) and isinstance(message, TO_SERVER)
    return (client, message) if good and message is not None else None


def device_hears(topic: str, payload: bytes, message: Message | None) -> Message | None:
    """What the device `ann` should make of a packet."""
    if topic in BLOB_TOPICS:
        return Chunk(name(1), BLOB_TOPICS[topic], payload) if payload else None
    allowed = {down_topic(FED, "ann"): TO_DEVICE, all_topic(FED): TO_ALL}.get(topic, ())
    return message if isinstance(message, allowed) else None
