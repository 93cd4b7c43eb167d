"""Rounds with scripted devices: who takes part, what each is given, and what is remembered."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_server import load
from broker_server.experiment import Experiment
from broker_server.publishing.holdings import frames_of
from broker_server.record import RoundRecord
from broker_server.state import State
from edge_runtime.errors import FleetError
from edge_runtime.protocol.ledger import EVERYONE
from edge_runtime.protocol.messages import Assign
from tests.broker_server.scripted_device import Device
from tests.broker_server.scripted_fleet import (
    EXPERTS,
    MODEL,
    SIZES,
    START,
    Fleet,
    K,
    experiment,
)

# --- participation ------------------------------------------------------------------------------

TWO = {"participation": {"count": 2}}


def test_two_of_four_take_part_in_fair_turns(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(**TWO))
    state = fleet.run(8)
    times = dict.fromkeys(SIZES, 0)
    for record in fleet.records:
        assert record.participants == record.answered == 2
        assert {device.client for device in record.devices} == set(SIZES)
        for client in record.clients:
            times[client.client] += 1
        assert max(times.values()) - min(times.values()) <= 1
    assert len(set(map(tuple, fleet.chosen()))) > 2  # not the same pairs for ever
    for name, device in fleet.devices.items():
        worked = {m.round for m in device.received if isinstance(m, Assign)}
        assert worked == {r for r, chosen in enumerate(fleet.chosen(), 1) if name in chosen}
        assert state.trials[name].sum() == K * len(worked)
    assert state.credit == dict.fromkeys(SIZES, 0.0)


def test_the_bounds_follow_who_takes_part(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(**TWO, assignment={"delta": 0.5}))
    fleet.run(5)
    history = np.zeros(EXPERTS)
    for problem, answer, names in zip(
        fleet.problems, fleet.assignments, fleet.chosen(), strict=True
    ):
        sizes = [SIZES[name] for name in names]
        share = (history.sum() + K * sum(sizes)) / EXPERTS
        slack = max(0.5 * share, sum(sizes) / 4)
        assert problem.samples.tolist() == sizes
        assert problem.lower == pytest.approx(np.maximum(0, share - slack - history))
        assert problem.upper == pytest.approx(np.maximum(0, share + slack - history))
        assert problem.places is not None
        assert problem.places.tolist() == [list(SIZES).index(name) for name in names]
        history += answer.X.T @ sizes
    assert fleet.records[-1].load == history.tolist()


@pytest.mark.parametrize(
    ("share", "expected"),
    [({"fraction": 0.5}, 2), ({"fraction": 0.51}, 3), ({"fraction": 0.01}, 1), ({"count": 9}, 4),
     ({"fraction": 0.25, "count": 3}, 3)],
    ids=str,
)  # fmt: skip
def test_how_many_take_part(tmp_path: Path, share: dict[str, Any], expected: int) -> None:
    fleet = Fleet(tmp_path, experiment(participation=share))
    fleet.run(1)
    assert fleet.records[0].participants == expected


def test_a_quorum_is_of_those_who_take_part(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(**TWO, round={"quorum": 1.0}))
    fleet.run(2)
    assert [record.answered for record in fleet.records] == [2, 2]
    for device in fleet.devices.values():
        device.delay_s = 1e6
    with pytest.raises(FleetError, match=r"0 of 2 devices answered in time, .* asks for 2"):
        fleet.run(3, dataclasses.replace(START, round=2))


def test_who_cannot_hold_an_expert_has_no_turn_and_is_owed_none(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(**TWO))
    fleet.say("a", memory_available_bytes=1)
    state = fleet.run(6)
    turns = Counter(name for chosen in fleet.chosen() for name in chosen)
    assert turns == {"b": 4, "c": 4, "d": 4} and "a" not in state.credit


def test_turns_go_on_after_a_checkpoint(tmp_path: Path) -> None:
    whole = Fleet(tmp_path / "whole", experiment(participation={"count": 3}))
    end = whole.run(7)
    before = Fleet(tmp_path / "before", experiment(participation={"count": 3}))
    state = before.run(2)
    assert set(state.credit.values()) == {-0.5, 0.5}
    after = Fleet(tmp_path / "after", experiment(participation={"count": 3}))
    assert after.run(7, State.from_bytes(state.to_bytes())).credit == end.credit
    assert before.chosen() + after.chosen() == whole.chosen()
    # Without what was remembered the turns would be others.
    forgetful = Fleet(tmp_path / "forgetful", experiment(participation={"count": 3}))
    forgetful.run(7, dataclasses.replace(state, credit={}))
    assert before.chosen() + forgetful.chosen() != whole.chosen()


# --- load, as it was routed ----------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["assigned", "routed", "both"])
def test_routed_load_is_counted_under_each_balance(tmp_path: Path, balance: str) -> None:
    fleet = Fleet(tmp_path, experiment(assignment={"balance": balance}))
    state, routed = START, np.zeros(EXPERTS, np.int64)
    for number in range(1, 5):
        state = fleet.run(number, state)
        record = fleet.records[-1]
        for client in record.clients:
            assert client.usage == [client.samples - 1, 1]
            routed[client.experts] += [K * (client.samples - 1), K]
        assert state.routed.tolist() == routed.tolist()
        assert state.routed.sum() == state.load.sum()
        assert record.routed_cv == load.coefficient_of_variation(routed)
        assert record.load_cv == load.coefficient_of_variation(state.load)
        for client in record.clients:
            shares = state.shares[client.client]
            assert np.isnan(shares).sum() == EXPERTS - np.count_nonzero(state.trials[client.client])


def test_under_routed_the_problem_is_about_routed_load(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(assignment={"balance": "routed"}))
    first = fleet.run(1)
    second = fleet.run(2, first)
    past = np.maximum(first.routed, first.load / 3)
    problem = fleet.problems[1]
    assert problem.history is not None and problem.history == pytest.approx(past)
    assert problem.weight is not None
    # What a device was routed in the first round is what it is foretold, but for the least share.
    for row, client in zip(problem.weight, fleet.records[0].clients, strict=True):
        many, one = row[client.experts]
        share = K / client.samples
        assert many == pytest.approx(K * (client.samples - 1))
        assert one == pytest.approx(client.samples * max(share, 0.05))
    assert second.routed.sum() == 2 * first.routed.sum()


def test_under_assigned_the_problem_is_the_papers(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment())
    state = fleet.run(1)
    fleet.run(2, state)
    assert fleet.problems[1].weight is None
    assert fleet.problems[1].history is not None
    assert fleet.problems[1].history.tolist() == state.load.tolist()


# --- the certificate -----------------------------------------------------------------------------


def test_the_record_has_the_assignments_certificate(tmp_path: Path) -> None:
    """One client has more samples than all others: its experts are above their share."""
    fleet = Fleet(tmp_path, experiment(assignment={"policy": "flex_moe", "delta": 0}))
    fleet.say("d", samples=4000)
    fleet.run(2)
    for record, answer in zip(fleet.records, fleet.assignments, strict=True):
        assert record.violated_samples == round(answer.violation)
        assert record.least_violation == answer.violation_bound <= answer.violation
        assert (record.objective, record.bound) == (answer.objective, answer.bound)
        assert (record.gap, record.solver) == (answer.gap, "prices")
    assert fleet.records[0].violated_samples > 0 and fleet.records[0].least_violation > 0


# --- a fixed assignment --------------------------------------------------------------------------

TABLE = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]])


def fixed(folder: Path, **sections: dict[str, Any]) -> Experiment:
    np.save(folder / "X.npy", TABLE)
    file = {"policy": "fixed", "file": str(folder / "X.npy")}
    return experiment(assignment=file, **sections)


def rows(record: RoundRecord) -> dict[str, list[int]]:
    return {client.client: client.experts for client in record.clients}


def row_of(place: int) -> list[int]:
    return np.flatnonzero(TABLE[place]).tolist()


def test_a_fixed_row_stays_with_its_client_when_another_is_missing(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, fixed(tmp_path))
    state = fleet.run(1)
    assert rows(fleet.records[0]) == {name: row_of(i) for i, name in enumerate(SIZES)}
    fleet.lose("b")
    state = fleet.run(2, state)
    assert rows(fleet.records[1]) == {"a": row_of(0), "c": row_of(2), "d": row_of(3)}
    # One that comes later has the next place, whatever its name.
    fleet.add("aa", Device(fleet.world, "aa", MODEL))
    state = fleet.run(3, State.from_bytes(state.to_bytes()))
    assert rows(fleet.records[2])["aa"] == row_of(4)
    assert rows(fleet.records[2])["d"] == row_of(3)


def test_a_latecomer_beyond_the_rows_sits_out(tmp_path: Path) -> None:
    """Its name comes first: the others' rows stay theirs."""
    fleet = Fleet(tmp_path, fixed(tmp_path))
    state = fleet.run(1)
    for name in ("A", "B"):  # the table has a row for one more
        fleet.add(name, Device(fleet.world, name, MODEL))
    fleet.run(3, state)
    for record in fleet.records[1:]:
        assert rows(record) == {name: row_of(i) for i, name in enumerate(("a", "b", "c", "d", "A"))}
        assert (record.participants, record.answered) == (5, 5)
        assert {device.client for device in record.devices} == {*SIZES, "A", "B"}
    sits_out = "B: sits out: assignment.file has 5 rows, none for device number 6"
    assert [record.events for record in fleet.records] == [[], [sits_out], []]
    assert fleet.devices["B"].got(Assign) == []


def test_rows_with_fewer_experts_than_a_device_can_hold(tmp_path: Path) -> None:
    """What it can hold stays as it is, and nothing is said of it."""
    fleet = Fleet(tmp_path, fixed(tmp_path, model={"experts_per_device": 3}))
    state = fleet.run(7)
    assert all(problem.capacity.tolist() == [3] * 4 for problem in fleet.problems)
    assert all(len(client.experts) == 2 for r in fleet.records for client in r.clients)
    assert [record.events for record in fleet.records] == [[]] * 7
    assert {tuple(pace.seconds) for pace in state.paces.values()} == {(2,)}


def test_a_fixed_row_stays_with_its_client_whoever_takes_part(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, fixed(tmp_path, **TWO))
    fleet.run(4)
    assert len(set(map(tuple, fleet.chosen()))) > 1
    for record in fleet.records:
        assert rows(record) == {
            c.client: row_of(list(SIZES).index(c.client)) for c in record.clients
        }


# --- the server's egress -------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["lossless", "default", "narrow"])
def test_what_leaves_the_server_grows_with_the_experts_and_not_with_the_devices(
    tmp_path: Path, preset: str
) -> None:
    def egress(devices: int) -> int:
        """Bytes of frames, in four rounds of 8 experts."""
        settings = experiment(
            data={"devices": devices},
            model={"experts": 8},
            assignment={"policy": "flex_moe"},
            wire={"preset": preset},
        )
        fleet = Fleet(tmp_path / str(devices), settings)
        for number in range(devices - len(SIZES)):
            name = f"x{number:02d}"
            fleet.add(name, Device(fleet.world, name, fleet.start.model, seed=number))
        fleet.run(4)
        assert [record.answered for record in fleet.records] == [devices] * 4
        taken = [frames_of(m) for d in fleet.devices.values() for m in d.got(Assign)]  # type: ignore[arg-type]
        assert all(taken) and len(taken) >= 4 * devices
        return sum(
            row.wire_bytes
            for record in fleet.records
            for row in record.bytes
            if (row.side, row.client) == ("server", EVERYONE) and row.kind != "control"
        )

    few, many = egress(10), egress(40)
    assert few / 1.3 <= many <= 1.3 * few
