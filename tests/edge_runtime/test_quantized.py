"""`int8` and `int4`: right on average, and never off by a whole step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.codecs import bfloat
from edge_runtime.codecs.quantized import Quantized
from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Tensors
from tests.edge_runtime.coded import (
    LARGEST,
    flat,
    laplace,
    rng,
    shapes_of,
    tensors_strategy,
    there_and_back,
)

INT8, INT4 = Quantized(8), Quantized(4)
MOST = {"int8": 127, "int4": 7}
both = pytest.mark.parametrize("codec", [INT8, INT4], ids=lambda codec: codec.name)


def rows(value: np.ndarray) -> np.ndarray:
    return value.reshape(value.shape[0], -1) if value.ndim > 1 else value.reshape(1, -1)


@both
@given(tensors=tensors_strategy, seed=st.integers(0, 99))
def test_off_by_less_than_a_step(codec: Quantized, tensors: Tensors, seed: int) -> None:
    again = there_and_back(codec, tensors, seed)
    for name, value in tensors.items():
        if value.size:
            row, came = rows(value.astype(np.float64)), rows(again[name].astype(np.float64))
            largest = np.abs(row).max(axis=1, keepdims=True)
            # A step has 8 bits of precision, or is a multiple of 2^-133; it is rounded up.
            exact = largest / MOST[codec.name]
            step = np.maximum(exact * (1 + 2**-7), exact + 2.0**-133)
            assert (np.abs(came - row) <= step * (1 + 1e-6)).all()
            assert (came[row == 0] == 0).all()
    body = codec.encode(tensors, rng(seed))
    assert len(body) == codec.size_bytes(shapes_of(tensors))


@both
def test_right_on_average(codec: Quantized) -> None:
    tensors = laplace(3, (4, 25))
    source = rng(5)
    shapes = shapes_of(tensors)
    times = 4000
    mean = (
        sum(flat(codec.decode(codec.encode(tensors, source), shapes)) for _ in range(times)) / times
    )
    step = np.repeat(np.abs(flat(tensors)).reshape(4, 25).max(axis=1), 25) / MOST[codec.name]
    # An error's standard deviation is at most half a step; the mean's is 1 / sqrt(times) of that.
    off = np.abs(mean - flat(tensors)) / (0.5 * step / np.sqrt(times))
    assert off.max() < 4.5
    assert off.mean() < 1.0
    # To the nearest, a value would be off by the same each time: a quarter of a step on average.
    nearest = np.round(flat(tensors) / step) * step
    assert np.abs(nearest - flat(tensors)).mean() > 5 * np.abs(mean - flat(tensors)).mean()


@both
def test_each_row_has_its_own_step(codec: Quantized) -> None:
    value = np.array([[1e-6, -2e-6], [1e3, 2e3], [0, 0]], np.float32)
    came = there_and_back(codec, {"w": value})["w"]
    step = np.abs(value).max(axis=1) / MOST[codec.name] * (1 + 2**-7)
    assert (np.abs(came - value).max(axis=1) <= step).all()
    assert (np.abs(came[0]) < 1e-5).all()


@both
def test_the_rng_decides(codec: Quantized) -> None:
    tensors = laplace(4, (10, 10))
    assert codec.encode(tensors, rng(1)) == codec.encode(tensors, rng(1))
    assert codec.encode(tensors, rng(1)) != codec.encode(tensors, rng(2))


def test_int8_by_hand() -> None:
    """Multiples of a step that 16 bits hold are not rounded at all."""
    value = np.array([[127, -64, 0], [0.5, 0.25, -63.5]], np.float32)
    body = INT8.encode({"w": value}, rng())
    steps = [0x3F80, 0x3F00]  # 1.0 and 0.5
    planes = bytes([step >> 8 for step in steps] + [step & 255 for step in steps])
    assert body == planes + np.array([127, -64, 0, 1, 0, -127], np.int8).tobytes()[:4] + body[8:]
    assert np.frombuffer(body, np.int8)[-1] == -127


def test_int4_by_hand() -> None:
    body = INT4.encode({"w": np.array([7, -7, 3, 0, -1], np.float32)}, rng())
    assert body == bytes([0x3F, 0x80, 0x79, 0x30, 0xF0])


def test_the_largest_numbers_stay_finite() -> None:
    value = np.array([LARGEST, -LARGEST, 0.999 * LARGEST, 1.0], np.float32)
    for seed in range(20):
        for codec in (INT8, INT4):
            came = there_and_back(codec, {"w": value}, seed)["w"]
            assert np.isfinite(came).all()
            assert float(came[0]) > 0.99 * LARGEST


@both
def test_every_other_length_is_refused(codec: Quantized) -> None:
    tensors = laplace(5, (3, 3), (4,), (0, 2))
    body = codec.encode(tensors, rng())
    for other in [*(body[:size] for size in range(len(body))), body + b"\x00"]:
        with pytest.raises(WireError, match="expected"):
            codec.decode(other, shapes_of(tensors))


@both
def test_what_is_not_finite_is_not_coded(codec: Quantized) -> None:
    with pytest.raises(WireError) as caught:
        codec.encode({"w": np.array([1, np.nan], np.float32)}, rng())
    assert caught.value.reason == "not-finite"


@given(st.floats(0, LARGEST))
def test_scales_in_sixteen_bits(value: float) -> None:
    above, below, near = (
        float(bfloat.widen(bits))
        for bits in (bfloat.up(value), bfloat.down(value), bfloat.nearest(value))
    )
    assert below <= value
    assert below <= near <= max(above, below)
    assert above >= value or above == float(bfloat.widen(0x7F7F))
    assert above - below <= max(value / 128, 2.0**-133)
    assert abs(near - value) <= max(value / 256, 2.0**-134) or above < value
