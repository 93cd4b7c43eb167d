"""Residuals: which rounds they count for, how many there may be, and that they survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.residual import Lost, Residuals


def lost(value: float, size: int = 3) -> Lost:
    return {"w": np.full(size, value, np.float32)}


def value(residuals: Residuals, kind: str) -> float:
    found = residuals.of(kind)
    return float(found["w"][0]) if found else 0.0


def in_session(path: Path | None = None, capacity_bytes: int = 1 << 20) -> Residuals:
    residuals = Residuals(path, capacity_bytes)
    residuals.enter("s")
    return residuals


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "device-0.residual"


def test_a_residual_counts_once_its_update_is_in_the_model() -> None:
    residuals = in_session()
    assert residuals.of("backbone") == {}
    residuals.propose(1, {"backbone": lost(1)})
    assert value(residuals, "backbone") == 0
    residuals.settle(1)
    assert value(residuals, "backbone") == 1
    residuals.propose(2, {"backbone": lost(2)})
    residuals.settle(1)
    assert value(residuals, "backbone") == 1  # round 2 was late: all that it did is lost
    residuals.settle(2)
    assert value(residuals, "backbone") == 1
    residuals.propose(3, {"backbone": lost(3)})
    residuals.settle(3)
    assert value(residuals, "backbone") == 3


def test_an_attempt_that_was_thrown_away_leaves_nothing() -> None:
    """Its round went on without this device."""
    residuals = in_session()
    residuals.propose(4, {"backbone": lost(4)})
    residuals.settle(0)
    residuals.propose(5, {"backbone": lost(5)})
    assert residuals.of("backbone") == {}
    residuals.settle(5)
    assert value(residuals, "backbone") == 5


def test_an_older_checkpoint_takes_one_step_back() -> None:
    residuals = in_session()
    for number in (1, 2, 3):
        residuals.propose(number, {"backbone": lost(number)})
        residuals.settle(number)
    residuals.settle(2)
    assert value(residuals, "backbone") == 2
    residuals.propose(3, {"backbone": lost(30)})
    residuals.settle(3)
    assert value(residuals, "backbone") == 30


def test_an_experts_residual_waits_until_it_returns() -> None:
    residuals = in_session()
    for number, kinds in ((1, ["expert:1", "gate:1"]), (2, ["expert:2"]), (3, ["expert:2"])):
        residuals.propose(number, {kind: lost(number) for kind in kinds})
        residuals.settle(number)
    assert value(residuals, "expert:1") == value(residuals, "gate:1") == 1
    assert value(residuals, "expert:2") == 3 and value(residuals, "expert:3") == 0


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from("abc")),
            st.booleans(),  # does the update become part of the model?
            st.booleans(),  # does the device start again before it hears of it?
            st.booleans(),  # and after that?
        ),
        max_size=12,
    )
)
def test_it_is_as_if_only_what_counted_had_been_done(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[set[str], bool, bool, bool]]
) -> None:
    """Of each kind, what the last update of it that counted has lost."""
    path = tmp_path_factory.mktemp("state") / "device.residual"
    residuals, expected, counted = in_session(path), dict.fromkeys("abc", 0), 0
    for number, (kinds, counts, early, late) in enumerate(steps, 1):
        residuals.propose(number, {kind: lost(number) for kind in kinds})
        if early:
            residuals = in_session(path)
        if counts:
            counted = number
            expected.update(dict.fromkeys(kinds, number))
        residuals.settle(counted)
        if late:
            residuals = in_session(path)
            residuals.settle(counted)
        assert {kind: value(residuals, kind) for kind in "abc"} == expected


def test_another_session_begins_with_nothing(path: Path) -> None:
    residuals = in_session(path)
    residuals.propose(1, {"backbone": lost(1)})
    residuals.enter("t")
    residuals.settle(1)
    assert residuals.of("backbone") == {}
    residuals.enter("s")
    residuals.settle(1)
    assert value(residuals, "backbone") == 1  # the file still is of that session


@given(st.integers(0, 400), st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=12))
def test_there_are_never_more_bytes_than_allowed(
    capacity_bytes: int, rounds: list[set[int]]
) -> None:
    residuals = in_session(capacity_bytes=capacity_bytes)
    for number, kinds in enumerate(rounds, 1):
        residuals.propose(number, {f"expert:{kind}": lost(number, 4 + kind) for kind in kinds})
        residuals.settle(number)
        assert residuals.used_bytes <= capacity_bytes


def test_what_was_trained_the_longest_time_ago_leaves() -> None:
    residuals = in_session(capacity_bytes=3 * 12)
    for number, kind in enumerate(["a", "b", "c", "d"], 1):
        residuals.propose(number, {kind: lost(number)})
        residuals.settle(number)
    assert [value(residuals, kind) for kind in "abcd"] == [0, 2, 3, 4]
    residuals.propose(5, {"d": lost(5)})
    residuals.settle(5)  # with the step back it counts twice
    assert [value(residuals, kind) for kind in "abcd"] == [0, 0, 3, 5]


@pytest.mark.parametrize("place", [0, 20, 60, -1])
def test_a_damaged_file_begins_anew(
    path: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    residuals = in_session(path)
    residuals.propose(1, {"backbone": lost(1)})
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    again = in_session(path)
    again.settle(1)
    assert again.of("backbone") == {} and "residuals in" in caplog.text
    again.propose(1, {"backbone": lost(7)})
    after = in_session(path)
    after.settle(1)
    assert value(after, "backbone") == 7
