"""Frames to contents: against sums made here, and whatever else may arrive."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.artifact import build_part, build_program, pack_program
from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.compression import own_compressors
from edge_runtime.errors import WireError
from edge_runtime.parts import Tensors
from edge_runtime.protocol.blob import digest, make_ref
from edge_runtime.protocol.messages import Artifact
from edge_runtime.tensor_blob import pack_tensors, unpack_tensors

RAW = parse_coding("raw")
SHAPES = {"0.bias": (5,), "0.weight": (5, 3), "scale": ()}


def draw(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(size=shape), np.float32) for n, shape in SHAPES.items()}


def coded(tensors: Tensors, spec: str = "raw", described: bool = False) -> bytes:
    rng = np.random.default_rng(0)
    return encode(tensors, parse_coding(spec), rng, described=described)


def artifact(content: bytes, frames: list[bytes], base: bytes = b"") -> Artifact:
    return Artifact(digest(content), base, [make_ref(frame) for frame in frames])


@given(st.integers(0, 4), st.booleans(), st.sampled_from(["raw", "raw+zlib"]))
def test_frames_are_added_in_their_order(deltas: int, whole: bool, spec: str) -> None:
    start = draw(0)
    frames = [coded(draw(seed), spec) for seed in range(1, deltas + 1)]
    expected = dict(start)
    for seed in range(1, deltas + 1):
        expected = {name: value + draw(seed)[name] for name, value in expected.items()}
    content = pack_tensors(expected)
    if whole:
        frames = [coded(start, spec, described=True), *frames]
        assert build_part(artifact(content, frames), None, frames) == content
    elif frames:
        base = unpack_tensors(pack_tensors(start))  # read-only, as on a shelf
        named = artifact(content, frames, digest(pack_tensors(start)))
        assert build_part(named, base, frames) == content
        assert pack_tensors(base) == pack_tensors(start)


def test_what_a_codec_loses_is_lost_for_everyone_alike() -> None:
    start, frames = draw(0), [coded(draw(1), "int8"), coded(draw(2), "topk(0.3)")]
    total = dict(start)
    for frame in frames:
        delta = decode(frame, SHAPES, 1 << 20)
        total = {name: value + delta[name] for name, value in total.items()}
    content = pack_tensors(total)
    named = artifact(content, frames, digest(pack_tensors(start)))
    assert build_part(named, start, frames) == content != pack_tensors(start)


@pytest.mark.parametrize(
    ("frames", "has_base", "reason"),
    [
        ([coded(draw(1), described=True), coded(draw(2))], False, "bad-digest"),
        ([coded(draw(2))], False, "bad-blob"),
        ([coded({"other": draw(2)["0.bias"]}, described=True)], True, "bad-blob"),
        ([b"garbage"], True, "bad-blob"),
        ([b""], False, "bad-blob"),
    ],
    ids=["other-content", "not-described", "other-tensors", "garbage", "nothing"],
)
def test_frames_that_lead_elsewhere_are_refused(
    frames: list[bytes], has_base: bool, reason: str
) -> None:
    base = draw(0) if has_base else None
    with pytest.raises(WireError) as caught:
        build_part(Artifact(b"?" * 16, b"", []), base, frames)
    assert caught.value.reason == reason


def test_a_part_that_is_too_large_is_refused_before_it_is_made() -> None:
    frame = coded({"0.weight": np.zeros((1 << 10, 1 << 10), np.float32)}, "raw+zlib", True)
    assert len(frame) < 1 << 14
    with pytest.raises(WireError, match="oversized"):
        build_part(Artifact(b"?" * 16, b"", []), None, [frame], max_bytes=1 << 20)


LARGE = {"a": (1024, 1023), "b": (1024, 1024), "c": (7,)}


@pytest.mark.parametrize("specs", ["raw", "raw+zlib", "raw+zstd", "fp16+zip", "int8+zip", "int4"])
@pytest.mark.parametrize("deltas", [0, 1, 2])
def test_a_large_part_takes_its_own_memory_and_little_more(specs: str, deltas: int) -> None:
    source = np.random.default_rng(3)
    draws = [
        {name: source.normal(size=shape).astype(np.float32) for name, shape in LARGE.items()}
        for _ in range(1 + deltas)
    ]
    frames = [coded(tensors, specs, described=not i) for i, tensors in enumerate(draws)]
    total = decode(frames[0], None, 1 << 24)
    for frame in frames[1:]:
        change = decode(frame, LARGE, 1 << 24)
        total = {name: value + change[name] for name, value in total.items()}
    content = pack_tensors(total)
    named = artifact(content, frames)
    tracemalloc.start()
    built = build_part(named, None, frames)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert built == content
    assert peak_bytes < len(content) + (3 << 20)


def test_sums_beyond_any_number_are_refused() -> None:
    most = {"w": np.array([1, np.finfo(np.float32).max], np.float32)}
    frames = [coded(most, described=True), coded(most)]
    with pytest.raises(WireError, match="'w'") as caught:
        build_part(Artifact(b"?" * 16, b"", []), None, frames)
    assert caught.value.reason == "not-finite"


@given(st.binary(max_size=300), st.sampled_from(["", *own_compressors()]))
def test_programs_travel_whole(program: bytes, compressor: str) -> None:
    program = program * 3  # something to compress
    frame = pack_program(program, compressor)
    assert len(frame) <= len(program) + 1
    assert build_program(artifact(program, [frame]), [frame]) == program
    with pytest.raises(WireError, match="bad-digest"):
        build_program(artifact(program + b"!", [frame]), [frame])


def test_a_program_that_is_compressed_is_shorter() -> None:
    for name in own_compressors():
        assert len(pack_program(b"program" * 1000, name)) < 100


@pytest.mark.parametrize("count", [0, 2])
def test_a_program_has_one_frame(count: int) -> None:
    frame = pack_program(b"program")
    with pytest.raises(WireError, match="bad-artifact"):
        build_program(artifact(b"program", [frame] * count), [frame] * count)


def test_a_program_has_no_base() -> None:
    frame = pack_program(b"program")
    with pytest.raises(WireError, match="bad-artifact"):
        build_program(artifact(b"program", [frame], bytes(16)), [frame])


def test_a_program_that_blows_up_is_refused() -> None:
    frame = pack_program(bytes(1 << 20), "zlib")
    with pytest.raises(WireError, match="oversized"):
        build_program(artifact(bytes(1 << 20), [frame]), [frame], max_bytes=(1 << 20) - 1)


@given(st.binary(max_size=80))
def test_no_bytes_are_more_than_refused(frame: bytes) -> None:
    target = Artifact(b"?" * 16, b"", [])
    with pytest.raises(WireError):
        build_program(target, [frame])
    for base in (None, draw(0)):
        with pytest.raises(WireError):
            build_part(target, base, [frame])
