"""What is compressed comes back; nothing is allocated for what is too long or damaged."""

from __future__ import annotations

import importlib.util
import random
import sys
import zlib
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.compression import COMPRESSORS, compress, decompress, own_compressors
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


def test_this_side_has_both() -> None:
    assert own_compressors() == ("zlib", "zstd")
