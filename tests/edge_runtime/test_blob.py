"""Digests, chunks, and a shelf that never holds more than it may nor drops what is in use."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError, FlexmoeError, WireError
from edge_runtime.protocol.blob import BlobShelf, chunk, digest, kind_of_expert, make_ref
from edge_runtime.protocol.messages import CHUNK_BYTES, MIN_CHUNK_BYTES, BlobRef, pack, unpack


def test_digest_is_blake2b_of_16_bytes() -> None:
    assert digest(b"abc").hex() == "cf4ab791c62b8d2b2109c90275287816"
    assert digest(memoryview(b"abc")) == digest(bytearray(b"abc")) == digest(b"abc")


def test_make_ref() -> None:
    assert make_ref(b"abc") == BlobRef(digest(b"abc"), 3)
    with pytest.raises(WireError, match="bad-size"):
        make_ref(b"")


def test_expert_kinds() -> None:
    assert [kind_of_expert(e) for e in (0, 3, 12)] == ["expert:0", "expert:3", "expert:12"]


@pytest.mark.parametrize("chunk_bytes", [MIN_CHUNK_BYTES, CHUNK_BYTES])
@pytest.mark.parametrize(("chunks", "more_bytes"), [(0, 1), (1, -1), (1, 0), (2, 5)])
def test_chunks_add_up(chunk_bytes: int, chunks: int, more_bytes: int) -> None:
    size_bytes = chunks * chunk_bytes + more_bytes
    data = (b"0123456789" * (size_bytes // 10 + 1))[:size_bytes]
    ref = make_ref(data)
    count = ref.chunks(chunk_bytes)
    parts = [chunk(ref.digest, data, index, chunk_bytes) for index in range(count)]
    assert b"".join(part.data for part in parts) == data
    assert {len(part.data) for part in parts[:-1]} <= {chunk_bytes}
    assert [(part.digest, part.index) for part in parts] == [(ref.digest, i) for i in range(count)]
    assert [unpack(pack(part)) for part in parts] == parts
    for index in (-1, count):
        with pytest.raises(WireError, match="bad-want"):
            chunk(ref.digest, data, index, chunk_bytes)


class SlowShelf:
    """The same, by plain lists: an oracle."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.blobs: list[bytes] = []  # the least recently used first
        self.pins: list[bytes] = []

    def put(self, data: bytes) -> bool:
        pinned = [blob for blob in self.blobs if blob in self.pins]
        if data in self.blobs:
            self.blobs.remove(data)
        elif sum(map(len, pinned)) + len(data) > self.capacity_bytes:
            return False
        while sum(map(len, self.blobs)) + len(data) > self.capacity_bytes:
            self.blobs.remove(next(blob for blob in self.blobs if blob not in self.pins))
        self.blobs.append(data)
        return True

    def trim(self, size_bytes: int) -> None:
        for blob in [blob for blob in self.blobs if blob not in self.pins]:
            if sum(map(len, self.blobs)) > size_bytes:
                self.blobs.remove(blob)

    def drop(self, data: bytes) -> None:
        if data in self.blobs:
            self.blobs.remove(data)

    def get(self, data: bytes) -> bytes | None:
        if data not in self.blobs:
            return None
        self.blobs.remove(data)
        self.blobs.append(data)
        return data


_actions = st.tuples(
    st.sampled_from(["put", "put", "get", "pin", "unpin", "trim", "drop"]), st.integers(1, 5)
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_actions, min_size=10, max_size=40), st.integers(1, 12))
def test_shelf_is_the_slow_shelf(actions: list[tuple[str, int]], capacity_bytes: int) -> None:
    shelf, slow = BlobShelf(capacity_bytes), SlowShelf(capacity_bytes)
    for action, size_bytes in actions:
        data = b"x" * size_bytes
        name = digest(data)
        if action == "put":
            if slow.put(data):
                assert shelf.put(data) == name
            else:
                with pytest.raises(FlexmoeError, match="does not fit"):
                    shelf.put(data)
        elif action == "get":
            assert shelf.get(name) == slow.get(data)
        elif action == "trim":
            shelf.trim(size_bytes)
            slow.trim(size_bytes)
        elif action == "drop":
            shelf.drop(name)
            slow.drop(data)
        elif action == "pin":
            shelf.pin([name])
            slow.pins.append(data)
        elif data in slow.pins:
            shelf.unpin([name])
            slow.pins.remove(data)
        else:
            with pytest.raises(KeyError):
                shelf.unpin([name])
        assert {n for n in range(1, 6) if digest(b"x" * n) in shelf} == set(map(len, slow.blobs))
        assert shelf.names == [digest(blob) for blob in slow.blobs]
        assert shelf.used_bytes == sum(map(len, slow.blobs)) <= capacity_bytes
        assert len(shelf) == len(slow.blobs)


def test_hold_keeps_blobs_for_as_long_as_its_block() -> None:
    shelf = BlobShelf(10)
    used = shelf.put(b"used!")
    with pytest.raises(RuntimeError), shelf.hold(iter([used, digest(b"comes")])):
        shelf.put(b"comes")
        with pytest.raises(FlexmoeError, match="10 of them in use"):
            shelf.put(b"more")
        raise RuntimeError
    shelf.put(b"more")
    assert used not in shelf
    assert digest(b"comes") in shelf


def test_a_blob_that_does_not_fit_changes_nothing() -> None:
    shelf = BlobShelf(10)
    shelf.put(b"first")
    with pytest.raises(FlexmoeError, match="a blob of 11 bytes does not fit: the shelf holds 10"):
        shelf.put(b"much longer")
    assert shelf.get(digest(b"first")) == b"first"


def test_get_gives_the_very_same_bytes() -> None:
    data = hashlib.sha512(b"").digest()
    shelf = BlobShelf(64)
    assert shelf.get(shelf.put(data)) is data


@pytest.mark.parametrize("capacity_bytes", [0, -1])
def test_a_shelf_needs_room(capacity_bytes: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 byte"):
        BlobShelf(capacity_bytes)
