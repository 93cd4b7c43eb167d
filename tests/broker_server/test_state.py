"""What the rounds carry forward, to bytes and back."""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.capacity import Cap
from broker_server.publishing.history import Frame, Step
from broker_server.state import State
from edge_runtime.errors import DataError
from edge_runtime.parts import ModelParts, merge
from edge_runtime.protocol.blob import digest
from tests.broker_server.sample_model import random_model

# Twelve experts: by name, experts.10 comes before experts.2.
STATE = State(
    session="abc",
    round=7,
    model=random_model(0, experts=12),
    quality={"device-1": np.array([0.1, 1 / 3, 1.0]), "device-0": np.array([1e-300, 0.5, 0.0])},
    trials={"device-1": np.array([3, 0, 2**40]), "device-0": np.array([0, 1, 0])},
    load=np.array([5, 0, 2**60]),
    routed=np.array([2**61, 0, 7]),
    shares={"device-1": np.array([0.1, np.nan, 1.9]), "device-0": np.array([np.nan] * 3)},
    credit={"device-1": -(2.0**-32), "device-0": 0.5},
    caps={"device-1": Cap(1, 2**40, 2**33, "native")},
)
DATA = STATE.to_bytes()


def test_it_comes_back_bit_for_bit() -> None:
    back = State.from_bytes(DATA)
    assert (back.session, back.round) == ("abc", 7)
    assert back.caps == STATE.caps
    assert back.load.dtype == np.int64 and back.load.tolist() == STATE.load.tolist()
    assert back.routed.dtype == np.int64 and back.routed.tolist() == STATE.routed.tolist()
    assert back.credit == STATE.credit
    for rows, once in ((back.quality, STATE.quality), (back.shares, STATE.shares)):
        assert rows.keys() == once.keys()
        for client, row in once.items():
            assert np.array_equal(rows[client], row, equal_nan=True) and rows[client].dtype == float
    assert {client: row.tolist() for client, row in back.trials.items()} == {
        "device-1": [3, 0, 2**40],
        "device-0": [0, 1, 0],
    }
    before, after = merge(STATE.model), merge(back.model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype and np.array_equal(after[name], value), name


def assert_same(left: ModelParts, right: ModelParts) -> None:
    one, other = merge(left), merge(right)
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_what_was_published_comes_back() -> None:
    other = random_model(1, experts=12)
    back = State.from_bytes(dataclasses.replace(STATE, published=other).to_bytes())
    assert back.published is not None
    assert_same(back.published, other)
    assert_same(back.model, STATE.model)
    assert State.from_bytes(DATA).published is None


def test_the_ways_to_what_was_published_come_back() -> None:
    ways = {
        "gate": (
            Step(b"", Frame.of("gate", b"whole", ["fp16", "zlib"])),
            Step(b"d" * 16, Frame.of("gate", b"a delta", ["int4"])),
        ),
        "expert:11": (Step(b"e" * 16, Frame.of("expert:11", bytes(1000), [])),),
    }
    state = dataclasses.replace(STATE, ways=ways, unsent=("gate", "expert:3"))
    back = State.from_bytes(state.to_bytes())
    assert back.ways == ways and back.unsent == ("gate", "expert:3")
    assert back.to_bytes() == state.to_bytes()
    assert State.from_bytes(DATA).ways == {} and State.from_bytes(DATA).unsent == ()


def test_a_published_model_that_is_the_model_is_stored_once() -> None:
    same = random_model(0, experts=12)
    data = dataclasses.replace(STATE, published=same).to_bytes()
    assert len(data) < len(DATA) + 10
    back = State.from_bytes(data)
    assert back.published is back.model
    assert State.from_bytes(back.to_bytes()).to_bytes() == data


def test_the_way_there_and_back_settles() -> None:
    assert State.from_bytes(DATA).to_bytes() == DATA


def test_a_run_that_has_not_begun_comes_back() -> None:
    fresh = State("s", 0, random_model(1), {}, {}, np.zeros(4, np.int64), np.zeros(4, np.int64))
    back = State.from_bytes(fresh.to_bytes())
    assert back.round == 0 and back.quality == {} and back.load.dtype == np.int64


@settings(max_examples=60)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    damaged = bytearray(DATA)
    damaged[place] ^= change
    with pytest.raises(DataError, match="damaged"):
        State.from_bytes(bytes(damaged))


@settings(max_examples=30)
@given(st.integers(0, len(DATA) - 1))
def test_any_missing_end_is_noticed(length: int) -> None:
    with pytest.raises(DataError, match="damaged"):
        State.from_bytes(DATA[:length])


@given(st.binary(max_size=100))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        State.from_bytes(data)


def test_another_version_is_named() -> None:
    packed = msgpack.packb({"version": 1})
    with pytest.raises(DataError, match="version 1, this release reads 6"):
        State.from_bytes(digest(packed) + packed)


def test_whose_updates_counted_comes_back() -> None:
    state = dataclasses.replace(STATE, counted={"device-0": 3, "device-1": 1})
    assert State.from_bytes(state.to_bytes()).counted == state.counted
