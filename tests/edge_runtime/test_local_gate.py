"""The local gate: where a round starts, also when it is repeated, and after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.local_gate import LocalGate, Row


def row(value: float) -> Row:
    return np.full(3, value, np.float32)


def held(gate: LocalGate, number: int) -> dict[int, float]:
    return {expert: float(found[0]) for expert, found in gate.rows(number).items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "device-0.gate"


def test_a_round_starts_from_the_newest_earlier_rows() -> None:
    gate = LocalGate()
    gate.enter("s")
    gate.keep(1, {0: row(1), 1: row(1)})
    gate.keep(2, {1: row(2), 2: row(2)})
    assert held(gate, 3) == {0: 1, 1: 2, 2: 2}
    assert held(gate, 2) == {0: 1, 1: 1}
    assert held(gate, 1) == {}


def test_a_round_that_is_repeated_starts_where_it_did() -> None:
    gate = LocalGate()
    gate.enter("s")
    for number in (1, 2, 3):
        gate.keep(number, {0: row(number)})
    assert held(gate, 3) == {0: 2}
    gate.keep(3, {0: row(30)})
    assert held(gate, 3) == {0: 2} and held(gate, 4) == {0: 30}


def test_another_session_begins_with_nothing() -> None:
    gate = LocalGate()
    gate.enter("s")
    gate.keep(1, {0: row(1)})
    gate.enter("s")
    assert held(gate, 2) == {0: 1}
    gate.enter("t")
    assert held(gate, 2) == {}


def test_it_survives_a_restart(path: Path) -> None:
    gate = LocalGate(path)
    gate.enter("s")
    for number in range(1, 12):
        gate.keep(number, {number % 3: row(number)})
    after = LocalGate(path)
    after.enter("s")
    for number in (10, 11, 12):
        assert held(after, number) == held(gate, number) != {}
    stranger = LocalGate(path)
    stranger.enter("t")
    assert held(stranger, 12) == {}


@pytest.mark.parametrize(
    "damage", [b"", b"\x81", b"\xff" * 50, b"\x82\xa7session\xa1s\xa4rows\xc4\x01x"]
)
def test_a_damaged_file_begins_anew(path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    gate = LocalGate(path)
    gate.enter("s")
    assert held(gate, 5) == {}
    gate.keep(1, {0: row(1)})
    again = LocalGate(path)
    again.enter("s")
    assert held(again, 2) == {0: 1}


def test_what_is_kept_is_a_copy() -> None:
    gate = LocalGate()
    gate.enter("s")
    trained = row(1)
    gate.keep(1, {0: trained})
    trained += 1
    assert held(gate, 2) == {0: 1}
