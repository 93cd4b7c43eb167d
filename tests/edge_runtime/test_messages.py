"""Every message survives the wire; no bytes from the wire can do more than raise WireError."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import WireError
from edge_runtime.messages import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MAX_BLOB_BYTES,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT,
    VERSION,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Message,
    Report,
    Want,
    pack,
    unpack,
)
from edge_runtime.messages import __doc__ as doc

TYPES = get_args(Message)
DIGEST = bytes(range(DIGEST_BYTES))
REF = BlobRef("gate", DIGEST, 7)
ASSIGN = Assign(
    session="s",
    round=3,
    experts=[1, 4],
    training_program=REF,
    evaluation_program=REF,
    backbone=REF,
    gate=REF,
    expert_blobs=[REF, REF],
    local_gate=False,
    epochs=2,
    batch=16,
    optimizer="adamw",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.99,
    epsilon=1e-8,
    clip_norm=1.0,
    seed=11,
)
REPORT = Report("s", 3, [1], [5], [0.5], [4], 0.5, 8, 9, {"cpu_s": 1.5}, [REF])
CHUNK = Chunk(DIGEST, 0, 1, 7, b"1234567")

_digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
_counts = st.integers(1, MAX_ITEMS)
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=40),
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    BlobRef: st.builds(BlobRef, st.text(max_size=20), _digests, st.integers(1, MAX_BLOB_BYTES)),
    Want: st.builds(Want, _digests, st.integers(0, 2**63 - 1), _counts),
}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is list:
        return st.lists(_values(get_args(hint)[0]), max_size=5)
    if get_origin(hint) is dict:
        key, item = map(_values, get_args(hint))
        return st.dictionaries(key, item, max_size=5)
    return _PLAIN[hint]


def _messages(cls: type) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: _values(hint) for name, hint in get_type_hints(cls).items()})


messages = st.one_of([_messages(cls) for cls in TYPES])


def raw(message: Message) -> dict[str, Any]:
    """The map that a message travels as, to be spoilt."""
    unpacked: dict[str, Any] = msgpack.unpackb(pack(message))
    return unpacked


def refused(payload: bytes) -> str:
    """The reason for which `unpack` refuses."""
    with pytest.raises(WireError) as caught:
        unpack(payload)
    assert len(str(caught.value)) < 400, "a peer must not write long lines into our log"
    return caught.value.reason


@pytest.mark.parametrize("cls", TYPES)
def test_every_message_round_trips(cls: type) -> None:
    @given(_messages(cls))
    def check(message: Any) -> None:
        again = unpack(pack(message))
        assert again == message
        assert type(again) is cls

    check()


def test_messages_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        unpack(pack(REPORT)).round = 4  # type: ignore[misc, union-attr]


@given(messages, messages, st.integers(0, 2**32))
def test_mutated_bytes_give_a_message_or_a_wire_error(one: Any, other: Any, seed: int) -> None:
    check_mutants([pack(one), pack(other)], random.Random(seed), 20)


def test_twenty_thousand_mutants() -> None:
    valid = [pack(m) for m in (ASSIGN, REPORT, CHUNK, Fetch([Want(DIGEST, 0, 3)]), Gone("bye"))]
    survivors = check_mutants(valid, random.Random(1), 25_000)
    assert 100 < survivors < 15_000, "the mutations are too weak or too strong to tell anything"


def check_mutants(valid: list[bytes], rng: random.Random, count: int) -> int:
    """How many of `count` mutants were still messages."""
    survivors = 0
    for _ in range(count):
        payload = mutant(valid, rng)
        try:
            message = unpack(payload)
        except WireError:
            continue
        assert unpack(pack(message)) == message
        survivors += 1
    return survivors


def mutant(valid: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0:
                data[i : i + 1] = bytes([rng.randrange(256)])
            case 1 if i < len(data):
                data[i] ^= 1 << rng.randrange(8)
            case 2:
                del data[i : i + rng.randrange(1, 4)]
            case 3:
                data[i:i] = rng.randbytes(rng.randrange(1, 6))
            case 4:
                other = rng.choice(valid)
                k = rng.randrange(len(other))
                data[i : i + 8] = other[k : k + 8]
            case _:
                del data[max(i, j - 3) :]
    return bytes(data)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",  # never used in msgpack
        b"\x90",
        pack(CHUNK) + b"\x00",
        pack(CHUNK)[:-1],
        b"\x81\x90\x01",  # a list as a key
        b"\x81\x01\x01",  # an integer as a key
        b"\x91" * 100_000,  # deep nesting
        b"\xdb\xff\xff\xff\xffa",  # a text of 4 GB
        b"\xc6\xff\xff\xff\xffa",
        b"\xdd\xff\xff\xff\xffa",
        b"\xdf\xff\xff\xff\xffa",
        b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\xd4\x01a",  # another extension type
        b"\x81\xa1v\xa1\xff",  # text that is not UTF-8
    ],
)
def test_not_a_message(payload: bytes) -> None:
    assert refused(payload) == "malformed"


def test_a_small_message_cannot_claim_much_memory() -> None:
    nested = b"".join(b"\xdd" + struct.pack(">I", 250_000) for _ in range(900)) + bytes(250_000)
    tracemalloc.start()
    try:
        assert refused(nested) == "malformed"
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [None, 0, VERSION + 1, True, 1.0, "1", [1]])
def test_another_version(version: Any) -> None:
    assert refused(msgpack.packb({**raw(CHUNK), "v": version})) == "version"


@pytest.mark.parametrize("name", [None, 1, "nonsense", "Chunk", "blobref", b"chunk", "x" * 9999])
def test_unknown_type(name: Any) -> None:
    assert refused(msgpack.packb({**raw(CHUNK), "t": name})) == "unknown"


def test_a_deeply_nested_type_is_unknown() -> None:
    name = b"\x91" * 300 + b"\x90"
    assert refused(b"\x82\xa1v\x01\xa1t" + name) == "unknown"


def test_missing_and_unknown_fields() -> None:
    short = raw(REPORT)
    del short["loss"]
    assert refused(msgpack.packb(short)) == "malformed"
    assert refused(msgpack.packb({**raw(REPORT), "more": 1})) == "malformed"
    odd: dict[Any, Any] = {**raw(REPORT), b"more" * 9999: 1}
    assert refused(msgpack.packb(odd)) == "malformed"


_NOT_INT = [True, 1.0, "1", b"1", None, [1], {}, 2**63, msgpack.Timestamp(1)]
_NOT_FLOAT = [True, "1", None, [1.0]]


@pytest.mark.parametrize(
    ("message", "field", "values"),
    [
        (REPORT, "session", [1, b"s", None, ["s"], "x" * (MAX_TEXT + 1)]),
        (REPORT, "round", _NOT_INT),
        (REPORT, "train_loss", _NOT_FLOAT),
        (REPORT, "loss", [0.5, {}, "x", *([bad] for bad in _NOT_FLOAT), [0] * (MAX_ITEMS + 1)]),
        (REPORT, "usage", [5, None, *([bad] for bad in _NOT_INT)]),
        (REPORT, "telemetry", [[], None, {b"cpu_s": 1.0}, {"cpu_s": "1"}, {"x" * 2000: 1.0}]),
        (REPORT, "update", [[1], [["gate", DIGEST]], [["gate", DIGEST, 7, 7]], [{}]]),
        (ASSIGN, "local_gate", [0, 1, None, "no"]),
        (ASSIGN, "gate", [None, {}, ["gate", DIGEST], ["gate", "0123456789abcdef", 7]]),
        (ASSIGN, "expert_blobs", [None, REF.digest, [["gate", DIGEST, True]]]),
        (CHUNK, "data", ["text", None, [1]]),
    ],
)
def test_wrong_values(message: Message, field: str, values: list[Any]) -> None:
    for value in values:
        payload = msgpack.packb({**raw(message), field: value})
        assert refused(payload) == "malformed", value


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(bad: float) -> None:
    for message in (
        replace(REPORT, train_loss=bad),
        replace(REPORT, loss=[bad]),
        replace(REPORT, telemetry={"cpu_s": bad}),
        replace(ASSIGN, learning_rate=bad),
    ):
        assert refused(pack(message)) == "not-finite"


def test_an_integer_may_stand_for_a_float() -> None:
    again = unpack(msgpack.packb({**raw(ASSIGN), "momentum": 1}))
    assert isinstance(again, Assign)
    assert (again.momentum, type(again.momentum)) == (1.0, float)


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        (["gate", DIGEST[1:], 7], "bad-digest"),
        (["gate", DIGEST + b"x", 7], "bad-digest"),
        (["gate", DIGEST, 0], "bad-size"),
        (["gate", DIGEST, -1], "bad-size"),
        (["gate", DIGEST, MAX_BLOB_BYTES + 1], "bad-size"),
    ],
)
def test_nested_blob_refs_are_checked(ref: list[Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        BlobRef(*ref)
    assert refused(msgpack.packb({**raw(ASSIGN), "gate": ref})) == reason
    assert refused(msgpack.packb({**raw(REPORT), "update": [ref]})) == reason


@pytest.mark.parametrize(
    "want",
    [[DIGEST[1:], 0, 1], [DIGEST, -1, 1], [DIGEST, 0, 0], [DIGEST, 0, MAX_ITEMS + 1]],
)
def test_nested_wants_are_checked(want: list[Any]) -> None:
    assert refused(msgpack.packb({**raw(Fetch([])), "wants": [want]})) == "bad-want"


@pytest.mark.parametrize(
    ("size_bytes", "chunks"),
    [(1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (MAX_BLOB_BYTES, MAX_ITEMS)],
)
def test_chunks_of_a_blob(size_bytes: int, chunks: int) -> None:
    assert BlobRef("program", DIGEST, size_bytes).chunks == chunks


def test_the_largest_messages_fit() -> None:
    full = replace(CHUNK, data=bytes(CHUNK_BYTES))
    assert unpack(pack(full)) == full
    greedy = Fetch([Want(DIGEST, 2**63 - 1, MAX_ITEMS)] * MAX_ITEMS)
    assert unpack(pack(greedy)) == greedy


def test_oversized() -> None:
    assert refused(bytes(MAX_MESSAGE_BYTES + 1)) == "oversized"
    with pytest.raises(WireError, match="oversized"):
        pack(replace(CHUNK, data=bytes(MAX_MESSAGE_BYTES)))


def test_any_text_of_an_error_may_be_a_reason() -> None:
    failed = unpack(pack(Failed("s", 1, "\udcff" + "x" * 5000, 0)))
    assert failed == Failed("s", 1, "?" + "x" * (MAX_TEXT - 1), 0)


def test_the_protocol_table_names_every_message() -> None:
    rows = [line.split("|")[1].strip() for line in doc.splitlines() if "|" in line]
    assert rows[2:] == [cls.__name__ for cls in TYPES]
