"""Large tensors are decoded piece by piece, to the same bits as in one go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.codec import decode, encode, open_coded, parse_coding
from edge_runtime.codecs.flat import places
from edge_runtime.codecs.pieces import spread
from edge_runtime.compression import compress
from edge_runtime.errors import WireError
from tests.edge_runtime.coded import flat, laplace, rng, shapes_of

SPECS = [
    f"{name}{zipped}"
    for name in ("raw", "fp16", "int8", "int4", "topk(0.3)", "topk(0.3,4)")
    for zipped in ("", "+zlib", "+zstd")
]

# Pieces end within rows, within tensors, and in the last tensor; the number of values is odd.
LARGE = laplace(6, (3, 50_001), (1,), (70_000, 2), (13,), (0, 5), (4, 3, 2001))
SIZE_BYTES = 4 * len(flat(LARGE))


def coded(spec: str) -> bytes:
    return encode(LARGE, parse_coding(spec), rng())


@pytest.fixture(scope="module", params=SPECS)
def large(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    return request.param, coded(request.param)


def test_pieces_are_what_a_body_holds(large: tuple[str, bytes]) -> None:
    spec, data = large
    coding, shapes = parse_coding(spec), shapes_of(LARGE)
    expected = coding.codec.decode(coding.codec.encode(LARGE, rng()), shapes)
    pieces = list(open_coded(data, shapes, SIZE_BYTES).pieces())
    assert len(pieces) > 4
    assert max(map(len, pieces)) == 1 << 16
    assert np.concatenate(pieces).tobytes() == b"".join(
        expected[name].tobytes() for name in sorted(expected)
    )
    came = decode(data, shapes, SIZE_BYTES)
    assert all(came[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_long_quantized_body_by_rows() -> None:
    """Against the rows one by one: steps times whole numbers."""
    shapes = shapes_of(LARGE)
    body = parse_coding("int8").codec.encode(LARGE, rng())
    heads = [(name, i) for name in sorted(LARGE) for i in range(rows_of(LARGE[name]))]
    bits = np.frombuffer(body, np.uint8, 2 * len(heads)).reshape(2, -1).astype(np.uint32)
    steps = ((bits[0] << 8 | bits[1]) << 16).view(np.float32)
    whole = np.frombuffer(body, np.int8, offset=2 * len(heads)).astype(np.float32)
    came = decode(coded("int8"), shapes, SIZE_BYTES)
    start = 0
    for (name, row), step in zip(heads, steps, strict=True):
        value = came[name].reshape(rows_of(LARGE[name]), -1)[row]
        np.testing.assert_array_equal(value, whole[start : start + len(value)] * step)
        start += len(value)
    assert start == len(whole)


def rows_of(value: NDArray[Any]) -> int:
    """Rows that have values, as `int8` takes them."""
    return 0 if not value.size else value.shape[0] if value.ndim > 1 else 1


def test_long_blobs_that_are_cut_followed_or_too_large_are_refused(
    large: tuple[str, bytes],
) -> None:
    spec, data = large
    shapes = shapes_of(LARGE)
    for other in (data[:-1], data[: len(data) // 2], data[:40], data + b"\x00"):
        with pytest.raises(WireError):
            decode(other, shapes, SIZE_BYTES)
    # What topk keeps can stand among more values; two values more are one byte more of int4.
    for size in () if spec.startswith("topk") else (11, 15):
        with pytest.raises(WireError):
            decode(data, {**shapes, "3.weight": (size,)}, SIZE_BYTES + 8)
    with pytest.raises(WireError, match="oversized"):
        decode(data, shapes, SIZE_BYTES - 1)


def test_what_is_not_finite_is_named_wherever_it_is() -> None:
    shapes = shapes_of(LARGE)
    words = np.zeros(SIZE_BYTES // 4, ">u4")
    for name, at in places(shapes):
        if at.stop > at.start:
            words[at.stop - 1] = 0xFF000000  # infinity, rotated
            body = words.view("u1").reshape(-1, 4).T.tobytes()
            for data in (b"\x10\x01" + body, b"\x11\x01" + compress(body, "zlib")):
                with pytest.raises(WireError, match=f"'{name}'") as caught:
                    decode(data, shapes, SIZE_BYTES)
                assert caught.value.reason == "not-finite"
            words[:] = 0


@pytest.mark.parametrize("sizes", [[10], [1] * 10, [4, 6], [3, 3, 4], [9, 1]])
def test_pieces_are_spread_over_tensors(sizes: list[int]) -> None:
    tensors = {
        "c": np.zeros((2, 2), np.float32),
        "b": np.zeros((0, 3), np.float32),
        "a": np.zeros(5, np.float32),
        "d": np.zeros((), np.float32),
    }
    values, reached = np.arange(10, dtype=np.float32), []
    pieces = np.split(values, np.cumsum(sizes)[:-1])
    for name, place, part in spread(iter(pieces), tensors):
        place += part
        reached += [name] * len(part)
    assert reached == ["a"] * 5 + ["c"] * 4 + ["d"]
    np.testing.assert_array_equal(flat(tensors), values)


def test_the_end_is_looked_at_after_the_last_piece() -> None:
    ended = []

    def pieces() -> Any:
        yield np.ones(3, np.float32)
        ended.append(True)

    for _ in spread(pieces(), {"w": np.zeros(3, np.float32)}):
        assert not ended
    assert ended
