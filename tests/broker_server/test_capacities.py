"""A round's capacities: who is given how many, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from broker_server.artifacts import Artifacts
from broker_server.budget import Allowance
from broker_server.capacities import (
    Capacities,
    Past,
    begun_again,
    capacities_of,
    found_caps,
    overtaxed,
)
from broker_server.capacity import Cap, Capacity
from broker_server.demand import Demand, Moves
from broker_server.experiment import Experiment
from broker_server.pace import Pace
from broker_server.publishing.publication import Publication
from broker_server.roster import Roster
from broker_server.work import Answer, Observed
from edge_runtime.errors import FleetError
from model_export.models import ModelSpec
from tests.broker_server import scripted_device
from tests.broker_server.layout_programs import LayoutPrograms

SPEC = ModelSpec("digits", (64,), 10, 8)
HELLO = dataclasses.replace(
    scripted_device.HELLO, samples=200, test_samples=20, shape=[64], labels=10, trainer="native"
)
DEMAND = Demand(3, 100.0, Moves(4000, 1100), Moves(4000, 1100))
PASSES = HELLO.samples * DEMAND.epochs
NAMES = ["a", "b", "c"]


class Fleet:
    """Three devices that are asked to hold four experts; `past` is what rounds showed."""

    def __init__(
        self,
        asked: Any = 4,
        policy: str = "flex_moe",
        allowances: Mapping[str, Allowance] = MappingProxyType({}),
        file: str = "",
    ) -> None:
        self.experiment = Experiment.model_validate(
            {
                "data": {"devices": len(NAMES)},
                "model": {"experts": SPEC.experts, "experts_per_device": asked},
                "assignment": {"policy": policy, "file": file},
            }
        )
        self.allowances = allowances
        self.roster = Roster(SPEC, "s")
        self.past = Past({}, {})
        publication = Publication(self.experiment.wire.codings, 0, 0)
        self.artifacts = Artifacts(self.experiment, SPEC, LayoutPrograms(), publication)
        for name in NAMES:
            self.hello(name)

    def hello(self, name: str, **fields: Any) -> None:
        self.roster.admit(name, dataclasses.replace(HELLO, **fields))

    def need_bytes(self, k: int) -> int:
        return self.artifacts.memory_bytes(k, "native")

    def paced(self, name: str, **fields: Any) -> None:
        pace = Pace(**{"trainer": "native", **fields})
        self.past = dataclasses.replace(self.past, paces={**self.past.paces, name: pace})

    def deal(self) -> Capacities:
        """The next round's capacities; what is noted there is known to the one after it."""
        dealt = capacities_of(
            self.roster.present,
            NAMES,
            self.past,
            DEMAND,
            self.experiment,
            self.roster,
            self.artifacts,
            self.allowances,
        )
        self.past = Past(self.past.caps, dealt.paces)
        return dealt


def test_where_nothing_binds_nothing_is_said() -> None:
    fleet = Fleet([1, 3])
    for _ in range(3):
        dealt = fleet.deal()
        ks = {"a": 1, "b": 3, "c": 1}
        assert dealt.given == {name: Capacity(k, "asked") for name, k in ks.items()}
        assert dealt.paces == {name: Pace("native", k=k) for name, k in ks.items()}
        assert dealt.events == []


def test_what_binds_is_said_when_it_begins_and_when_it_ends() -> None:
    fleet = Fleet()
    fleet.paced("b", seconds={4: 100.0 / PASSES})
    dealt = fleet.deal()
    assert {c: (held.k, held.limit) for c, held in dealt.given.items()} == {
        "a": (4, "asked"),
        "b": (3, "compute"),
        "c": (4, "asked"),
    }
    assert dealt.events == [
        "b: holds 3 experts, its compute allows no more (a round with 4 experts takes 100 s, 0 s "
        "of it on the way; 80 s of round.deadline_s are for it)"
    ]
    assert fleet.deal().events == []
    quick = dataclasses.replace(fleet.past.paces["b"], seconds={3: 1.0 / PASSES})
    fleet.past = Past({}, {**fleet.past.paces, "b": quick})
    assert [fleet.deal().events for _ in range(4)] == [
        [],
        ["b: holds 4 experts, as many as it is asked for"],
        [],
        [],
    ]


def test_one_that_rises_and_is_still_bound() -> None:
    fleet = Fleet()
    fleet.paced("a", k=1, limit="compute", streak=1, seconds={1: 1.0 / PASSES})
    assert fleet.deal().events == ["a: holds 2 experts, one more than before"]


def test_memory_and_compute_of_one_device() -> None:
    fleet = Fleet()
    fleet.hello("a", memory_available_bytes=fleet.need_bytes(4) - 1)
    fleet.paced("a", seconds={3: 100.0 / PASSES})
    assert (fleet.deal().given["a"].k, fleet.past.paces["a"].limit) == (2, "compute")
    fleet.hello("a", memory_available_bytes=fleet.need_bytes(2) - 1)
    (event,) = fleet.deal().events
    assert event.startswith("a: holds 1 expert, its memory allows no more (2 need ")


def test_a_killed_device_is_given_fewer_when_it_is_back() -> None:
    for restarted in (True, False):
        fleet = Fleet()
        fleet.paced("c", k=4, suspect=4)
        who = "c" if restarted else "a"
        fleet.past = dataclasses.replace(fleet.past, restarted={who: "unknown"})
        dealt = fleet.deal()
        assert dealt.given["c"] == (Capacity(3, "memory") if restarted else Capacity(4, "asked"))
        assert dealt.events == restarted * [
            "c: holds 3 experts, its memory allows no more (its process ended at work with 4 "
            "experts)"
        ]
        assert dealt.paces["c"].suspect == 0


def test_who_is_away_keeps_what_is_known() -> None:
    fleet = Fleet()
    fleet.paced("b", k=2, suspect=2)
    fleet.roster.leave("b")
    before = fleet.past.paces["b"]
    dealt = fleet.deal()
    assert list(dealt.given) == ["a", "c"] and dealt.paces["b"] is before


def test_who_waits_its_turn_stays_as_it_was() -> None:
    """Of c nothing was known, and nothing is noted; a sits out, whoever takes part."""
    fleet = Fleet()
    fleet.hello("a", memory_available_bytes=fleet.need_bytes(1) - 1)
    for name in "bc":
        fleet.hello(name, memory_available_bytes=fleet.need_bytes(3) - 1)
    fleet.paced("b", k=1, limit="compute", streak=1, clean=3, suspect=4)
    fleet.past = dataclasses.replace(fleet.past, restarted={"b": "unknown"})
    before = dict(fleet.past.paces)
    whole = fleet.deal()
    assert whole.paces["b"].too_many == 4 and list(whole.news) == NAMES
    none = whole.of([], before)
    assert none.given == {} and none.paces == {"a": whole.paces["a"], "b": before["b"]}
    assert [event[:12] for event in none.events] == ["a: sits out:"]
    for chosen, other in (("b", "c"), ("c", "b")):
        some = whole.of([chosen], before)
        assert some.given == {chosen: whole.given[chosen]}
        assert some.paces[chosen] == whole.paces[chosen]
        assert some.paces.get(other) == before.get(other)
        assert some.events == whole.news["a"] + whole.news[chosen]
    assert whole.of(["b", "c"], before) == whole


def test_a_fixed_assignment_has_no_work_for_a_device_beyond_its_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", np.eye(SPEC.experts)[:2])
    fleet = Fleet(policy="fixed", file=str(tmp_path / "X.npy"))
    dealt = fleet.deal()
    assert list(dealt.given) == ["a", "b"]
    assert dealt.events == ["c: sits out: assignment.file has 2 rows, none for device number 3"]
    assert fleet.deal().events == []
    fleet.roster.leave("a")
    fleet.roster.leave("b")
    with pytest.raises(FleetError, match=r"0 of 1 devices can .*; c: sits out: assignment\.file"):
        fleet.deal()


def test_who_sits_out_is_named_once() -> None:
    fleet = Fleet()
    fleet.hello("a", memory_available_bytes=fleet.need_bytes(1) - 1)
    dealt = fleet.deal()
    assert list(dealt.given) == ["b", "c"]
    assert [event[:12] for event in dealt.events] == ["a: sits out:"]
    assert fleet.deal().events == []
    fleet.hello("a", memory_available_bytes=1 << 30)
    dealt = fleet.deal()
    assert dealt.given["a"] == Capacity(4, "asked")
    assert dealt.events == ["a: holds 4 experts, as many as it is asked for"]


def test_too_few_that_can_hold_one() -> None:
    """Even those of whom it was said before are named."""
    fleet = Fleet()
    fleet.hello("a", memory_available_bytes=0)
    fleet.deal()
    fleet.hello("b", memory_available_bytes=0)
    with pytest.raises(FleetError, match=r"1 of 3 devices can .* for 2; a: sits out: .*; b: sits"):
        fleet.deal()


def test_another_trainer_has_another_pace() -> None:
    fleet = Fleet()
    fleet.paced("a", trainer="executorch", seconds={4: 100.0 / PASSES}, k=2, too_many=3)
    dealt = fleet.deal()
    assert dealt.given["a"] == Capacity(4, "asked")
    assert dealt.paces["a"] == Pace("native", k=4)


def test_where_all_experts_go_everywhere_none_is_given_fewer() -> None:
    fleet = Fleet(policy="full")
    fleet.paced("a", k=8, seconds={8: 1000.0 / PASSES}, too_many=8)
    assert {held.k for held in fleet.deal().given.values()} == {8}


def allowance(asked_bytes: int) -> Allowance:
    """Of a round that takes 1000 bytes, and 500 with each expert."""
    return Allowance(asked_bytes, 1500, 1000, [500] * 8, [500] * 8)


def test_a_budget_binds_who_has_one() -> None:
    fleet = Fleet(allowances={"a": allowance(2600), "b": allowance(3000)})
    dealt = fleet.deal()
    assert dealt.given == {
        "a": Capacity(3, "link"),
        "b": Capacity(4, "asked"),
        "c": Capacity(4, "asked"),
    }
    assert dealt.events == [
        "a: holds 3 experts, its link allows no more (a round with 4 experts moves about 3,000 "
        "bytes, wire.bytes_per_round is 2,600)"
    ]
    assert fleet.deal().events == []


def test_a_budget_that_is_too_small_leaves_one_expert_and_is_told_once() -> None:
    fleet = Fleet(allowances={"b": allowance(1200)})
    dealt = fleet.deal()
    assert dealt.given["b"] == Capacity(1, "link")
    assert dealt.events[0] == "b: asked 1,200 bytes a round, the least is about 1,500"
    assert len(dealt.events) == 2
    assert fleet.deal().events == []


def test_where_all_experts_go_everywhere_a_budget_takes_none() -> None:
    fleet = Fleet(policy="full", allowances={"b": allowance(1200)})
    dealt = fleet.deal()
    assert dealt.given["b"] == Capacity(8, "asked")
    assert dealt.events == ["b: asked 1,200 bytes a round, the least is about 1,500"]


def test_what_refusals_for_lack_of_memory_show() -> None:
    answers = {"a": Answer("failed", needed_bytes=5000), "b": Answer("failed"), "c": Answer("ok")}
    caps = found_caps(answers, {name: [1, 2] for name in NAMES}, dict.fromkeys(NAMES, HELLO))
    assert caps == {"a": Cap(2, 5000, HELLO.memory_available_bytes, "native")}


LATE = {
    "a": Answer("late"),
    "b": Answer("late", observed=Observed(kept_waiting=True)),
    "c": Answer("ok"),
    "d": Answer("killed"),
}


def test_who_was_late_or_killed_may_do_with_fewer_experts() -> None:
    """Not who waited for us, not with one expert, not where all go everywhere."""
    given = {"a": 2, "b": 2, "c": 2, "d": 3}
    late, killed = {"a": "was late with 2 experts"}, {"d": "was killed with 3 experts"}
    assert overtaxed(LATE, given, Fleet().experiment) == late | killed
    assert overtaxed(LATE, {**given, "a": 1}, Fleet().experiment) == killed
    assert overtaxed(LATE, {**given, "d": 1}, Fleet().experiment) == late
    assert overtaxed(LATE, given, Fleet(policy="full").experiment) == {}
    killed_waiting = {"a": Answer("killed", observed=Observed(kept_waiting=True))}
    assert overtaxed(killed_waiting, given, Fleet().experiment) == {
        "a": "was killed with 2 experts"
    }
    assert overtaxed({"a": Answer("gone"), "b": Answer("failed")}, given, Fleet().experiment) == {}


CAPS = {"a": Cap(2, 5 << 20, 1 << 20, "native")}


@pytest.mark.parametrize(
    ("found", "fewer", "turn", "said"),
    [
        ({}, {}, False, ""),
        ({}, {}, True, "round 7 begun again: it is other devices' turn"),
        (CAPS, {}, True, "round 7 begun again: a needs 5.0 MiB"),
        ({}, {"b": "was late", "c": "was killed"}, False, "round 7 begun again: b was late, c was "
         "killed"),
        (CAPS, {"b": "was late"}, False, "round 7 begun again: a needs 5.0 MiB, b was late"),
    ],
)  # fmt: skip
def test_why_a_round_begins_again(
    found: dict[str, Cap], fewer: dict[str, str], turn: bool, said: str
) -> None:
    assert begun_again(7, found, fewer, turn) == said
