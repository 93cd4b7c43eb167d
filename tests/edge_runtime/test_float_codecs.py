"""`raw` loses nothing, `fp16` little; their layout is as documented."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given

from edge_runtime.codecs.fp16 import Fp16
from edge_runtime.codecs.raw import Raw
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

RAW, FP16 = Raw(), Fp16()


@given(tensors_strategy)
def test_raw_loses_not_one_bit(tensors: Tensors) -> None:
    again = there_and_back(RAW, tensors)
    assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)
    assert len(RAW.encode(tensors, rng())) == RAW.size_bytes(shapes_of(tensors))


def test_raw_by_hand() -> None:
    tensors = {"b": np.array([-2.0], np.float32), "a": np.array([1.0], np.float32)}
    words = [struct.unpack(">I", struct.pack(">f", value))[0] for value in (1.0, -2.0)]
    turned = [struct.pack(">I", (word << 1 | word >> 31) & 0xFFFFFFFF) for word in words]
    planes = bytes(turned[i][byte] for byte in range(4) for i in range(2))
    assert RAW.encode(tensors, rng()) == planes == bytes([127, 128, 0, 0, 0, 0, 0, 1])


@given(tensors_strategy)
def test_fp16_keeps_eleven_bits(tensors: Tensors) -> None:
    again = there_and_back(FP16, tensors)
    values, came = flat(tensors), flat(again)
    largest = np.abs(values).max(initial=0)
    # Half a unit in the last place; below 2^-29 of the largest, what a denormal half loses.
    bound = np.maximum(np.abs(values) * 2.0**-11, largest * 2.0**-38)
    assert (np.abs(came - values) <= np.maximum(bound, 2.0**-149)).all()
    assert len(FP16.encode(tensors, rng())) == FP16.size_bytes(shapes_of(tensors))


def test_fp16_is_exact_for_what_fits() -> None:
    tensors = {"w": np.array([0.5, -3.0, 2048, 0, 1.0 / 1024], np.float32)}
    np.testing.assert_array_equal(there_and_back(FP16, tensors)["w"], tensors["w"])


def test_fp16_of_a_small_change_is_as_good_as_of_a_large_one() -> None:
    change = laplace(1, (50, 20))
    small = {name: value * np.float32(2**-40) for name, value in change.items()}
    body = FP16.encode(change, rng())
    assert FP16.encode(small, rng())[1:] == body[1:]


def test_fp16_of_the_largest_and_the_smallest() -> None:
    for value in (LARGEST, -LARGEST, 1e-45, 2.0**-126):
        came = there_and_back(FP16, {"w": np.array([value], np.float32)})["w"][0]
        assert abs(float(came) - value) <= max(abs(value) * 2**-11, 2**-149)


@pytest.mark.parametrize("codec", [RAW, FP16], ids=lambda codec: codec.name)
def test_every_other_length_is_refused(codec: Raw | Fp16) -> None:
    tensors = laplace(2, (3, 2), (4,))
    body = codec.encode(tensors, rng())
    for other in [*(body[:size] for size in range(len(body))), body + b"\x00"]:
        with pytest.raises(WireError, match="expected"):
            codec.decode(other, shapes_of(tensors))


def test_an_exponent_beyond_any_is_refused() -> None:
    for exponent in (-128, -127, 127):
        body = exponent.to_bytes(1, "big", signed=True) + bytes(2)
        with pytest.raises(WireError, match="exponent"):
            FP16.decode(body, {"w": (1,)})


@pytest.mark.parametrize("codec", [RAW, FP16], ids=lambda codec: codec.name)
def test_what_is_not_finite_is_not_coded(codec: Raw | Fp16) -> None:
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(WireError, match="'w'") as caught:
            codec.encode({"b": np.zeros(3, np.float32), "w": np.full(2, value, np.float32)}, rng())
        assert caught.value.reason == "not-finite"
