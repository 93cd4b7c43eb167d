"""Tensors come back bit for bit; any other bytes are refused with WireError alone."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import MAX_BLOB_BYTES
from edge_runtime.tensor_blob import (
    MAX_HEADER_BYTES,
    MAX_NAME,
    MAX_TENSORS,
    NewBlob,
    Tensors,
    pack_shapes,
    pack_tensors,
    unpack_shapes,
    unpack_tensors,
)

DTYPES = ["f2", "f4", "i1", "u1", "i4", "i8"]

_arrays = hnp.arrays(
    st.sampled_from([np.dtype(order + code) for code in DTYPES for order in "<>"]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)
tensors_strategy = st.dictionaries(st.text(min_size=1, max_size=20), _arrays, max_size=6)


def blob(specs: Any, data: bytes = b"") -> bytes:
    """A blob with this header, well formed or not, and this data after its padding."""
    header: bytes = msgpack.packb(specs)
    prefix = b"FXT1" + struct.pack("<I", len(header)) + header
    return prefix + bytes(-len(prefix) % 16) + data if specs else prefix


def example() -> Tensors:
    return {
        "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "0.bias": np.array([1.5, np.nan, -np.inf], np.float32),
        "steps": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
        "mask": np.array([[1], [0]], np.uint8),
    }


@settings(deadline=None)
@given(tensors_strategy, st.randoms())
def test_round_trip_in_any_order(tensors: Tensors, rng: random.Random) -> None:
    data = pack_tensors(tensors)
    names = list(tensors)
    rng.shuffle(names)
    assert pack_tensors({name: tensors[name] for name in names}) == data
    again = unpack_tensors(data)
    assert list(again) == sorted(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype.newbyteorder("<")
        assert again[name].shape == tensor.shape
        assert again[name].tobytes() == tensor.astype(again[name].dtype).tobytes()
        assert not again[name].flags.writeable
        assert again[name].flags.aligned
    assert pack_tensors(again) == data


def test_bytes_never_change() -> None:
    """A stored digest stays good: this is what version 1 looks like."""
    data = pack_tensors({"b": np.array([[1, 2]], np.int8), "a": np.array(1, np.float32)})
    assert data == (
        b"FXT1\x11\x00\x00\x00"
        b"\x92\x93\xa1a\xa2f4\x90\x93\xa1b\xa2i1\x92\x01\x02"
        b"\x00\x00\x00\x00\x00\x00\x00"
        b"\x00\x00\x80\x3f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
        b"\x01\x02"
    )


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
        max_size=4,
    ),
)
def test_what_is_written_to_a_new_blob_is_packed(tensors: Tensors) -> None:
    blob = NewBlob({name: value.shape for name, value in tensors.items()})
    assert list(blob.tensors) == sorted(tensors)
    for name, value in tensors.items():
        assert not blob.tensors[name].any()
        blob.tensors[name][...] = value
    assert blob.finish() == pack_tensors(tensors)


def test_a_new_blob_that_somebody_could_still_write_to_is_not_given_away() -> None:
    blob = NewBlob({"w": (2,)})
    held = blob.tensors["w"][1:]
    with pytest.raises(BufferError):
        blob.finish()
    del held
    assert blob.finish() == pack_tensors({"w": np.zeros(2, np.float32)})


def test_a_new_blob_has_the_limits_of_any() -> None:
    with pytest.raises(WireError, match="at most"):
        NewBlob({"w": (MAX_BLOB_BYTES // 4,)})


def test_memory_order_does_not_matter() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    for same in (np.asfortranarray(matrix), np.repeat(matrix, 2, axis=1)[:, ::2]):
        assert pack_tensors({"w": same}) == pack_tensors({"w": matrix})


def test_decoded_tensors_are_views() -> None:
    data = pack_tensors(example())
    for name, tensor in unpack_tensors(data).items():
        if tensor.size:
            assert np.shares_memory(tensor, np.frombuffer(data, np.uint8)), name
    with pytest.raises(ValueError, match="read-only"):
        unpack_tensors(data)["mask"][0] = 9


def test_data_that_is_not_aligned_is_copied() -> None:
    shifted: Any = memoryview(b"x" + pack_tensors(example()))[1:]
    again = unpack_tensors(shifted)
    assert all(tensor.flags.aligned and not tensor.flags.writeable for tensor in again.values())
    np.testing.assert_array_equal(again["0.weight"], example()["0.weight"])


def test_every_truncation_and_any_longer_blob_is_refused() -> None:
    data = pack_tensors(example())
    for size in range(len(data)):
        with pytest.raises(WireError):
            unpack_tensors(data[:size])
    with pytest.raises(WireError, match="after the last tensor"):
        unpack_tensors(data + b"\x00")


def test_twenty_thousand_mutants() -> None:
    """A mutant is refused, or it is the one encoding of what it decodes to."""
    rng = random.Random(2)
    data = pack_tensors(example())
    survivors = 0
    for _ in range(20_000):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            # Most of the blob's bytes are data, but most of the rules are the header's.
            i = rng.randrange(rng.choice((8, 90, len(mutant))))
            mutant[i : i + rng.choice((0, 1, 1, 1, 2))] = rng.randbytes(rng.choice((0, 1, 1, 2)))
        try:
            again = unpack_tensors(bytes(mutant))
        except WireError:
            continue
        assert pack_tensors(again) == mutant
        survivors += 1
    assert 100 < survivors < 15_000


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes(junk: bytes, framed: bool) -> None:
    data = b"FXT1" + struct.pack("<I", max(0, len(junk) - 4)) + junk if framed else junk
    try:
        again = unpack_tensors(data)
    except WireError:
        return
    assert pack_tensors(again) == data


def test_hand_made_blob_is_good() -> None:
    """`blob` makes what `pack_tensors` makes, so the refusals below are for the named reason."""
    data = np.array([1, 2], np.float32).tobytes()
    assert blob([["w", "f4", [2]]], data) == pack_tensors({"w": np.array([1, 2], np.float32)})
    assert unpack_tensors(blob([])) == {}


@pytest.mark.parametrize(
    ("specs", "complaint"),
    [
        ({"w": 1}, "header"),
        ([1], "expected a list of"),
        ([["w", "f4"]], "expected a list of"),
        ([["w", "f4", 2]], "expected a list of"),
        ([[b"w", "f4", [2]]], "header"),
        ([[7, "f4", [2]]], "a name has"),
        ([["", "f4", [2]]], "a name has"),
        ([["w" * (MAX_NAME + 1), "f4", [2]]], "a name has"),
        ([["w", "f4", [1]], ["w", "f4", [1]]], "each once"),
        ([["w", "f4", [1]], ["b", "f4", [1]]], "ascend"),
        ([["w", "f8", [1]]], "unknown dtype"),
        ([["w", "O", [1]]], "unknown dtype"),
        ([["w", ["f4"], [1]]], "unknown dtype"),
        ([["w", "f4", [-1]]], ">= 0"),
        ([["w", "f4", [-1, -2]]], ">= 0"),
        ([["w", "f4", [True, 2]]], ">= 0"),
        ([["w", "f4", [2.0]]], ">= 0"),
        ([["w", "f4", [[2]]]], ">= 0"),
        ([["w", "f4", [1] * 9]], "sizes"),
        ([["w", "f4", [2**63]]], ">= 0"),
        ([["w", "f4", [2**29, 2**29, 2**29]]], "at most"),
        ([["w", "i1", [2**30, 2**30, 2**30, 2**30, 0]]], "at most"),
        ([["w", "f4", [MAX_BLOB_BYTES // 4]]], "at most"),
        ([["v", "i1", [2**29]], ["w", "i1", [2**29]]], "ends before"),
        ([["w", "f4", [3]]], "ends before"),
        ([["w", "f4", [1]]], "after the last tensor"),
    ],
)
def test_bad_headers(specs: Any, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint) as caught:
        unpack_tensors(blob(specs, bytes(8)))
    assert caught.value.reason == "bad-tensors"


def test_too_many_tensors() -> None:
    names = [f"{i:05}" for i in range(MAX_TENSORS + 1)]
    with pytest.raises(WireError, match="header"):
        unpack_tensors(blob([[name, "i1", []] for name in names]))
    with pytest.raises(WireError, match="at most"):
        pack_tensors({name: np.array(0, np.int8) for name in names})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "too few"),
        (b"FXT1\x01\x00\x00", "too few"),
        (b"FXT2\x01\x00\x00\x00\x90", "magic"),
        (b"FXT1\xff\xff\xff\xff\x90", "does not fit"),
        (b"FXT1\x02\x00\x00\x00\x90", "does not fit"),
        (b"FXT1" + struct.pack("<I", MAX_HEADER_BYTES + 1) + bytes(MAX_HEADER_BYTES + 1), "fit"),
        (b"FXT1\x00\x00\x00\x00", "header"),
        (b"FXT1\x02\x00\x00\x00\x90\x90", "header"),
        (b"FXT1\x03\x00\x00\x00\xdc\x00\x00", "shortest"),  # [] in three bytes
        (b"FXT1\xe8\x03\x00\x00" + b"\x91" * 1000, "header"),
        (b"FXT1\x05\x00\x00\x00\xdd\xff\xff\xff\xff", "header"),
    ],
)
def test_bad_frames(data: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        unpack_tensors(data)


def test_padding_must_be_zero() -> None:
    data = bytearray(blob([["w", "f4", [2]]], bytes(8)))
    assert data[23] == 0
    data[23] = 1
    with pytest.raises(WireError, match="padding"):
        unpack_tensors(bytes(data))


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": np.zeros(2, np.float64)},
        {"w": np.array(["text"])},
        {"w": np.array([object()])},
        {"": np.zeros(2, np.float32)},
        {"\ud800": np.zeros(2, np.float32)},
        {"w": np.zeros((1,) * 9, np.float32)},
        {"w": np.broadcast_to(np.zeros(1, np.int8), (1 << 16, 1 << 15))},
    ],
)
def test_what_cannot_be_encoded(tensors: Tensors) -> None:
    with pytest.raises(WireError):
        pack_tensors(tensors)


def test_shapes_alone_are_the_header_of_a_float32_blob() -> None:
    tensors = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    shapes = {name: value.shape for name, value in tensors.items()}
    header = pack_shapes(shapes)
    assert pack_tensors(tensors)[8 : 8 + len(header)] == header
    assert unpack_shapes(header) == shapes
    assert unpack_shapes(pack_shapes({})) == {}


@pytest.mark.parametrize(
    ("specs", "complaint"),
    [
        ([["w", "i1", [1]]], "expected f4"),
        ([["w", "f4", [MAX_BLOB_BYTES]]], "at most"),
        ([["v", "f4", [2**27]], ["w", "f4", [2**27]], ["x", "f4", [1]]], "at most"),
        ([["w", "f4", [2**30, 2**30, 0]]], "at most"),
        ([1], "expected a list of"),
    ],
)
def test_bad_shapes(specs: Any, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        unpack_shapes(msgpack.packb(specs))


def test_every_truncation_of_shapes_is_refused() -> None:
    header = pack_shapes({"w": (2, 3), "b": (2,)})
    for size in range(len(header)):
        with pytest.raises(WireError):
            unpack_shapes(header[:size])
    with pytest.raises(WireError):
        unpack_shapes(header + b"\x00")
