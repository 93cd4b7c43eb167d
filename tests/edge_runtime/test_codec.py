"""Specs, presets, plug-ins and coded blobs: all that decodes is finite, all else is refused."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.codec import (
    PRESETS,
    decode,
    encode,
    known_codecs,
    needs,
    parse_coding,
    resolve,
)
from edge_runtime.codecs import registry
from edge_runtime.compression import compress, own_compressors
from edge_runtime.errors import ConfigError, WireError
from edge_runtime.tensor_blob import Shapes, Tensors, pack_shapes
from tests.edge_runtime.coded import flat, laplace, refused, rng, shapes_of, tensors_strategy

BUILT_IN = ["raw", "fp16", "int8", "int4", "topk"]
SPECS = [
    f"{name}{zipped}"
    for name in ("raw", "fp16", "int8", "int4", "topk(0.3)", "topk(0.3,4)")
    for zipped in ("", "+zip", "+zlib", "+zstd")
]
every = pytest.mark.parametrize("spec", SPECS)


def code(tensors: Tensors, spec: str, described: bool = False) -> bytes:
    return encode(tensors, parse_coding(spec), rng(), described=described)


def size_of(tensors: Tensors) -> int:
    return 4 * len(flat(tensors))


@every
@given(tensors=tensors_strategy, described=st.booleans())
def test_a_blob_holds_what_its_codec_makes(spec: str, tensors: Tensors, described: bool) -> None:
    coding, shapes = parse_coding(spec), shapes_of(tensors)
    body = coding.codec.encode(tensors, rng())
    data = code(tensors, spec, described)
    came = decode(data, None if described else shapes, size_of(tensors))
    alone = coding.codec.decode(body, shapes)
    assert {name: value.tobytes() for name, value in came.items()} == {
        name: value.tobytes() for name, value in alone.items()
    }
    assert shapes_of(came) == shapes
    description = pack_shapes(shapes) if described else b""
    assert len(data) <= 2 + len(description) + 2 + len(body)


def test_a_blob_by_hand() -> None:
    tensors = {"w": np.array([1.0], np.float32)}
    body = bytes([127, 0, 0, 0])
    assert code(tensors, "raw") == b"\x10\x01" + body
    header = pack_shapes({"w": (1,)})
    assert (
        code(tensors, "raw", described=True) == b"\x14\x01" + bytes([len(header)]) + header + body
    )
    numbers = [code(tensors, name)[1] for name in ("raw", "fp16", "int8", "int4", "topk(1)")]
    assert numbers == [1, 2, 3, 4, 5]
    zeros = {"w": np.zeros(100, np.float32)}
    for flag, name in ((1, "zlib"), (2, "zstd")):
        packed = compress(bytes(400), name)
        assert code(zeros, f"raw+{name}") == bytes([0x10 | flag, 1]) + packed


def test_what_compression_would_not_shorten_is_left_as_it_is() -> None:
    tensors = {"w": np.array([0.1], np.float32)}
    assert code(tensors, "raw+zlib") == code(tensors, "raw")


@every
def test_a_change_of_weights_comes_smaller(spec: str) -> None:
    tensors = laplace(1, (64, 72), (64,), (6, 128))
    data = code(tensors, spec)
    limits = {"raw": 4.01, "fp16": 2.01, "int8": 1.05, "int4": 0.55, "topk(0.3": 0.41}
    most = next(most for name, most in limits.items() if spec.startswith(name))
    assert len(data) <= most * len(flat(tensors))
    if "+" in spec and not spec.startswith("topk"):
        assert len(data) < 0.96 * len(code(tensors, spec.partition("+")[0]))


def test_presets_are_specs() -> None:
    assert sorted(PRESETS) == ["default", "lossless", "narrow"]
    tensors = laplace(2, (20, 30))
    sizes = {}
    for name, preset in PRESETS.items():
        for spec in preset:
            assert len(code(tensors, spec)) < size_of(tensors)
        sizes[name] = len(code(tensors, preset.uplink))
    assert sizes["narrow"] < sizes["default"] < sizes["lossless"]
    came = decode(code(tensors, PRESETS["lossless"].downlink), shapes_of(tensors), 2400)
    assert came["0.weight"].tobytes() == tensors["0.weight"].tobytes()


def test_feedback_is_for_those_that_are_wrong_on_average() -> None:
    assert [parse_coding(spec).codec.biased for spec in ("raw", "fp16", "int8", "int4")] == [
        False
    ] * 4
    assert parse_coding("topk(0.1)+zip").codec.biased


@pytest.mark.parametrize(
    ("spec", "compressor"),
    [("raw", ""), (" raw+zip ", "zip"), ("topk(0.1, 4)+zstd", "zstd"), ("int4+zlib", "zlib")],
)
def test_specs(spec: str, compressor: str) -> None:
    coding = parse_coding(spec)
    assert (coding.spec, coding.compressor) == (spec.strip(), compressor)
    assert coding.compress == bool(compressor)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "expected one of raw, fp16, int8, int4, topk"),
        ("zip", "unknown codec 'zip'; expected one of raw, fp16, int8, int4, topk"),
        ("gzip+zip", "unknown codec 'gzip'"),
        ("raw+gzip", "expected one of"),
        ("raw+zip+zip", "expected one of"),
        ("+zip", "expected one of"),
        ("raw(3)", "takes nothing in brackets"),
        ("topk", "topk takes a share"),
        ("topk(2)", "topk takes a share"),
        ("topk(0.1", "expected one of"),
        ("topk(0.1))", "expected one of"),
        ("topk(\ud800)", "expected one of"),
        ("topk(" + "0" * 100 + ")", "expected one of"),
    ],
)
def test_bad_specs(spec: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_coding(spec)
    assert complaint in str(caught.value)


def test_zip_is_resolved_to_what_both_sides_have() -> None:
    coding = parse_coding("topk(0.1)+zip")
    assert resolve(coding, ["raw", "topk", "zlib", "zstd"]).spec == "topk(0.1)+zstd"
    assert resolve(coding, ["raw", "topk", "zlib"]).spec == "topk(0.1)+zlib"
    for spec in ("raw", "raw+zlib", "raw+zstd"):
        assert resolve(parse_coding(spec), ["raw"]).spec == spec
    resolved = resolve(coding, known_codecs())
    assert parse_coding(resolved.spec).compressor == resolved.compressor == "zstd"


def test_what_a_peer_needs() -> None:
    assert known_codecs() == [*BUILT_IN, "zlib", "zstd"]
    assert needs(parse_coding("raw")) == {"raw"}
    assert needs(parse_coding("topk(0.1)+zip")) == {"topk", "zstd"}
    assert needs(parse_coding("int8+zip"), ["zlib"]) == {"int8", "zlib"}
    assert needs(parse_coding("int8+zstd"), ["zlib"]) == {"int8", "zstd"}
    zeros = {"w": np.zeros(100, np.float32)}
    assert encode(zeros, parse_coding("raw+zip"), rng(), ["zlib"]) == code(zeros, "raw+zlib")


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    own_compressors.cache_clear()
    yield
    own_compressors.cache_clear()


def test_a_side_without_zstd_uses_zlib(without_zstd: None) -> None:
    tensors = {"w": np.zeros((10, 10), np.float32)}
    assert known_codecs() == [*BUILT_IN, "zlib"]
    assert code(tensors, "raw+zip") == code(tensors, "raw+zstd") == code(tensors, "raw+zlib")
    assert not decode(code(tensors, "raw+zip"), {"w": (10, 10)}, 400)["w"].any()
    assert resolve(parse_coding("raw+zip"), ["raw", "zlib", "zstd"]).spec == "raw+zlib"
    assert needs(parse_coding("raw+zip"), ["zlib", "zstd"]) == {"raw", "zlib"}


def test_a_side_without_zstd_refuses_it(request: pytest.FixtureRequest) -> None:
    data = code({"w": np.zeros(100, np.float32)}, "raw+zstd")
    request.getfixturevalue("without_zstd")
    with pytest.raises(WireError) as caught:
        decode(data, {"w": (100,)}, 400)
    assert caught.value.reason == "unknown-codec"


@every
def test_what_is_not_finite_does_not_travel(spec: str) -> None:
    with pytest.raises(WireError) as caught:
        code({"w": np.array([1, np.inf], np.float32)}, spec)
    assert caught.value.reason == "not-finite"


@pytest.mark.parametrize(
    "body",
    [
        b"\x01" + np.array([0xFF000000, 2], ">u4").view("u1").reshape(-1, 4).T.tobytes(),
        b"\x02\x00" + bytes([0x7C, 0, 0, 0]),
        b"\x02\x71" + bytes([0x7B, 0, 0xFF, 0]),
        b"\x03\x7f\x80\x01\x01",
        b"\x03\x7f\x7f\x7f\x7f",
        b"\x04\x7f\xc0\x11",
        b"\x05\x01\x07\x7f\x80\x04",
        b"\x05\x01\x00\x7f\x7f\x7f\x7f\x05",
    ],
)
def test_what_is_not_finite_is_refused(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        decode(b"\x10" + body, {"w": (2,)}, 8)
    assert caught.value.reason == "not-finite"


@every
def test_the_limit_is_the_size_of_the_tensors(spec: str) -> None:
    tensors = laplace(3, (10, 10))
    for described in (False, True):
        data, shapes = code(tensors, spec, described), None if described else shapes_of(tensors)
        assert decode(data, shapes, 400)
        with pytest.raises(WireError) as caught:
            decode(data, shapes, 399)
        assert caught.value.reason == "oversized"


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("name", ["zlib", "zstd"])
def test_a_bomb_is_refused_before_it_takes_memory(name: str, described: bool) -> None:
    packed = compress(bytes(100 << 20), name)
    shapes = {"w": (50, 50)}
    flags = {"zlib": 1, "zstd": 2}[name]
    header = pack_shapes(shapes)
    data = bytes([0x10 | flags, 1]) + packed
    if described:
        data = bytes([0x14 | flags, 1, len(header)]) + header + packed
    reason, peak_bytes = refused(lambda: decode(data, None if described else shapes, 10_000))
    assert reason == "oversized"
    assert peak_bytes < len(data) + (1 << 18)


def test_a_description_of_huge_tensors_is_refused_before_it_takes_memory() -> None:
    for shape in ((1 << 28,), (1 << 14, 1 << 14), (1 << 28, 1)):
        for codec in range(1, 6):
            header = pack_shapes({"w": shape})
            data = bytes([0x14, codec, len(header)]) + header + bytes(20)
            reason, peak_bytes = refused(lambda data=data: decode(data, None, 1 << 20))
            assert reason == "oversized"
            assert peak_bytes < 1 << 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bad-blob"),
        (b"\x10", "bad-blob"),
        (b"\x00\x01", "bad-blob"),
        (b"\x20\x01\x00\x00\x00\x00", "bad-blob"),
        (b"\x13\x01\x00\x00\x00\x00", "bad-blob"),
        (b"\x18\x01\x00\x00\x00\x00", "bad-blob"),
        (b"\x10\x06\x00\x00\x00\x00", "unknown-codec"),
        (b"\x10\xff\x00\x00\x00\x00", "unknown-codec"),
        (b"\x10\x00", "bad-blob"),
        (b"\x10\x00\x00", "bad-blob"),
        (b"\x10\x00\x04abc", "bad-blob"),
        (b"\x10\x00\x41" + b"a" * 65, "bad-blob"),
        (b"\x10\x00\x03abcd", "unknown-codec"),
        (b"\x10\x00\x03raw\x00\x00\x00\x00", "unknown-codec"),
        (b"\x10\x00\x07raw+zip", "unknown-codec"),
        (b"\x10\x00\x02\xff\xfe", "unknown-codec"),
        (b"\x14\x01", "bad-body"),
        (b"\x14\x01\x05\x90", "bad-blob"),
        (b"\x14\x01\x01\xc0", "bad-tensors"),
        (b"\x14\x01\x01\x90", "bad-blob"),
        (b"\x10\x01\x00\x00\x00", "bad-body"),
        (b"\x11\x01\x07", "bad-compression"),
        (b"\x12\x01\x00\x00\x00\x00", "bad-compression"),
    ],
)
def test_bad_blobs(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(data, {"w": (1,)}, 100)
    assert caught.value.reason == reason


def test_a_blob_that_does_not_describe_itself_needs_shapes() -> None:
    data = code({"w": np.zeros(1, np.float32)}, "raw")
    with pytest.raises(WireError, match="does not describe"):
        decode(data, None, 100)


@every
@pytest.mark.parametrize("described", [False, True])
def test_every_truncation_and_what_follows_is_refused(spec: str, described: bool) -> None:
    tensors = {"b": np.zeros(3, np.float32), **laplace(4, (12, 8))}
    shapes = shapes_of(tensors)
    data = code(tensors, spec, described)
    for other in [*(data[:size] for size in range(len(data))), data + b"\x00"]:
        with pytest.raises(WireError):
            decode(other, shapes, 1000)


@pytest.mark.parametrize("described", [False, True])
def test_thousands_of_mutants(described: bool) -> None:
    """A mutant is refused with a `WireError`, or it is finite and of the expected shapes."""
    source = random.Random(5)
    tensors = {"b": np.zeros((3, 0), np.float32), **laplace(5, (6, 4), (5,))}
    shapes = shapes_of(tensors)
    blobs = [code(tensors, spec, described) for spec in SPECS]
    survivors = 0
    for _ in range(5000):
        mutant = bytearray(source.choice(blobs))
        for _ in range(source.choice((1, 1, 2, 4))):
            i = source.randrange(source.choice((4, len(mutant))))
            mutant[i : i + source.choice((0, 1, 1, 2))] = source.randbytes(source.choice((0, 1, 2)))
        try:
            came = decode(bytes(mutant), None if described else shapes, 1000)
        except WireError:
            continue
        survivors += 1
        assert np.isfinite(flat(came)).all()
        assert size_of(came) <= 1000
        assert described or shapes_of(came) == shapes
    assert 100 < survivors < 4500


@given(st.binary(max_size=60), st.integers(0, 5), st.integers(0, 7))
def test_arbitrary_bytes(junk: bytes, codec: int, flags: int) -> None:
    try:
        came = decode(bytes([0x10 | flags, codec]) + junk, {"w": (3, 4), "b": (2,)}, 200)
    except WireError:
        return
    assert np.isfinite(flat(came)).all()


# --- codecs of other packages


class Sign:
    """A small codec of one's own: signs, times one size that stands in the brackets."""

    name = "anything"
    biased = True

    def __init__(self, argument: str) -> None:
        self._size = np.float32(float(argument or "1"))

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        return np.packbits(flat(dict(tensors)) < 0).tobytes()

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        values = np.where(np.unpackbits(np.frombuffer(body, np.uint8)), -self._size, self._size)
        tensors, start = {}, 0
        for name, shape in sorted(shapes.items()):
            count = int(np.prod(shape))
            tensors[name] = values[start : start + count].reshape(shape)
            start += count
        return tensors

    def size_bytes(self, shapes: Shapes) -> int:
        return -(-sum(int(np.prod(shape)) for shape in shapes.values()) // 8)


class Wrong(Sign):
    """Breaks the contract: the dtype is another."""

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        return {
            name: value.astype(np.float64) for name, value in super().decode(body, shapes).items()
        }

    def encode(self, tensors: Any, rng: Any) -> bytes:
        raise RuntimeError("never mind")


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An installed package that announces codecs."""
    codecs = {
        "sign": "Sign",
        "wrong": "Wrong",
        "raw": "Sign",
        "zstd": "Sign",
        "gone": "NoSuchClass",
    }
    lines = [f"{name} = {__name__}:{value}" for name, value in codecs.items()]
    facts = tmp_path / "own_codecs-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own-codecs\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


def test_a_codec_of_ones_own(plugged: None) -> None:
    coding = parse_coding("sign(0.5)+zlib")
    assert (coding.codec.name, coding.codec.biased) == ("sign", True)
    assert needs(coding) == {"sign", "zlib"}
    assert known_codecs() == [*BUILT_IN, "gone", "sign", "wrong", "zlib", "zstd"]
    tensors = {"w": np.array([[1, -2], [-3, 4]], np.float32), "b": np.ones(4, np.float32)}
    assert coding.codec.size_bytes(shapes_of(tensors)) == 1
    data = code(tensors, "sign(0.5)")
    assert data == b"\x10\x00\x09sign(0.5)" + b"\x06"
    came = decode(data, shapes_of(tensors), 32)
    np.testing.assert_array_equal(came["w"], [[0.5, -0.5], [-0.5, 0.5]])
    zeros = {"w": np.zeros(4000, np.float32)}
    assert decode(code(zeros, "sign+zip", True), None, 16000)["w"].tolist() == [1.0] * 4000


def test_names_that_are_taken_stay(plugged: None) -> None:
    assert code({"w": np.zeros(2, np.float32)}, "raw") == b"\x10\x01" + bytes(8)


def test_what_a_codec_of_ones_own_does_wrong_is_a_wire_error(plugged: None) -> None:
    shapes = {"w": (8,)}
    for data in (
        b"\x10\x00\x04sign" + b"\x01\x02\x03",  # numpy complains about the number of values
        b"\x10\x00\x04sign",
        b"\x10\x00\x05wrong" + b"\x00",
    ):
        with pytest.raises(WireError) as caught:
            decode(data, {"w": (9,)} if len(data) < 9 else shapes | {"v": (99,)}, 1000)
        assert caught.value.reason == "bad-body"
    with pytest.raises(WireError, match="other tensors"):
        decode(b"\x10\x00\x05wrong\x00", shapes, 1000)
    with pytest.raises(WireError, match="RuntimeError: never mind"):
        code({"w": np.zeros(8, np.float32)}, "wrong")
    for name in (b"gone", b"sign(x)"):
        with pytest.raises(WireError) as caught:
            decode(b"\x10\x00" + struct.pack("B", len(name)) + name + b"\x00", shapes, 1000)
        assert caught.value.reason == "unknown-codec"


def test_a_plug_in_that_cannot_be_made_says_why(plugged: None) -> None:
    with pytest.raises(ConfigError, match="'gone' of an installed package fails: AttributeError"):
        parse_coding("gone")
    with pytest.raises(ConfigError, match="'sign' of an installed package fails: ValueError"):
        parse_coding("sign(x)")
