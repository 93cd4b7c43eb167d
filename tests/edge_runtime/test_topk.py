"""`topk` against a plain encoder's choice and a plain decoder that goes bit by bit."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.codecs.topk import TopK, make_topk
from edge_runtime.errors import ConfigError, WireError
from edge_runtime.tensor_blob import Shapes, Tensors
from tests.edge_runtime.coded import (
    LARGEST,
    flat,
    laplace,
    refused,
    rng,
    shapes_of,
    tensors_strategy,
    there_and_back,
)

shares = st.sampled_from([0.01, 0.05, 0.3, 0.5, 1.0])
widths = st.integers(1, 8)


def largest(values: np.ndarray, share: float) -> list[int]:
    """The places to keep, chosen by sorting."""
    count = max(1, math.ceil(share * len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    return sorted(i for i in order[:count] if values[i] != 0)


class Reader:
    """The bits of a body, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def number(self, width: int) -> int:
        bits, self._at = self._bits[self._at : self._at + width], self._at + width
        return int(bits or "0", 2)

    def unary(self) -> int:
        value = 0
        while not self.number(1):
            value += 1
        return value

    def rest(self) -> str:
        return self._bits[self._at :]


def bfloat(data: bytes) -> np.float32:
    return np.frombuffer(bytes(2) + data[::-1], "<f4")[0]


def plain_decode(body: bytes, shapes: Shapes) -> np.ndarray:
    """All values of a body, as the module's docstring says."""
    values = np.zeros(sum(math.prod(shape) for shape in shapes.values()), np.float32)
    count, at = 0, 0
    while True:
        count |= (body[at] & 127) << (7 * at)
        at += 1
        if body[at - 1] < 128:
            break
    if not count:
        assert len(body) == at
        return values
    m = body[at]
    base, step = bfloat(body[at + 1 : at + 3]), np.float32(0)
    if m != 7:
        step = bfloat(body[at + 3 : at + 5])
    bits = Reader(body[at + (3 if m == 7 else 5) :])
    places: list[int] = []
    start = 0
    for name in sorted(shapes):
        shape = shapes[name]
        size = math.prod(shape)
        inside = list(range(size))
        if len(shape) > 1 and size and bits.number(1):
            columns = size // shape[0]
            rows = [row for row in range(shape[0]) if bits.number(1)]
            some = [column for column in range(columns) if bits.number(1)]
            inside = [row * columns + column for row in rows for column in some]
        places += [start + place for place in inside]
        start += size
    signs = [bits.number(1) for _ in range(count)]
    gs = [bits.number(4) for _ in range(-(-count // 32))]
    gaps = [bits.number(gs[i // 32]) for i in range(count)]
    magnitudes = [bits.number(m) if m != 7 else 0 for _ in range(count)]
    gaps = [gap + (bits.unary() << gs[i // 32]) for i, gap in enumerate(gaps)]
    if m != 7:
        magnitudes = [magnitude + (bits.unary() << m) for magnitude in magnitudes]
    assert len(bits.rest()) < 8 and "1" not in bits.rest()
    number = -1
    for sign, gap, magnitude in zip(signs, gaps, magnitudes, strict=True):
        number += gap + 1
        value = base + np.float32(magnitude) * step
        values[places[number]] = -value if sign else value
    return values


@given(tensors_strategy, shares, widths)
def test_any_tensors(tensors: Tensors, share: float, bits: int) -> None:
    codec = TopK(share, bits)
    body, shapes = codec.encode(tensors, rng()), shapes_of(tensors)
    again = there_and_back(codec, tensors)
    values, came = flat(tensors), flat(again)
    assert came.astype(np.float32).tobytes() == plain_decode(body, shapes).tobytes()
    kept = largest(values, share)
    assert set(np.flatnonzero(came)) <= set(kept)
    if kept:
        sizes = [abs(Fraction(values[i])) for i in kept]
        # Base and step have 8 bits of precision, or are multiples of 2^-133.
        step = (max(sizes) - min(sizes)) / 2 ** (bits - 1)
        bound = step * Fraction(1.01) + max(sizes) / 100 + Fraction(2) ** -132
        for i in kept:
            assert abs(Fraction(came[i]) - Fraction(values[i])) <= bound
            assert came[i] * values[i] >= 0
    assert codec.encode(tensors, rng(7)) == body


@pytest.mark.parametrize(("share", "bits"), [(0.05, 8), (0.05, 4), (0.1, 1), (0.02, 3), (1.0, 8)])
def test_a_change_of_weights(share: float, bits: int) -> None:
    tensors = laplace(1, (64, 32, 1, 4), (64,), (128, 64))
    codec, values = TopK(share, bits), flat(tensors)
    body, came = codec.encode(tensors, rng()), flat(there_and_back(codec, tensors))
    np.testing.assert_array_equal(came, plain_decode(body, shapes_of(tensors)))
    kept = largest(values, share)
    assert np.flatnonzero(came).tolist() == kept
    sizes = np.abs(values[kept])
    step = np.ptp(sizes) / 2 ** (bits - 1)
    assert np.abs(came - values)[kept].max() <= step * 1.01 + sizes.max() / 2**8
    # The sum of what is kept is right but for the base's rounding.
    assert abs(np.abs(came[kept]).mean() - sizes.mean()) <= sizes.mean() / 2**8
    assert abs(len(body) / codec.size_bytes(shapes_of(tensors)) - 1) < 0.25


def test_what_a_kept_value_takes() -> None:
    """Place, sign and magnitude, where no row or column is quieter than others."""
    tensors = laplace(2, (128, 64), (128,), (6, 128))
    kept = math.ceil(0.05 * len(flat(tensors)))
    assert len(TopK(0.05).encode(tensors, rng())) < 1.65 * kept
    assert len(TopK(0.05, 4).encode(tensors, rng())) < 1.15 * kept


def test_silent_units_make_it_shorter() -> None:
    tensors = laplace(3, (128, 64))
    silent = {name: value.copy() for name, value in tensors.items()}
    silent["0.weight"][::2] *= 0.01
    silent["0.weight"][:, 1::2] *= 0.01
    codec = TopK(0.05, 4)
    assert len(codec.encode(silent, rng())) < 0.85 * len(codec.encode(tensors, rng()))


def test_of_equal_ones_the_first_are_kept() -> None:
    value = np.array([0.5, -1, 1, -1, 1, 2], np.float32)
    came = there_and_back(TopK(0.5), {"w": value})["w"]
    assert np.flatnonzero(came).tolist() == [1, 2, 5]
    came = there_and_back(TopK(0.1, 1), {"w": np.ones(40, np.float32)})["w"]
    np.testing.assert_array_equal(came, [1, 1, 1, 1, *[0] * 36])


def test_one_share_for_all_tensors_together() -> None:
    tensors = {"a": np.ones((10, 10), np.float32), "b": np.full(10, 0.9, np.float32)}
    came = there_and_back(TopK(0.5), tensors)
    assert np.count_nonzero(came["a"]) == 55
    assert not came["b"].any()


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"w": np.zeros((0, 3), np.float32)},
        {"w": np.zeros((4, 3), np.float32), "b": np.array(0, np.float32)},
    ],
)
def test_nothing_takes_one_byte(tensors: Tensors) -> None:
    assert TopK(0.1).encode(tensors, rng()) == b"\x00"
    assert not any(value.any() for value in there_and_back(TopK(0.1), tensors).values())


def test_a_body_by_hand() -> None:
    """Kept: place 1, -1.0, and place 4, 2.0. Two magnitudes: below and above the middle."""
    tensors = {"w": np.array([[0, -1, 0], [0, 2, 0]], np.float32)}
    body = TopK(0.2, 2).encode(tensors, rng())
    # n 2; M 0; base 1.25 (right on average); step 0.5. All places count: 0. Signs 1 0. G 0.
    # Gaps 1 and 2 in unary: 01 001. Magnitudes 0 and 1: 1 01.
    bits = "0" + "10" + "0000" + "01001" + "101"
    packed = int(bits.ljust(16, "0"), 2).to_bytes(2, "big")
    assert body == bytes([2, 0, 0x3F, 0xA0, 0x3F, 0]) + packed
    np.testing.assert_array_equal(plain_decode(body, {"w": (2, 3)}), [0, -1.25, 0, 0, 1.75, 0])


def test_the_largest_and_the_smallest_numbers() -> None:
    value = np.array([LARGEST, -LARGEST, 1e30, 2.0**-149, 0], np.float32)
    for bits in range(1, 9):
        for share in (0.2, 0.6, 1.0):
            came = there_and_back(TopK(share, bits), {"w": value})["w"]
            assert np.isfinite(came).all()
    came = there_and_back(TopK(0.4), {"w": value})["w"]
    np.testing.assert_allclose(came, [LARGEST, -LARGEST, 0, 0, 0], rtol=0.01)


def test_what_is_lost_comes_with_the_next_ones() -> None:
    """Error feedback: the sum of what was sent follows the sum of the changes."""
    change, codec = laplace(4, (30, 20)), TopK(0.1, 4)
    residual = np.zeros(600)
    sent = np.zeros(600)
    for _ in range(60):
        want = {"0.weight": (flat(change) + residual).astype(np.float32).reshape(30, 20)}
        came = flat(there_and_back(codec, want))
        residual, sent = flat(want) - came, sent + came
    assert np.linalg.norm(sent / 60 - flat(change)) < 0.2 * np.linalg.norm(flat(change))


def test_what_is_not_finite_is_not_coded() -> None:
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(WireError, match="'w'") as caught:
            TopK(0.1).encode({"w": np.array([1, value], np.float32)}, rng())
        assert caught.value.reason == "not-finite"


@pytest.mark.parametrize("bits", [8, 1])
def test_every_truncation_and_what_follows_is_refused(bits: int) -> None:
    tensors = laplace(5, (20, 10), (10,))
    shapes = shapes_of(tensors)
    body = TopK(0.2, bits).encode(tensors, rng())
    for other in [*(body[:size] for size in range(len(body))), body + b"\x00", body + bytes(500)]:
        with pytest.raises(WireError) as caught:
            TopK(1.0).decode(other, shapes)
        assert caught.value.reason == "bad-body"


def test_five_thousand_mutants() -> None:
    """A mutant is refused, or the plain decoder makes the same of it."""
    source = random.Random(6)
    survivors = 0
    cases = []
    for bits, tensors in ((4, laplace(6, (9, 4), (5,), (3, 2))), (1, laplace(7, (8, 8)))):
        tensors["0.weight"][:, 1:3] = 0
        cases.append((TopK(0.3, bits).encode(tensors, rng()), shapes_of(tensors)))
    for _ in range(5000):
        body, shapes = source.choice(cases)
        mutant = bytearray(body)
        for _ in range(source.choice((1, 1, 2, 4))):
            i = source.randrange(len(mutant))
            mutant[i : i + source.choice((0, 1, 1, 1))] = source.randbytes(source.choice((0, 1, 1)))
        try:
            came = TopK(1.0).decode(bytes(mutant), shapes)
        except WireError:
            continue
        survivors += 1
        if len(mutant) > 0 and np.isfinite(flat(came)).all():
            assert flat(came).astype(np.float32).tobytes() == plain_mutant(bytes(mutant), shapes)
    assert 200 < survivors < 4000


def plain_mutant(body: bytes, shapes: Shapes) -> bytes:
    """Like `plain_decode`; the last byte's padding may be anything, so it is made zero."""
    for cleared in range(8):
        cut = bytes([*body[:-1], body[-1] >> cleared << cleared])
        try:
            return plain_decode(cut, shapes).tobytes()
        except AssertionError:
            continue
    raise AssertionError("only the fast decoder reads this")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "does not end"),
        (b"\xff\xff\xff\xff\xff\x01", "does not end"),
        (b"\x0b\x07\x3f\x80\xff", "11 of 10 values"),
        (b"\x00\x00", "0 of 10 values"),
        (b"\x01", "too few"),
        (b"\x01\x08\x3f\x80\xff\xff\xff", "M is 8"),
        (b"\x01\x07\x3f\x80", "too few"),
        (b"\x01\x07\x3f\x80\x00", "the codes"),
        # One value, G 15 (bits 1-4), lower bits 10: place 10 of 10.
        (b"\x01\x07\x3f\x80" + (0b0_1111_000000000001010_1_000).to_bytes(3, "big"), "beyond"),
        # M 6, lower bits 0, unary part 2: a magnitude of 128.
        (b"\x01\x06\x3f\x80\x3f\x80" + (0b0_0000_000000_1_001_0).to_bytes(2, "big"), "above 127"),
        (b"\x01\x07\x3f\x80" + bytes(100), "104 bytes for 10 values"),
    ],
)
def test_bad_bodies(body: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        TopK(1.0).decode(body, {"w": (10,)})


def test_hand_made_bodies_are_good() -> None:
    """So the ones above are refused for the named reason: the same with the largest allowed."""
    last = b"\x01\x07\x3f\x80" + (0b0_1111_000000000001001_1_000).to_bytes(3, "big")
    assert TopK(1.0).decode(last, {"w": (10,)})["w"].tolist() == [*[0] * 9, 1]
    most = b"\x01\x06\x3f\x80\x3f\x80" + (0b0_0000_111111_1_01_00).to_bytes(2, "big")
    assert TopK(1.0).decode(most, {"w": (10,)})["w"].tolist() == [128, *[0] * 9]


def test_memory_is_bounded_by_the_values_not_by_the_body() -> None:
    shapes = {"w": (1000, 100)}
    head = b"\xa0\x8d\x06\x00\x3f\x80\x3f\x80"
    for size, most_bytes in ((4 << 20, 1 << 20), (199_000, 12 << 20)):
        for fill in (b"\x00", b"\xff", b"\x55"):
            body = head + fill * size
            reason, peak_bytes = refused(lambda body=body: TopK(1.0).decode(body, shapes))
            assert reason == "bad-body"
            assert peak_bytes < most_bytes


def test_arguments() -> None:
    tensors = laplace(8, (20, 20))
    for argument, codec in (
        ("0.05", TopK(0.05, 8)),
        ("0.05,4", TopK(0.05, 4)),
        ("1, 1", TopK(1.0, 1)),
    ):
        assert make_topk(argument).encode(tensors, rng()) == codec.encode(tensors, rng())


@pytest.mark.parametrize(
    "argument", ["", "0", "-0.1", "1.01", "nan", "five", "0.1,0", "0.1,9", "0.1,x", "0.1,4,4"]
)
def test_bad_arguments(argument: str) -> None:
    with pytest.raises(ConfigError, match="topk takes a share"):
        make_topk(argument)
