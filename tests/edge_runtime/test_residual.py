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


def value(residuals: Residuals, kind: str, number: int) -> float:
    found = residuals.of(kind, number)
    return float(found["w"][0]) if found else 0.0


def in_session(path: Path | None = None, capacity_bytes: int = 1 << 20) -> Residuals:
    residuals = Residuals(path, capacity_bytes)
    residuals.enter("s")
    return residuals


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "device-0.residual"


def test_a_residual_counts_once_the_update_was_received() -> None:
    residuals = in_session()
    assert residuals.of("backbone", 1) == {}
    residuals.propose(1, {"backbone": lost(1)})
    assert value(residuals, "backbone", 2) == 0
    residuals.received()
    assert value(residuals, "backbone", 2) == 1
    residuals.propose(2, {"backbone": lost(2)})
    assert value(residuals, "backbone", 3) == 1  # round 2 was late: all that it did is lost
    residuals.propose(3, {"backbone": lost(3)})
    residuals.received()
    assert value(residuals, "backbone", 4) == 3


def test_a_round_that_is_repeated_starts_where_it_did() -> None:
    residuals = in_session()
    for number in (1, 2, 3):
        residuals.propose(number, {"backbone": lost(number)})
        residuals.received()
    assert value(residuals, "backbone", 3) == 2
    residuals.propose(3, {"backbone": lost(30)})
    residuals.received()
    assert value(residuals, "backbone", 3) == 2 and value(residuals, "backbone", 4) == 30


def test_an_experts_residual_waits_until_it_returns() -> None:
    residuals = in_session()
    for number, kinds in ((1, ["expert:1", "gate:1"]), (2, ["expert:2"]), (3, ["expert:2"])):
        residuals.propose(number, {kind: lost(number) for kind in kinds})
        residuals.received()
    assert value(residuals, "expert:1", 9) == value(residuals, "gate:1", 9) == 1
    assert value(residuals, "expert:2", 9) == 3 and value(residuals, "expert:3", 9) == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),  # is the round repeated?
            st.sets(st.sampled_from("abc")),
            st.booleans(),  # is the update received?
            st.booleans(),  # does the device start again?
        ),
        max_size=12,
    )
)
def test_it_is_as_if_nothing_had_been_repeated_or_restarted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, set[str], bool, bool]]
) -> None:
    """Against all that was ever received: of each kind and round, the last one counts."""
    path = tmp_path_factory.mktemp("state") / "device.residual"
    residuals, history, number = in_session(path), dict[str, dict[int, float]](), 0
    for step, (repeated, kinds, is_received, restarted) in enumerate(steps, 1):
        number = max(1, number + 1 - repeated)
        residuals.propose(number, {kind: lost(step) for kind in kinds})
        if is_received:
            residuals.received()
            for kind in kinds:
                history.setdefault(kind, {})[number] = step
        if restarted:
            residuals = in_session(path)
        for kind in "abc":
            known = history.get(kind, {})
            for asked in (number, number + 1):
                earlier = [known[n] for n in sorted(known) if n < asked]
                assert value(residuals, kind, asked) == (earlier[-1] if earlier else 0)


def test_another_session_begins_with_nothing(path: Path) -> None:
    residuals = in_session(path)
    residuals.propose(1, {"backbone": lost(1)})
    residuals.received()
    residuals.propose(2, {"backbone": lost(2)})
    residuals.enter("t")
    assert residuals.of("backbone", 9) == {}
    residuals.received()
    assert residuals.of("backbone", 9) == {}
    residuals.enter("s")
    assert value(residuals, "backbone", 9) == 1  # the file still is of that session


@given(st.integers(0, 400), st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=12))
def test_there_are_never_more_bytes_than_allowed(
    capacity_bytes: int, rounds: list[set[int]]
) -> None:
    residuals = in_session(capacity_bytes=capacity_bytes)
    for number, kinds in enumerate(rounds, 1):
        residuals.propose(number, {f"expert:{kind}": lost(number, 4 + kind) for kind in kinds})
        residuals.received()
        assert residuals.used_bytes <= capacity_bytes


def test_what_was_trained_the_longest_time_ago_leaves() -> None:
    residuals = in_session(capacity_bytes=3 * 12)
    for number, kind in enumerate(["a", "b", "c", "d"], 1):
        residuals.propose(number, {kind: lost(number)})
        residuals.received()
    assert [value(residuals, kind, 9) for kind in "abcd"] == [0, 2, 3, 4]
    residuals.propose(5, {"d": lost(5)})
    residuals.received()  # with the step back it counts twice
    assert [value(residuals, kind, 9) for kind in "abcd"] == [0, 0, 3, 5]


@pytest.mark.parametrize("place", [0, 20, 60, -1])
def test_a_damaged_file_begins_anew(
    path: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    residuals = in_session(path)
    residuals.propose(1, {"backbone": lost(1)})
    residuals.received()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    again = in_session(path)
    assert again.of("backbone", 2) == {} and "residuals in" in caplog.text
    again.propose(1, {"backbone": lost(7)})
    again.received()
    assert value(in_session(path), "backbone", 2) == 7
