"""What is compressed comes back; nothing is allocated for what is too long or damaged."""

from __future__ import annotations

import importlib.util
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import (
    COMPRESSORS,
    compress,
    decompress,
    open_packed,
    own_compressors,
)
from edge_runtime.errors import WireError
from tests.edge_runtime.coded import refused

every = pytest.mark.parametrize("name", COMPRESSORS)


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    own_compressors.cache_clear()
    yield
    own_compressors.cache_clear()


@every
@given(st.binary(max_size=300), st.integers(1, 200))
def test_round_trip(name: str, piece: bytes, times: int) -> None:
    data = piece * times
    assert decompress(compress(data, name), name, len(data)) == data


def test_zlib_is_raw_deflate_and_zstd_one_frame_with_its_size() -> None:
    data = bytes(range(256)) * 100
    assert zlib.decompress(compress(data, "zlib"), -15) == data
    packed = compress(data, "zstd")
    assert zstandard.frame_content_size(packed) == len(data)
    assert zstandard.ZstdDecompressor().decompress(packed) == data


@every
def test_planes_that_differ_each_have_a_table_of_their_own(name: str) -> None:
    """Two kinds of bytes one after the other take what each takes alone, about."""
    source = random.Random(1)
    halves = [bytes(source.choices(range(i, i + 8), k=16384)) for i in (0, 100)]
    alone = sum(len(compress(half, name)) for half in halves)
    assert alone < 2 * 16384 * 3.3 / 8
    assert len(compress(b"".join(halves), name)) < alone + 300


@every
def test_one_byte_more_than_allowed_is_refused(name: str) -> None:
    packed = compress(bytes(1000), name)
    assert decompress(packed, name, 1000) == bytes(1000)
    with pytest.raises(WireError, match="more than 999 bytes") as caught:
        decompress(packed, name, 999)
    assert caught.value.reason == "oversized"


@every
def test_a_bomb_takes_no_memory(name: str) -> None:
    packed = compress(bytes(200 << 20), name)
    assert len(packed) < 1 << 20
    reason, peak_bytes = refused(lambda: decompress(packed, name, 100_000))
    assert reason == "oversized"
    assert peak_bytes < 1 << 20


@every
def test_every_truncation_and_what_follows_is_refused(name: str) -> None:
    packed = compress(b"some bytes, and some bytes again" * 3, name)
    for size in range(len(packed)):
        with pytest.raises(WireError):
            decompress(packed[:size], name, 1000)
    with pytest.raises(WireError) as caught:
        decompress(packed + b"\x00", name, 1000)
    assert caught.value.reason == "bad-compression"


@every
def test_two_thousand_mutants(name: str) -> None:
    source = random.Random(3)
    packed = compress(source.randbytes(40) * 4 + bytes(300), name)
    refused = 0
    for _ in range(2000):
        mutant = bytearray(packed)
        for _ in range(source.choice((1, 1, 3))):
            mutant[source.randrange(len(mutant))] = source.randrange(256)
        try:
            assert len(decompress(bytes(mutant), name, 1000)) <= 1000
        except WireError:
            refused += 1
    assert refused > 100


def test_a_zstd_frame_without_its_size_is_refused() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(WireError, match="how long it is"):
        decompress(packed, "zstd", 1000)


def test_a_zstd_frame_of_no_content_is_refused() -> None:
    """A skippable frame holds nothing that a decoder may show."""
    with pytest.raises(WireError):
        decompress(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + b"x", "zstd", 1000)


def test_a_device_without_the_package_has_zlib(without_zstd: None) -> None:
    assert importlib.util.find_spec("zstandard") is None
    assert own_compressors() == ("zlib",)
    with pytest.raises(WireError, match="extra `zstd`") as caught:
        decompress(b"\x28\xb5\x2f\xfd", "zstd", 1000)
    assert caught.value.reason == "unknown-codec"


def test_a_package_that_cannot_be_imported_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_zstd: None
) -> None:
    """As after half an installation: it is found, and does not work."""
    monkeypatch.delitem(sys.modules, "zstandard")
    (tmp_path / "zstandard.py").write_text("raise ImportError('libzstd.so.1: not there')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("zstandard") is not None
    assert own_compressors() == ("zlib",)


def test_this_side_has_both() -> None:
    assert own_compressors() == ("zlib", "zstd")


# --- in pieces


def read_all(packed: bytes, name: str, sizes: list[int], start: int = 0) -> bytes:
    """What a cursor gives in pieces of `sizes`, with its end checked."""
    cursor = open_packed(memoryview(packed), name, 1 << 24).at(start)
    content = b"".join(bytes(cursor.read(size)) for size in sizes)
    cursor.end()
    return content


def mixed(size_bytes: int) -> bytes:
    """Bytes that compressors store as they are, code, and repeat."""
    source = random.Random(4)
    third = size_bytes // 3
    few = bytes(source.choices(range(8), k=third))
    return source.randbytes(third) + few + bytes(size_bytes - 2 * third)


@every
@given(cuts=st.lists(st.integers(0, 300_000), max_size=6))
def test_cursors_read_what_is_decompressed_at_once(name: str, cuts: list[int]) -> None:
    data = mixed(300_000)
    start, *stops = sorted([*cuts, 300_000])
    sizes = [stop - begin for begin, stop in zip([start, *stops], stops, strict=False)]
    packed = compress(data, name)
    assert read_all(packed, name, sizes, start) == data[start:]


@every
def test_cursors_do_not_disturb_one_another(name: str) -> None:
    data = mixed(60_000)
    body = open_packed(memoryview(compress(data, name)), name, 60_000)
    assert body.size_bytes == {"zlib": None, "zstd": 60_000}[name]
    cursors = [body.at(start) for start in range(0, 60_000, 20_000)]
    pieces = [[bytes(cursor.read(5000)) for cursor in cursors] for _ in range(4)]
    assert b"".join(b"".join(column) for column in zip(*pieces, strict=True)) == data


@every
def test_a_cursor_refuses_what_is_cut_or_followed(name: str) -> None:
    data = mixed(3000)
    packed = compress(data, name)
    for size in range(len(packed)):
        with pytest.raises(WireError):
            read_all(packed[:size], name, [3000])
    for other, sizes in ((packed + b"\x00", [3000]), (packed, [2999]), (packed, [3001])):
        with pytest.raises(WireError) as caught:
            read_all(other, name, sizes)
        assert caught.value.reason == "bad-compression"
    with pytest.raises(WireError):
        read_all(packed, name, [], 3001)
    with pytest.raises(WireError):
        read_all(packed + packed, name, [3000])


@every
def test_a_cursor_takes_and_refuses_what_decompress_does(name: str) -> None:
    source = random.Random(6)
    packed = compress(source.randbytes(40) * 4 + bytes(300), name)
    taken = 0
    for _ in range(2000):
        mutant = bytearray(packed)
        for _ in range(source.choice((1, 1, 3))):
            mutant[source.randrange(len(mutant))] = source.randrange(256)
        try:
            content = decompress(bytes(mutant), name, 1000)
        except WireError:
            with pytest.raises(WireError):
                read_all(bytes(mutant), name, [460])
            continue
        if not content:  # a zstd frame that says so is not looked into at once
            continue
        taken += 1
        assert read_all(bytes(mutant), name, [len(content)]) == content
    assert taken > 100


def test_a_zstd_frame_with_a_checksum_or_a_wide_window_is_read() -> None:
    data = mixed(3 << 20)
    for options in ({"write_checksum": True, "level": 1}, {"level": 19}):
        packed = zstandard.ZstdCompressor(**options).compress(data)
        assert read_all(packed, "zstd", [1 << 20] * 3) == data
        with pytest.raises(WireError):
            read_all(packed + b"\x00", "zstd", [1 << 20] * 3)
        with pytest.raises(WireError):
            read_all(packed[:-1], "zstd", [1 << 20] * 3)


def test_a_zstd_frame_says_at_once_that_it_is_too_long() -> None:
    packed = memoryview(compress(bytes(1000), "zstd"))
    with pytest.raises(WireError, match="more than 999 bytes"):
        open_packed(packed, "zstd", 999)
