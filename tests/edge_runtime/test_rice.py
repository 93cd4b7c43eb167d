"""Rice codes against a plain coder that goes bit by bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.codecs import rice

_counts = st.integers(1, 100)
_values = _counts.flatmap(
    lambda n: hnp.arrays(np.int64, n, elements=st.one_of(st.integers(0, 9), st.integers(0, 3000)))
)


def plain_unary(values: list[int]) -> list[int]:
    return [bit for value in values for bit in [0] * value + [1]]


def plain_lower(values: list[int], ks: list[int]) -> list[int]:
    return [
        int(bit)
        for value, k in zip(values, ks, strict=True)
        if k
        for bit in format(value % (1 << k), f"0{k}b")
    ]


@given(_values, st.data())
def test_lower_bits(values: rice.Values, data: st.DataObject) -> None:
    ks = data.draw(hnp.arrays(np.int64, len(values), elements=st.integers(0, 12)))
    bits = rice.lower_bits(values, ks)
    assert bits.tolist() == plain_lower(values.tolist(), ks.tolist())
    np.testing.assert_array_equal(rice.from_lower_bits(bits, ks), values & ((1 << ks) - 1))


@given(_values, st.integers(0, 20))
def test_unary_bits(values: rice.Values, padding: int) -> None:
    bits = rice.unary_bits(values)
    assert bits.tolist() == plain_unary(values.tolist())
    again, rest = rice.from_unary_bits(np.append(bits, np.zeros(padding, np.uint8)))
    np.testing.assert_array_equal(again, values)
    assert rest == padding


def test_nothing() -> None:
    none = np.zeros(0, np.int64)
    assert len(rice.unary_bits(none)) == len(rice.lower_bits(none, none)) == 0
    assert len(rice.best_ks(none)) == rice.blocks(0) == 0
    values, rest = rice.from_unary_bits(np.zeros(5, np.uint8))
    assert (len(values), rest) == (0, 5)


def bits_of(values: list[int], k: int) -> int:
    return sum((value >> k) + 1 + k for value in values)


@given(_values)
def test_the_best_k_of_each_block(values: rice.Values) -> None:
    ks = rice.best_ks(values).tolist()
    assert len(ks) == rice.blocks(len(values))
    for block, k in enumerate(ks):
        part = values[block * rice.BLOCK : (block + 1) * rice.BLOCK].tolist()
        assert bits_of(part, k) == min(bits_of(part, other) for other in range(16))


@given(_values, st.integers(0, 9))
def test_the_best_k_of_all(values: rice.Values, most: int) -> None:
    plain = values.tolist()
    k = rice.best_k(values, most)
    assert bits_of(plain, k) == min(bits_of(plain, other) for other in range(most + 1))


def test_close_to_the_entropy_of_places() -> None:
    """Of 5 % at random, a place has 5.73 bits of entropy; Rice codes take 2 % more."""
    kept = np.flatnonzero(np.random.default_rng(1).random(200_000) < 0.05)
    gaps = np.diff(kept, prepend=-1) - 1
    ks = np.repeat(rice.best_ks(gaps), rice.BLOCK)[: len(gaps)]
    bits = len(rice.lower_bits(gaps, ks)) + len(rice.unary_bits(gaps >> ks))
    assert 5.7 < bits / len(kept) < 5.85
