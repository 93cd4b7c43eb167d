"""Kinds: which there are, and which part of an update each byte of a chunk belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import WireError
from edge_runtime.protocol.blob import kind_of_expert, make_ref
from edge_runtime.protocol.kinds import MESSAGE_KIND, UpdateKinds, valid_kind
from edge_runtime.protocol.ledger import CONNECTION
from edge_runtime.protocol.messages import Chunk, Gone
from tests.edge_runtime.examples import ref


@pytest.mark.parametrize(
    "kind",
    ["program", "backbone", "gate", kind_of_expert(0), "expert:999999", MESSAGE_KIND, CONNECTION],
)
def test_kinds(kind: str) -> None:
    assert valid_kind(kind)
    for bad in (f"{kind} ", f"{kind}\n", kind.upper(), f"x{kind}"):
        assert not valid_kind(bad)


@pytest.mark.parametrize("kind", ["", "message", "expert:", "expert:x", "expert:1234567", "é" * 99])
def test_what_is_no_kind(kind: str) -> None:
    assert not valid_kind(kind)


_sizes = st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 0)


@given(_sizes, st.integers(1, 60))
def test_chunks_are_shared_out_byte_by_byte(sizes: list[int], chunk_bytes: int) -> None:
    """The oracle writes each byte's kind beside it."""
    sections = [(kind_of_expert(i), size) for i, size in enumerate(sizes)]
    by_byte = [kind for kind, size in sections for _ in range(size)]
    update = make_ref(bytes(len(by_byte)))
    kinds = UpdateKinds()
    kinds.learn("ann", update, sections)
    for index in range(update.chunks(chunk_bytes)):
        own = by_byte[index * chunk_bytes : (index + 1) * chunk_bytes]
        part = Chunk(update.digest, index, bytes(len(own)))
        shares = kinds.shares("ann", part, chunk_bytes)
        assert shares == [(kind, own.count(kind)) for kind in dict.fromkeys(own)]
        assert kinds.shares("bob", part, chunk_bytes) == []


@given(_sizes, st.integers(0, 2**63 - 1), st.binary(max_size=99))
def test_no_chunk_has_more_shares_than_bytes(sizes: list[int], index: int, data: bytes) -> None:
    """A peer may call any bytes any chunk of its update."""
    update = make_ref(bytes(sum(sizes)))
    kinds = UpdateKinds()
    kinds.learn("ann", update, [("gate", size) for size in sizes])
    shares = kinds.shares("ann", Chunk(update.digest, index % 9, data), 16)
    assert sum(size for _, size in shares) <= len(data)
    assert all(size > 0 for _, size in shares)
    assert (index <= 3) or kinds.shares("ann", Chunk(update.digest, index, data), 200) == []


def test_what_is_no_chunk_of_the_last_update_has_no_kind() -> None:
    kinds, first, second = UpdateKinds(), ref(1, 10), ref(2, 20)
    kinds.learn("ann", first, [("gate", 10)])
    kinds.learn("ann", second, [("backbone", 15), ("gate", 5)])
    part = Chunk(second.digest, 0, bytes(20))
    assert kinds.shares("ann", part, 64) == [("backbone", 15), ("gate", 5)]
    assert kinds.shares("ann", Chunk(first.digest, 0, bytes(10)), 64) == []
    assert kinds.shares("ann", Gone("x"), 64) == []
    kinds.forget()
    assert kinds.shares("ann", part, 64) == []


@pytest.mark.parametrize("sizes", [[], [9], [11], [5, 6], [-1, 11], [20, -10]])
def test_sections_that_are_not_the_updates(sizes: list[int]) -> None:
    kinds = UpdateKinds()
    with pytest.raises(WireError, match="bad-sections"):
        kinds.learn("ann", ref(1, 10), [("gate", size) for size in sizes])
    assert kinds.shares("ann", Chunk(ref(1).digest, 0, bytes(10)), 64) == []
