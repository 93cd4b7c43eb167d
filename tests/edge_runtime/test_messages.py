"""Every message survives the wire; no bytes from the wire can do more than raise WireError."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.blob import digest
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
    attempt=1,
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
REPORT = Report("s", 3, 1, [1], [5], [0.5], [4], 0.5, 8, 9, {"cpu_s": 1.5}, [REF])
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


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_version(version: int) -> None:
    assert refused(msgpack.packb({**raw(CHUNK), "v": version})) == "version"


def test_the_version_is_that_of_the_fields() -> None:
    """Whoever changes a field of a message gives `VERSION` another number, and these."""
    fields = {cls.__name__: get_type_hints(cls) for cls in [*TYPES, BlobRef, Want]}
    assert (VERSION, digest(repr(fields).encode()).hex()[:8]) == (2, "0218b9ed")


@pytest.mark.parametrize("name", ["nonsense", "blobref", "want"])
def test_what_is_no_message(name: str) -> None:
    assert refused(msgpack.packb({**raw(CHUNK), "t": name})) == "unknown"


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
    failed = unpack(pack(Failed("s", 1, 1, "\udcff" + "x" * 5000, 0)))
    assert failed == Failed("s", 1, 1, "?" + "x" * (MAX_TEXT - 1), 0)


def test_the_protocol_table_names_every_message() -> None:
    rows = [line.split("|")[1].strip() for line in doc.splitlines() if "|" in line]
    assert rows[2:] == [cls.__name__ for cls in TYPES]
