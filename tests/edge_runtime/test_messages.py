"""Every message survives the wire; no bytes from the wire can do more than raise WireError."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import WireError
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MAX_BLOB_BYTES,
    MAX_HELD,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT,
    MIN_CHUNK_BYTES,
    VERSION,
    Artifact,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Hello,
    Holding,
    Message,
    Moved,
    Want,
    Welcome,
    pack,
    same_work,
    unpack,
)
from edge_runtime.protocol.messages import __doc__ as doc
from edge_runtime.telemetry import Telemetry
from tests.edge_runtime.examples import (
    ASSIGN,
    CHUNK,
    EXAMPLES,
    HELLO,
    REPORT,
    TYPES,
    assign,
    report,
)

DIGEST = bytes(range(DIGEST_BYTES))

_digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
_counts = st.integers(1, MAX_ITEMS)
_sums = st.builds(
    lambda payload_bytes, mqtt_bytes, messages: (
        payload_bytes,
        payload_bytes + mqtt_bytes,
        messages,
    ),
    *([st.integers(0, 2**62 - 1)] * 3),
)
_refs = st.builds(BlobRef, _digests, st.integers(1, MAX_BLOB_BYTES))
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=40),
    bytes: _digests,
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    BlobRef: _refs,
    Artifact: st.builds(Artifact, _digests, st.just(b""), st.lists(_refs, max_size=2))
    | st.builds(Artifact, _digests, _digests, st.lists(_refs, min_size=1, max_size=2)),
    Moved: st.builds(
        lambda kind, up, down: Moved(kind, *up, *down), st.text(max_size=20), _sums, _sums
    ),
    Want: st.builds(Want, _digests, st.integers(0, 2**63 - 1), _counts),
}
_SPECIAL: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    Hello: {"memory_kills": st.integers(-1, 2**63 - 1)},
    Welcome: {"chunk_bytes": st.integers(MIN_CHUNK_BYTES, CHUNK_BYTES)},
    Chunk: {"index": st.integers(0, 2**63 - 1), "data": st.binary(max_size=40)},
}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is list:
        return st.lists(_values(get_args(hint)[0]), max_size=5)
    if get_origin(hint) is dict:
        key, item = map(_values, get_args(hint))
        return st.dictionaries(key, item, max_size=5)
    return _PLAIN[hint]


def _messages(cls: type) -> st.SearchStrategy[Any]:
    hints = {name: _values(hint) for name, hint in get_type_hints(cls).items()}
    return st.builds(cls, **{**hints, **_SPECIAL.get(cls, {})})


def spoilt(message: Message, field: str, value: Any) -> bytes:
    """A message's bytes with another value for a field."""
    array = msgpack.unpackb(pack(message))
    array[2 + [item.name for item in fields(message)].index(field)] = value
    return bytes(msgpack.packb(array))


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


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_version(version: int) -> None:
    array = msgpack.unpackb(pack(CHUNK))
    assert refused(msgpack.packb([version, *array[1:]])) == "version"


def test_the_version_is_that_of_the_fields() -> None:
    """Whoever changes a message, its fields or their order gives `VERSION` another number."""
    classes = [*TYPES, BlobRef, Artifact, Moved, Want]
    spelt = [(cls.__name__, [(item.name, item.type) for item in fields(cls)]) for cls in classes]
    assert (VERSION, digest(repr(spelt).encode()).hex()[:8]) == (4, "4e6bdda2")


def test_a_type_travels_as_its_place_in_the_list() -> None:
    for number, cls in enumerate(TYPES):
        assert msgpack.unpackb(pack(EXAMPLES[cls]))[:2] == [VERSION, number]
    assert refused(msgpack.packb([VERSION, len(TYPES), ""])) == "unknown"


def test_memory_kills_may_be_unknown() -> None:
    for kills in (-1, 0, 2**63 - 1):
        hello = unpack(spoilt(HELLO, "memory_kills", kills))
        assert isinstance(hello, Hello) and hello.memory_kills == kills
    assert refused(spoilt(HELLO, "memory_kills", -2)) == "malformed"


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ([DIGEST[1:], 7], "bad-digest"),
        ([DIGEST + b"x", 7], "bad-digest"),
        ([DIGEST, 0], "bad-size"),
        ([DIGEST, -1], "bad-size"),
        ([DIGEST, MAX_BLOB_BYTES + 1], "bad-size"),
    ],
)
def test_nested_blob_refs_are_checked(ref: list[Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        BlobRef(*ref)
    assert refused(spoilt(REPORT, "update", ref)) == reason
    assert refused(spoilt(ASSIGN, "gate", [DIGEST, b"", [ref]])) == reason
    assert refused(spoilt(ASSIGN, "expert_parts", [[DIGEST, DIGEST, [ref]]])) == reason


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        ([DIGEST[1:], b"", []], "bad-digest"),
        ([b"", b"", []], "bad-digest"),
        ([DIGEST, b"x", [[DIGEST, 7]]], "bad-digest"),
        ([DIGEST, DIGEST, []], "bad-artifact"),
    ],
)
def test_nested_artifacts_are_checked(artifact: list[Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        Artifact(*artifact)
    assert refused(spoilt(ASSIGN, "backbone", artifact)) == reason
    assert refused(spoilt(ASSIGN, "expert_parts", [artifact])) == reason


@pytest.mark.parametrize(
    ("want", "reason"),
    [
        ([DIGEST[1:], 0, 1], "bad-digest"),
        ([DIGEST, -1, 1], "bad-want"),
        ([DIGEST, 0, 0], "bad-want"),
        ([DIGEST, 0, MAX_ITEMS + 1], "bad-want"),
    ],
)
def test_nested_wants_are_checked(want: list[Any], reason: str) -> None:
    assert refused(spoilt(Fetch([]), "wants", [want])) == reason


@pytest.mark.parametrize("sums", [(2, 1, 0), (-1, 1, 0), (0, -1, 0), (0, 0, -1)])
def test_impossible_accounts(sums: tuple[int, int, int]) -> None:
    for values in ([*sums, 0, 0, 0], [0, 0, 0, *sums]):
        with pytest.raises(WireError, match="bad-account"):
            Moved("gate", *values)
        assert refused(spoilt(REPORT, "account", [["gate", *values]])) == "bad-account"


@pytest.mark.parametrize(
    ("message", "field"), [(HELLO, "held"), (Holding("s", 1, 1, []), "held"), (REPORT, "dropped")]
)
def test_lists_of_digests_are_short_and_hold_digests(message: Message, field: str) -> None:
    assert unpack(spoilt(message, field, [DIGEST] * MAX_HELD))
    assert refused(spoilt(message, field, [DIGEST] * (MAX_HELD + 1))) == "malformed"
    assert refused(spoilt(message, field, [DIGEST, b""])) == "bad-digest"


@pytest.mark.parametrize("chunk_bytes", [0, MIN_CHUNK_BYTES - 1, CHUNK_BYTES + 1, -1])
def test_chunks_have_a_sensible_size(chunk_bytes: int) -> None:
    assert (
        refused(spoilt(Welcome("s", CHUNK_BYTES, True), "chunk_bytes", chunk_bytes)) == "bad-size"
    )


def test_chunks_check_themselves() -> None:
    assert refused(spoilt(CHUNK, "index", -1)) == "bad-chunk"
    assert refused(spoilt(CHUNK, "digest", DIGEST[1:])) == "bad-digest"


@pytest.mark.parametrize("chunk_bytes", [MIN_CHUNK_BYTES, 65_536, CHUNK_BYTES])
def test_chunks_of_a_blob(chunk_bytes: int) -> None:
    for size_bytes, chunks in [(1, 1), (chunk_bytes, 1), (chunk_bytes + 1, 2)]:
        assert BlobRef(DIGEST, size_bytes).chunks(chunk_bytes) == chunks
    assert BlobRef(DIGEST, MAX_BLOB_BYTES).chunks(chunk_bytes) == MAX_BLOB_BYTES // chunk_bytes


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


def test_same_work() -> None:
    assert same_work(REPORT, ASSIGN) and same_work(ASSIGN, ASSIGN)
    for other in (
        replace(ASSIGN, session="x"),
        replace(ASSIGN, round=1),
        replace(ASSIGN, attempt=2),
    ):
        assert not same_work(REPORT, other)


# --- how long they are -------------------------------------------------------------------------

# What the examples take, and a little more. Whoever adds a field sees here what it costs.
MOST_BYTES = {
    "Rollcall": 20,
    "Hello": 226,
    "Welcome": 26,
    "Reject": 71,
    "Assign": 420,
    "Holding": 59,
    "Fetch": 46,
    "Chunk": 537,
    "Report": 979,
    "Failed": 69,
    "Received": 22,
    "Gone": 19,
    "Stop": 36,
    "Account": 86,
}


@pytest.mark.parametrize("cls", TYPES)
def test_messages_are_short(cls: type[Message]) -> None:
    most = MOST_BYTES[cls.__name__]
    assert 0.9 * most < len(pack(EXAMPLES[cls])) <= most


@pytest.mark.parametrize("count", [1, 2, 8])
def test_work_and_report_grow_slowly_with_the_experts(count: int) -> None:
    """An expert is its number, two digests and a frame; in a report its account is most of it."""
    experts = list(range(count))
    assert len(pack(assign(experts))) <= 286 + 63 * count
    assert len(pack(assign(experts, frames=3))) - len(pack(assign(experts))) == 2 * 24 * (count + 2)
    assert len(pack(report(experts))) <= 877 + 51 * count


def test_the_example_report_has_the_telemetry_that_devices_send() -> None:
    assert Telemetry().read().keys() <= REPORT.telemetry.keys()


@pytest.mark.parametrize("chunk_bytes", [MIN_CHUNK_BYTES, CHUNK_BYTES])
def test_a_chunk_costs_little_more_than_its_data(chunk_bytes: int) -> None:
    last = MAX_BLOB_BYTES // chunk_bytes - 1
    assert len(pack(Chunk(DIGEST, last, bytes(chunk_bytes)))) - chunk_bytes <= 31
