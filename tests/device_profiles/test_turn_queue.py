"""Whose turn it is, by rules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.emulation.turn_queue import TurnQueue
from edge_runtime.turn import Phase

PHASES: tuple[Phase, ...] = ("work", "train")
quota = st.integers(1, 100).map(lambda percent: percent / 100)
fleets = st.lists(st.tuples(quota, quota), min_size=1, max_size=8)
wishes = st.lists(st.tuples(st.integers(0, 7), st.sampled_from([*PHASES, None])), max_size=60)


class Model:
    """What a queue said, and whether it may say so."""

    def __init__(self, cores: float, fleet: list[tuple[float, float]]) -> None:
        self.cores = cores
        self.quotas: dict[str, dict[Phase, float]] = {
            f"d{number}": {"work": work, "train": train}
            for number, (work, train) in enumerate(fleet)
        }
        self.queue = TurnQueue(cores, self.quotas)
        self.held: dict[str, Phase] = {}
        self.waiting: list[tuple[str, Phase]] = []  # in the order of asking

    def ask(self, name: str, phase: Phase) -> None:
        """A device that does not wait asks for a phase."""
        changes, before = self.queue.ask(name, phase), self.held.pop(name, None)
        if before and self.quotas[name][phase] <= self.quotas[name][before]:
            assert changes.pop(0) == (name, phase)  # at once
            self.held[name] = phase
        else:
            self.waiting.append((name, phase))
            if before and (name, phase) not in changes:
                assert changes.pop(0) == (name, None)
        self.take(changes)

    def end(self, name: str) -> None:
        """A device has nothing to compute, or is gone."""
        changes = self.queue.end(name)
        if self.held.pop(name, None):
            assert changes.pop(0) == (name, None)
        self.waiting = [wish for wish in self.waiting if wish[0] != name]
        self.take(changes)

    def take(self, begun: Sequence[tuple[str, Phase | None]]) -> None:
        """Those who waited begin in the order of asking, while the cores suffice, and no later."""
        for wish in begun:
            name, phase = self.waiting.pop(0)
            assert wish == (name, phase)
            self.held[name] = phase
        assert self.used() <= self.cores + 1e-9
        busy = {*self.held, *(name for name, _ in self.waiting)}
        assert {name for name in self.quotas if self.queue.busy(name)} == busy
        if self.waiting:
            name, phase = self.waiting[0]
            assert self.used() + self.quotas[name][phase] > self.cores + 1e-9
        waiting = {name for name, _ in self.waiting}
        assert waiting == {name for name in self.quotas if self.queue.waits(name)}

    def used(self) -> float:
        """Cores that are given away."""
        return sum(self.quotas[name][phase] for name, phase in self.held.items())


@given(st.sampled_from([1.0, 1.37, 2.0, 8.0]), fleets, wishes)
def test_never_over_the_cores_in_order_and_all_are_served(
    cores: float, fleet: list[tuple[float, float]], wishes: list[tuple[int, Phase | None]]
) -> None:
    model = Model(cores, fleet)
    for number, phase in wishes:
        name = f"d{number % len(fleet)}"
        if phase is None:
            model.end(name)
        elif not model.queue.waits(name):
            model.ask(name, phase)
    while model.waiting:
        assert model.held  # one who can end, so that the first may begin
        model.end(next(iter(model.held)))


def test_a_larger_phase_gives_up_what_it_holds() -> None:
    """Two hold half of all and both want more: neither waits for the other."""
    half: dict[Phase, float] = {"work": 0.5, "train": 0.8}
    queue = TurnQueue(1.0, {"a": half, "b": half})
    assert queue.ask("a", "work") == [("a", "work")]
    assert queue.ask("b", "work") == [("b", "work")]
    assert queue.ask("a", "train") == [("a", None)]
    assert queue.ask("b", "train") == [("b", None), ("a", "train")]
    assert queue.end("a") == [("a", None), ("b", "train")]


def test_tenths_of_a_core_add_up() -> None:
    queue = TurnQueue(1.0, {f"d{number}": {"work": 0.1} for number in range(10)})
    for number in range(10):
        assert queue.ask(f"d{number}", "work") == [(f"d{number}", "work")]


def test_a_quota_above_the_cores_can_never_be_given() -> None:
    with pytest.raises(ValueError, match=r"b: train needs 1.5 cores, there are 1"):
        TurnQueue(1.0, {"a": {"work": 1.0}, "b": {"work": 0.1, "train": 1.5}})
