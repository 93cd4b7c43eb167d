"""Damaged bytes: our code and a reader made from docs/protocol.md take and refuse the same."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.codec import decode
from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import unpack
from edge_runtime.tensor_blob import unpack_tensors
from tests.vectors import make, plain_codecs, plain_messages, plain_tensors
from tests.vectors.load import MOST, SCHEMA, VECTORS, ZSTD, in_hex, outcome, shapes_of

MUTATIONS = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=3
)


def mutated(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(data)
    for at, value in changes:
        changed[at % len(data)] = value
    return bytes(changed[: len(data) - cut])


@settings(max_examples=400)
@given(st.sampled_from(VECTORS["messages"]), MUTATIONS, st.sampled_from([0, 0, 0, 1]))
def test_damaged_messages(case: Any, changes: Any, cut: int) -> None:
    payload = mutated(bytes.fromhex(case["bytes"]), changes, cut)

    def ours() -> Any:
        message = unpack(payload)
        return type(message).__name__, dataclasses.asdict(message)

    assert outcome(lambda: plain_messages.read_message(payload, SCHEMA), ValueError) == outcome(
        ours, WireError
    )


@settings(max_examples=600)
@given(st.sampled_from(VECTORS["codecs"]), MUTATIONS, st.sampled_from([0, 0, 0, 1]))
def test_damaged_blobs(case: Any, changes: Any, cut: int) -> None:
    blob = mutated(bytes.fromhex(case["blob"]), changes, cut)
    shapes = None if case["described"] else shapes_of(case)
    if len(blob) > 1 and blob[0] & 3 == 2 and not ZSTD:
        return
    ours = outcome(lambda: make.values(decode(blob, shapes, MOST)), WireError)
    assert ours == outcome(lambda: in_hex(plain_codecs.decode(blob, shapes)), ValueError)


@settings(max_examples=300)
@given(st.sampled_from(VECTORS["tensors"]), MUTATIONS, st.sampled_from([0, 0, 0, 1]))
def test_damaged_raw_tensors(case: Any, changes: Any, cut: int) -> None:
    data = mutated(bytes.fromhex(case["bytes"]), changes, cut)

    def ours() -> Any:
        return {
            name: (value.dtype.str[1:], value.shape, value.tobytes())
            for name, value in unpack_tensors(data).items()
        }

    assert outcome(ours, WireError) == outcome(lambda: plain_tensors.read_raw(data), ValueError)
