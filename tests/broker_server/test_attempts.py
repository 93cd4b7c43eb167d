"""Rounds that begin again: who is given fewer experts then, whose turn it is, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker_server.experiment import Experiment
from broker_server.state import State
from edge_runtime.errors import FleetError
from edge_runtime.protocol.messages import Assign, Failed
from tests.broker_server.scripted_device import Device
from tests.broker_server.scripted_fleet import SIZES, Fleet, K, experiment

NAMES = list(SIZES)
DEADLINE_S = 10.0
ONE_OF_FOUR = {"participation": {"count": 1}, "model": {"experts_per_device": 1}}


class Slow(Device):
    """Takes `each_s` for an expert."""

    each_s = 0.0

    def prepare(self, assign: Assign) -> None:
        super().prepare(assign)
        self.delay_s = self.each_s * len(assign.experts)
        self.change_report(telemetry={"train_s": self.delay_s})


class Small(Device):
    """Has not the memory for two experts."""

    def work(self, assign: Assign) -> None:
        if len(assign.experts) < K:
            super().work(assign)
            return
        why = "training 2 experts needs more"
        self.mailbox.send(Failed(assign.session, assign.round, assign.attempt, why, 1 << 31))


class Broken(Device):
    """Fails whatever it is given."""

    def work(self, assign: Assign) -> None:
        self.mailbox.send(Failed(assign.session, assign.round, assign.attempt, "too hot", 0))


class Hung(Device):
    """Never answers."""

    def work(self, assign: Assign) -> None: ...


def short(**sections: dict[str, Any]) -> Experiment:
    """An experiment with a deadline of `DEADLINE_S` that asks for every answer."""
    limits = {"deadline_s": DEADLINE_S, "quorum": 1.0, **sections.pop("round", {})}
    return experiment(round=limits, **sections)


def fleet_of(
    kind: type[Device], folder: Path, settings: Experiment, names: Sequence[str] = NAMES
) -> Fleet:
    """The scripted fleet, with devices of this kind under these `names`."""
    fleet = Fleet(folder, settings)
    for name in names:
        fleet.add(name, kind(fleet.world, name, fleet.start.model))
    return fleet


def slow(fleet: Fleet, each_s: float) -> None:
    for device in fleet.devices.values():
        if isinstance(device, Slow):
            device.each_s = each_s


def tried(fleet: Fleet, name: str) -> list[tuple[int, int, int]]:
    """Round, attempt and number of experts of all work that a device was given.

    Each once: the server repeats it when it hears a hello.
    """
    work = [m for m in fleet.devices[name].received if isinstance(m, Assign)]
    return list(dict.fromkeys((m.round, m.attempt, len(m.experts)) for m in work))


def begun_again(events: Sequence[str]) -> list[str]:
    return [event for event in events if " begun again: " in event]


# --- fewer experts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("each_s", "ks"),
    # Four fifths of the deadline are to be used: after 10 s were too short for 8, 6 may do.
    [(1.0, [8]), (1.3, [8, 6]), (1.9, [8, 6, 4]), (2.6, [8, 6, 4, 3]), (9.0, [8, 6, 4, 3, 2, 1])],
)
def test_a_deadline_that_is_too_short_for_all_is_met_with_fewer_experts(
    tmp_path: Path, each_s: float, ks: list[int]
) -> None:
    settings = short(model={"experts": 8, "experts_per_device": 8})
    fleet = fleet_of(Slow, tmp_path, settings)
    slow(fleet, each_s)
    state = fleet.run(1)
    (record,) = fleet.records
    for name in NAMES:
        assert tried(fleet, name) == [(1, attempt, k) for attempt, k in enumerate(ks, 1)]
    assert [client.status for client in record.clients] == ["ok"] * 4
    assert [len(client.experts) for client in record.clients] == [ks[-1]] * 4
    assert begun_again(record.events) == [
        "round 1 begun again: " + ", ".join(f"{name} was late with {k} experts" for name in NAMES)
        for k in ks[:-1]
    ]
    late = [event for event in record.events if event.endswith(": late: no answer by the deadline")]
    assert len(late) == 4 * (len(ks) - 1)
    # The attempts that were given up trained nothing: their pairs do not count.
    assert {int(trials.sum()) for trials in state.trials.values()} == {ks[-1]}
    # What was learnt stays: the next round fits at once.
    fleet.run(2, state)
    assert fleet.records[1].events == []
    assert {len(client.experts) for client in fleet.records[1].clients} == {ks[-1]}


def test_one_expert_that_is_too_slow_ends_the_run(tmp_path: Path) -> None:
    fleet = fleet_of(Slow, tmp_path, short(model={"experts_per_device": 3}))
    slow(fleet, 2 * DEADLINE_S)
    with pytest.raises(FleetError, match=r"round 1: 0 of 4 devices answered in time, .* for 4; a:"):
        fleet.run(1)
    for name in NAMES:
        assert tried(fleet, name) == [(1, 1, 3), (1, 2, 2), (1, 3, 1)]


def test_where_all_experts_go_everywhere_a_late_device_ends_the_run_at_once(tmp_path: Path) -> None:
    fleet = fleet_of(Slow, tmp_path, short(assignment={"policy": "full"}), ["c"])
    slow(fleet, DEADLINE_S)
    with pytest.raises(FleetError, match=r"3 of 4 devices answered in time, .* asks for 4; c: no"):
        fleet.run(1)
    assert [tried(fleet, name) for name in NAMES] == [[(1, 1, 4)]] * 4


def test_with_a_quorum_a_round_goes_on_without_those_who_are_late(tmp_path: Path) -> None:
    fleet = fleet_of(Slow, tmp_path, short(round={"quorum": 0.75}), ["c"])
    slow(fleet, 0.6 * DEADLINE_S)
    fleet.run(2)
    first, second = fleet.records
    assert (first.answered, first.events) == (3, ["c: late: no answer by the deadline"])
    assert second.answered == 4 and tried(fleet, "c") == [(1, 1, 2), (2, 1, 1)]


def test_news_of_an_attempt_that_was_given_up_is_in_the_record(tmp_path: Path) -> None:
    """Each once, in the order of the attempts, with what the last one says."""
    fleet = fleet_of(Slow, tmp_path, short(round={"quorum": 0.5}), ["c", "d"])
    slow(fleet, 0.6 * DEADLINE_S)
    fleet.say("a", memory_available_bytes=1)  # sits out
    needed = fleet.federation.artifacts.memory_bytes(K, fleet.federation.roster["b"].kernels)
    fleet.say("b", memory_available_bytes=needed - 1)
    for name in "b":
        fleet.devices[name].delay_s = 1e6
    fleet.run(1)
    (record,) = fleet.records
    assert [client.client for client in record.clients] == ["b", "c", "d"]
    assert [client.status for client in record.clients] == ["late", "ok", "ok"]
    no_answer = "late: no answer by the deadline"
    begins = [
        *(f"{name}: {no_answer}" for name in "bcd"),
        "a: sits out: training 1 expert needs ",
        "b: holds 1 expert, its memory allows no more (2 need ",
        "round 1 begun again: c was late with 2 experts, d was late with 2 experts",
        f"b: {no_answer}",
        *(f"{name}: holds 1 expert, its compute allows no more (" for name in "cd"),
    ]
    assert len(record.events) == len(begins)
    for event, begin in zip(record.events, begins, strict=True):
        assert event.startswith(begin)


# --- others' turn --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Hung, Broken])
@pytest.mark.parametrize("k", [1, K])
def test_where_one_takes_part_others_do_for_one_that_hangs(
    tmp_path: Path, kind: type[Device], k: int
) -> None:
    settings = short(participation={"count": 1}, model={"experts_per_device": k})
    fleet = fleet_of(kind, tmp_path, settings, ["b"])
    state = fleet.run(12)
    assert all((record.participants, record.answered) == (1, 1) for record in fleet.records)
    assert "b" not in {name for (name,) in fleet.chosen()}
    # A try that failed costs its turn: all are tried equally often, within one.
    tries = {name: len(tried(fleet, name)) for name in NAMES}
    assert sum(tries.values()) == 12 + tries["b"]
    assert max(tries.values()) - min(tries.values()) <= 1 and tries["b"] >= 3
    for name, credit in state.credit.items():
        assert credit == sum(tries.values()) / 4 - tries[name]
    again = {r.round: begun_again(r.events) for r in fleet.records}
    assert [number for number, events in again.items() if events] == [
        number for number, _, _ in tried(fleet, "b")
    ]
    if kind is Hung and k == K:
        first, *later = (events for events in again.values() if events)
        assert [event.partition(": ")[2] for event in first] == ["b was late with 2 experts"]
    else:
        later = [events for events in again.values() if events]
    for events in later:
        assert [event.partition(": ")[2] for event in events] == ["it is other devices' turn"]


@pytest.mark.parametrize(("count", "attempts"), [(1, 4), (2, 4), (4, 1), (0, 1)])
def test_where_all_hang_each_has_its_turn_and_the_run_ends(
    tmp_path: Path, count: int, attempts: int
) -> None:
    """At most as many attempts as devices; one where all of them take part already."""
    settings = short(participation={"count": count}, model={"experts_per_device": 1})
    fleet = fleet_of(Hung, tmp_path, settings)
    began_s = fleet.world.now_s
    with pytest.raises(FleetError, match=rf"round 1: 0 of {count or 4} devices answered in time"):
        fleet.run(1)
    work = [attempt for name in NAMES for _, attempt, _ in tried(fleet, name)]
    assert sorted(work) == sorted(
        attempt for attempt in range(1, attempts + 1) for _ in range(count or 4)
    )
    assert {len(tried(fleet, name)) for name in NAMES} == {len(work) // 4}
    assert fleet.world.now_s - began_s == pytest.approx(attempts * DEADLINE_S, rel=0.1)
    assert fleet.records == []


def test_where_all_hang_with_more_experts_each_is_given_fewer_once(tmp_path: Path) -> None:
    fleet = fleet_of(Hung, tmp_path, short(participation={"count": 1}))
    with pytest.raises(FleetError, match="0 of 1 devices answered in time"):
        fleet.run(1)
    work = sorted((attempt, k) for name in NAMES for _, attempt, k in tried(fleet, name))
    assert work == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 1)]


def test_those_who_cannot_hold_an_expert_give_no_further_attempt(tmp_path: Path) -> None:
    settings = short(round={"quorum": 0.5}, **ONE_OF_FOUR)
    fleet = fleet_of(Hung, tmp_path, settings)
    for name in "ac":
        fleet.say(name, memory_available_bytes=1)
    with pytest.raises(FleetError, match="0 of 1 devices answered in time"):
        fleet.run(1)
    assert [len(tried(fleet, name)) for name in NAMES] == [0, 1, 0, 1]


def test_those_who_were_too_small_have_had_their_turn(tmp_path: Path) -> None:
    """Two pairs fail for lack of memory; of the third attempt each has one expert."""
    settings = short(participation={"count": 2})
    fleet = fleet_of(Small, tmp_path, settings)
    state = fleet.run(1)
    first, second, third = fleet.problems
    assert first.places is not None and second.places is not None and third.places is not None
    assert {*first.places.tolist(), *second.places.tolist()} == {0, 1, 2, 3}
    assert [problem.capacity.tolist() for problem in fleet.problems] == [[2, 2], [2, 2], [1, 1]]
    assert first.seed == second.seed == third.seed
    (record,) = fleet.records
    assert (record.participants, record.answered) == (2, 2)
    assert len(begun_again(record.events)) == 2
    chosen = [NAMES[place] for place in third.places]
    assert fleet.chosen() == [chosen]
    assert state.credit == {name: -0.5 if name in chosen else 0.5 for name in NAMES}


# --- who waits -----------------------------------------------------------------------------------


def test_who_waits_its_turn_stays_as_it_was(tmp_path: Path) -> None:
    """A streak, rounds in good order, a fall: none moves while others are at work."""
    fleet = fleet_of(Slow, tmp_path, short(participation={"count": 1}))
    slow(fleet, 0.6 * DEADLINE_S)
    needed = fleet.federation.artifacts.memory_bytes(K, fleet.federation.roster["b"].kernels)
    fleet.say("b", memory_available_bytes=needed - 1)
    state = fleet.start
    for number in range(1, 17):
        before, state = state, fleet.run(number, state)
        at_work = {name for name in NAMES for r, _, _ in tried(fleet, name) if r == number}
        assert len(at_work) < 4
        for name in set(NAMES) - at_work:
            assert state.paces.get(name) == before.paces.get(name)
        assert {event[0] for event in fleet.records[-1].events if event[1] == ":"} <= at_work
    of_b = [event for record in fleet.records for event in record.events if event[:2] == "b:"]
    assert len(of_b) == 1 and of_b[0].startswith("b: holds 1 expert, its memory allows no more")
    assert state.paces["a"].clean > 0


def test_a_device_is_told_which_of_its_updates_counted(tmp_path: Path) -> None:
    settings = experiment(round={"deadline_s": DEADLINE_S, "quorum": 0.5})
    fleet = fleet_of(Device, tmp_path, settings)
    late = fleet.devices[NAMES[0]]
    state = fleet.run(1)
    late.delay_s = 2 * DEADLINE_S
    state = fleet.run(2, state)
    late.delay_s = 0.0
    state = fleet.run(3, state)

    def told(name: str) -> list[tuple[int, int]]:
        work = [m for m in fleet.devices[name].received if isinstance(m, Assign)]
        return list(dict.fromkeys((m.round, m.counted) for m in work))

    assert told(NAMES[0]) == [(1, 0), (2, 1), (3, 1)]
    assert told(NAMES[1]) == [(1, 0), (2, 1), (3, 2)]
    assert state.counted == dict.fromkeys(NAMES, 3)
    assert State.from_bytes(state.to_bytes()).counted == state.counted
