"""Rounds in which devices' memory is measured, and ends some of them: what each is given then."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from broker_server.life import Life
from broker_server.pace import HOLD
from broker_server.record import ClientRound
from broker_server.state import State
from edge_runtime.errors import FleetError
from edge_runtime.protocol.messages import Assign
from edge_runtime.trainer import MIB
from tests.broker_server.scripted_device import Device
from tests.broker_server.scripted_fleet import MODEL, Fleet, experiment

LIMIT_MIB = 48.0


class Small(Device):
    """Killed by its work if that has more than `most` experts; tells its limit, and its peak."""

    most = 9
    peak_mib = 20.0
    limit_mib = LIMIT_MIB
    counts = True  # the kernel tells it of kills

    def work(self, assign: Assign) -> None:
        if len(assign.experts) <= self.most:
            return super().work(assign)
        kills = self.hello.memory_kills + self.counts
        self.hello = dataclasses.replace(self.hello, memory_kills=kills)
        self.link.kill()
        self.back_s = self.world.now_s + 0.5

    def prepare(self, assign: Assign) -> None:
        super().prepare(assign)
        told = {"train_s": 1.0, "peak_rss_mib": self.peak_mib, "memory_limit_mib": self.limit_mib}
        self.change_report(telemetry=told)


def fleet_of(tmp_path: Path, asked: int = 3, life: Life | None = None) -> tuple[Fleet, Small]:
    """Four devices; ``a`` is small."""
    fleet = Fleet(tmp_path, experiment(model={"experts_per_device": asked}), life=life)
    small = Small(fleet.world, "a", MODEL)
    fleet.add("a", small)
    fleet.say("a", memory_kills=0)
    return fleet, small


def part(fleet: Fleet, name: str = "a") -> list[ClientRound | None]:
    """A device's part in each round; None where it sat out."""
    return [
        next((client for client in record.clients if client.client == name), None)
        for record in fleet.records
    ]


def ks(fleet: Fleet, name: str = "a") -> list[int]:
    """How many experts it was given in each round, 0 where it sat out."""
    return [len(client.experts) if client else 0 for client in part(fleet, name)]


def test_a_kill_is_told_and_the_next_round_asks_for_less(tmp_path: Path) -> None:
    fleet, small = fleet_of(tmp_path)
    state = fleet.run(1)
    small.most = 1
    fleet.run(4, state)
    assert ks(fleet) == [3, 3, 2, 1]
    assert ks(fleet, "b") == [3] * 4
    ends = [client.status for client in part(fleet) if client]
    assert ends == ["ok", "killed", "killed", "ok"]
    assert [record.answered for record in fleet.records] == [4, 3, 3, 4]
    why = [f"killed by its memory limit of 48 MiB with {k} experts" for k in (3, 2)]
    assert [record.events for record in fleet.records[1:]] == [
        [f"a: killed: {why[0]}"],
        [
            f"a: killed: {why[1]}",
            f"a: holds 2 experts, its memory allows no more ({why[0]})",
        ],
        [f"a: holds 1 expert, its memory allows no more ({why[1]})"],
    ]
    last = part(fleet)[3]
    assert last is not None and last.asked == 3
    assert (last.capacity, last.limit, last.why) == (1, "memory", why[1])


def test_a_cut_costs_nothing(tmp_path: Path) -> None:
    """It is back in time, its count did not rise, and it gets the same work again."""
    fleet, small = fleet_of(tmp_path)
    small.counts = False
    state, plain = fleet.start, small.work

    def cut(assign: Assign) -> None:
        small.work = plain  # type: ignore[method-assign]
        small.link.kill()
        small.back_s = small.world.now_s + 0.5

    for number in (1, 2, 3):
        small.work = cut  # type: ignore[method-assign]
        state = fleet.run(number, state)
    assert ks(fleet) == [3, 3, 3]
    assert [record.answered for record in fleet.records] == [4, 4, 4]
    assert [record.events for record in fleet.records] == [[], [], []]
    # Nor does one that comes back too late.
    small.work = lambda assign: small.link.kill()  # type: ignore[method-assign]
    state = fleet.run(4, state)
    assert [client.status for client in part(fleet) if client][3] == "gone"
    assert state.paces["a"].suspect == 3
    small.work = plain  # type: ignore[method-assign]
    small.link.restore()
    fleet.exchange.gather(4, 10.0)
    fleet.run(5, state)
    assert ks(fleet)[4] == 3 and fleet.records[4].events == []


def test_one_expert_too_many_sits_out_and_is_tried_again(tmp_path: Path) -> None:
    fleet, small = fleet_of(tmp_path, asked=1)
    state = fleet.run(1)
    small.most = 0
    last = 2 + HOLD + 1 + 2 * HOLD + 1
    state = fleet.run(4, state)
    # A server that goes on from its checkpoint keeps to it.
    state = fleet.run(last - 1, State.from_bytes(state.to_bytes()))
    small.most = 1
    fleet.run(last, state)
    assert ks(fleet) == [1, 1, *[0] * HOLD, 1, *[0] * 2 * HOLD, 1]
    assert [c.status for c in part(fleet) if c] == ["ok", "killed", "killed", "ok"]
    why = "killed by its memory limit of 48 MiB with 1 expert"
    said = {r.round: [e for e in r.events if e.startswith("a:")] for r in fleet.records}
    assert {number: events for number, events in said.items() if events} == {
        2: [f"a: killed: {why}"],
        3: [f"a: sits out: {why}"],
        3 + HOLD: [f"a: killed: {why}", "a: holds 1 expert, as many as it is asked for"],
        4 + HOLD: [f"a: sits out: {why}"],
        last: ["a: holds 1 expert, as many as it is asked for"],
    }


def test_all_experts_or_none(tmp_path: Path) -> None:
    settings = experiment(assignment={"policy": "full", "delta": 1.0})
    fleet = Fleet(tmp_path, settings)
    small = Small(fleet.world, "a", MODEL)
    fleet.add("a", small)
    fleet.say("a", memory_kills=0)
    small.most = 3
    fleet.run(3)
    assert ks(fleet) == [4, 0, 0]
    assert fleet.records[1].events == [
        "a: sits out: killed by its memory limit with 4 experts",
    ]


def test_a_round_begins_again_without_those_who_were_killed(tmp_path: Path) -> None:
    """Its quorum was missed, and fewer experts may do."""
    fleet = Fleet(tmp_path, experiment(model={"experts_per_device": 3}, round={"quorum": 1.0}))
    small = Small(fleet.world, "a", MODEL)
    fleet.add("a", small)
    fleet.say("a", memory_kills=0)
    small.most = 2
    fleet.run(1)
    assert ks(fleet) == [2] and fleet.records[0].answered == 4
    assert fleet.records[0].events == [
        "a: killed: killed by its memory limit with 3 experts",
        "round 1 begun again: a was killed with 3 experts",
        "a: holds 2 experts, its memory allows no more (killed by its memory limit with 3 experts)",
    ]
    small.most = 0
    with pytest.raises(FleetError, match=r"killed by its memory limit of 48 MiB with 1 expert"):
        fleet.run(2, fleet.run(1))


def test_the_host_may_tell_of_a_kill(tmp_path: Path) -> None:
    killed: list[str] = []

    def take() -> list[str]:
        names = list(killed)
        killed.clear()
        return names

    fleet, small = fleet_of(tmp_path, life=Life(killed=take))
    small.work = lambda assign: (killed.append("a"), small.link.kill())  # type: ignore[method-assign, assignment, func-returns-value]
    fleet.run(1)
    assert [client.status for client in part(fleet) if client] == ["killed"]
    assert fleet.records[0].round_s < 1.0


# --- what is measured -----------------------------------------------------------------------------


def need_mib(fleet: Fleet, k: int) -> float:
    return fleet.federation.artifacts.memory_bytes(k, "stock") / MIB


def test_measured_memory_steers_what_it_is_given(tmp_path: Path) -> None:
    fleet, small = fleet_of(tmp_path)
    beside_mib = 30.0
    small.peak_mib = beside_mib + need_mib(fleet, 3)
    small.limit_mib = beside_mib + (need_mib(fleet, 2) + need_mib(fleet, 3)) / 2
    state = fleet.run(3)
    assert ks(fleet) == [3, 2, 2]
    first, second, third = part(fleet)
    assert first is not None and second is not None and third is not None
    assert (first.capacity, first.limit, first.why) == (3, "asked", "")
    limit, left = round(small.limit_mib, 1), round(small.limit_mib - beside_mib, 1)
    why = f"3 need {round(need_mib(fleet, 3), 1):g} MiB, its limit of {limit:g} MiB leaves {left:g}"
    assert (second.capacity, second.limit, second.why) == (2, "memory", why)
    assert third.why == why
    assert fleet.records[1].events == [f"a: holds 2 experts, its memory allows no more ({why})"]
    # Another process that takes less: it may hold more again, one round after the other.
    small.peak_mib = 10.0 + need_mib(fleet, 2)
    fleet.run(7, State.from_bytes(state.to_bytes()))
    assert ks(fleet)[3:] == [2, 2, 3, 3]
    assert ks(fleet, "b") == [3] * 7


def test_one_expert_is_tried_whatever_is_left(tmp_path: Path) -> None:
    fleet, small = fleet_of(tmp_path)
    small.peak_mib, small.limit_mib = 60.0, 48.0
    fleet.run(3)
    assert ks(fleet) == [3, 1, 1]


def test_what_a_board_is_called_is_on_record(tmp_path: Path) -> None:
    fleet, _ = fleet_of(tmp_path)
    fleet.say("a", board="pi-zero-2w", link="lte-m")
    fleet.run(1)
    described = {device.client: (device.board, device.link) for device in fleet.records[0].devices}
    assert described == {"a": ("pi-zero-2w", "lte-m"), **dict.fromkeys("bcd", ("", ""))}
