"""Records survive; bytes that are none, too many, or of other types raise WireError."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import dataclass, fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import WireError
from edge_runtime.protocol.packing import Packing

VERSION, MAX_BYTES, MAX_ITEMS, MAX_TEXT = 7, 300_000, 100, 50


@dataclass(frozen=True)
class Part:
    name: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise WireError("bad-size", str(self.size))


@dataclass(frozen=True)
class Record:
    text: str
    data: bytes
    flag: bool
    count: int
    share: float
    part: Part
    parts: list[Part]
    counts: list[int]
    table: dict[str, float]


@dataclass(frozen=True)
class Empty:
    pass


PACKING = Packing(VERSION, (Record, Empty), (Part,), MAX_BYTES, MAX_ITEMS, MAX_TEXT)
RECORD = Record("s", b"1234567", True, 3, 0.5, Part("p", 1), [Part("q", 2)], [1, 2], {"a": 1.5})

_texts = st.text(max_size=MAX_TEXT)
_counts = st.integers(-(2**63), 2**63 - 1)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_parts = st.builds(Part, _texts, st.integers(0, 2**63 - 1))
_records = st.builds(
    Record,
    _texts,
    st.binary(max_size=40),
    st.booleans(),
    _counts,
    _floats,
    _parts,
    st.lists(_parts, max_size=5),
    st.lists(_counts, max_size=5),
    st.dictionaries(_texts, _floats, max_size=5),
)


def raw(record: Any) -> list[Any]:
    """The array that a record travels as, to be spoilt."""
    unpacked: list[Any] = msgpack.unpackb(PACKING.pack(record))
    return unpacked


def spoilt(place: int, value: Any) -> bytes:
    """`RECORD` with another value at that place of its array."""
    array = raw(RECORD)
    array[place] = value
    return bytes(msgpack.packb(array))


def place_of(field: str) -> int:
    """Where a field of `RECORD` is in its array."""
    return 2 + [field.name for field in fields(Record)].index(field)


def refused(payload: bytes) -> str:
    """The reason for which `unpack` refuses."""
    with pytest.raises(WireError) as caught:
        PACKING.unpack(payload)
    assert len(str(caught.value)) < 400, "a peer must not write long lines into our log"
    return caught.value.reason


@given(_records | st.builds(Empty))
def test_records_come_back(record: Any) -> None:
    again = PACKING.unpack(PACKING.pack(record))
    assert again == record and type(again) is type(record)


def test_a_record_is_an_array_of_version_type_and_fields() -> None:
    assert raw(RECORD) == [
        VERSION, 0, "s", b"1234567", True, 3, 0.5, ["p", 1], [["q", 2]], [1, 2], {"a": 1.5},
    ]  # fmt: skip
    assert raw(Empty()) == [VERSION, 1]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",  # never used in msgpack
        b"\x90",
        b"\x91\x07",  # a version alone
        b"\x07",
        b"\x82\xa1v\x07\xa1t\x01",  # a map
        PACKING.pack(RECORD) + b"\x00",
        PACKING.pack(RECORD)[:-1],
        b"\x81\x90\x01",  # a list as a key
        b"\x81\x01\x01",  # an integer as a key
        b"\x91" * 100_000,  # deep nesting
        b"\xdb\xff\xff\xff\xffa",  # a text of 4 GB
        b"\xc6\xff\xff\xff\xffa",
        b"\xdd\xff\xff\xff\xffa",
        b"\xdf\xff\xff\xff\xffa",
        b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\xd4\x01a",  # another extension type
        b"\x93\x07\x01\xc7\x00\x01",  # an empty one
        b"\x93\x07\x01\xc7\x00\xff",  # an empty timestamp
        b"\x81\xa1v\xa1\xff",  # text that is not UTF-8
    ],
)
def test_not_a_record(payload: bytes) -> None:
    assert refused(payload) == "malformed"


def test_few_bytes_cannot_claim_much_memory() -> None:
    nested = b"".join(b"\xdd" + struct.pack(">I", 250_000) for _ in range(900)) + bytes(250_000)
    tracemalloc.start()
    try:
        assert refused(nested) == "malformed"
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [None, 0, VERSION + 1, True, float(VERSION), "7", [7]])
def test_another_version(version: Any) -> None:
    assert refused(spoilt(0, version)) == "version"


def test_true_is_no_version() -> None:
    first = Packing(1, (Empty,), (), MAX_BYTES, MAX_ITEMS, MAX_TEXT)
    for version in (True, 1.0):
        with pytest.raises(WireError, match="version"):
            first.unpack(msgpack.packb([version, 0]))
    assert first.unpack(msgpack.packb([1, 0])) == Empty()


@pytest.mark.parametrize("number", [None, -1, 2, 2**64 - 1, True, 0.0, "record", b"x" * 9999, {}])
def test_unknown_type(number: Any) -> None:
    assert refused(spoilt(1, number)) == "unknown"


def test_a_deeply_nested_type_is_unknown() -> None:
    assert refused(b"\x92\x07" + b"\x91" * 300 + b"\x90") == "unknown"


def test_too_few_and_too_many_fields() -> None:
    for array in (raw(RECORD)[:-1], [*raw(RECORD), 1], [*raw(Empty()), 1], raw(RECORD)[:2]):
        assert refused(msgpack.packb(array)) == "malformed"


_NOT_INT = [True, 1.0, "1", b"1", None, [1], {}, 2**63, msgpack.Timestamp(1)]
_NOT_FLOAT = [True, "1", None, [1.0]]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("text", [1, b"s", None, ["s"], "x" * (MAX_TEXT + 1)]),
        ("data", ["text", None, [1]]),
        ("flag", [0, 1, None, "no"]),
        ("count", _NOT_INT),
        ("share", _NOT_FLOAT),
        ("part", [None, {}, ["p"], ["p", 1, 1], [b"p", 1], ["p", True]]),
        ("parts", [None, ["p", 1], [["p"]], [{}]]),
        ("counts", [5, None, {}, "x", *([bad] for bad in _NOT_INT), [0] * (MAX_ITEMS + 1)]),
        ("table", [[], None, {b"a": 1.0}, {"a": "1"}, {"x" * (MAX_TEXT + 1): 1.0}]),
    ],
)
def test_wrong_values(field: str, values: list[Any]) -> None:
    for value in values:
        assert refused(spoilt(place_of(field), value)) == "malformed", value


def test_parts_check_themselves() -> None:
    assert refused(spoilt(place_of("part"), ["p", -1])) == "bad-size"
    assert refused(spoilt(place_of("parts"), [["p", -1]])) == "bad-size"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(bad: float) -> None:
    """Neither side lets them through: the other would drop the message without a word."""
    assert refused(spoilt(place_of("share"), bad)) == "not-finite"
    assert refused(spoilt(place_of("table"), {"a": bad})) == "not-finite"
    for record in (replace(RECORD, share=bad), replace(RECORD, table={"a": bad})):
        with pytest.raises(WireError) as caught:
            PACKING.pack(record)
        assert caught.value.reason == "not-finite"


def test_an_integer_may_stand_for_a_float() -> None:
    again = PACKING.unpack(spoilt(place_of("share"), 1))
    assert (again.share, type(again.share)) == (1.0, float)


def test_too_many_bytes() -> None:
    assert refused(bytes(MAX_BYTES + 1)) == "oversized"
    with pytest.raises(WireError, match="oversized"):
        PACKING.pack(replace(RECORD, data=bytes(MAX_BYTES)))


def test_text_is_cut_and_made_valid() -> None:
    again = PACKING.unpack(PACKING.pack(replace(RECORD, text="\udcff" + "x" * 5000)))
    assert again.text == "?" + "x" * (MAX_TEXT - 1)
