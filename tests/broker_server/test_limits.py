"""How many experts a device is given: the limits by brute force, and that k does not flap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.capacity import Capacity
from broker_server.demand import Demand, Moves
from broker_server.limits import MARGIN, SHARE, STREAK, settled
from broker_server.pace import HOLD, Pace, Rate
from broker_server.work import Answer, Observed
from tests.broker_server.sample_model import make_assign, make_report

SAMPLES, EPOCHS, DEADLINE_S = 200, 3, 100.0
PASSES = SAMPLES * EPOCHS
ROOM_S = SHARE * DEADLINE_S
DEMAND = Demand(EPOCHS, DEADLINE_S, Moves(4000, 1100), Moves(4000, 1100))
ASKED = Capacity(8, "asked")


def ok(train_s: float, k: int) -> Answer:
    """It trained `k` experts."""
    report = make_report(make_assign(range(k)), {})
    return Answer("ok", report=dataclasses.replace(report, telemetry={"train_s": train_s}))


def measured(seconds: Mapping[int, float], **fields: object) -> Pace:
    """A pace with these seconds of training a round, by k."""
    return Pace("native", {k: s / PASSES for k, s in seconds.items()}, **fields)  # type: ignore[arg-type]


class Device:
    """Rounds with a device: `answer` says what comes of a round with k experts."""

    def __init__(
        self, answer: Callable[[int], Answer], asked: int = 8, pace: Pace | None = None
    ) -> None:
        self.answer, self.holds = answer, Capacity(asked, "asked")
        self.pace = pace or Pace("native")
        self.limits: list[str] = []

    def play(self, rounds: int) -> list[int]:
        """k of each round."""
        ks = []
        for _ in range(rounds):
            capacity, pace = settled(self.holds, self.pace, SAMPLES, DEMAND)
            assert (pace.k, pace.limit) == (capacity.k, capacity.limit)
            self.pace = pace.after(self.answer(capacity.k), PASSES, DEMAND, 1)
            ks.append(capacity.k)
            self.limits.append(capacity.limit)
        return ks


def rises(ks: list[int]) -> int:
    return sum(one < other for one, other in pairwise(ks))


# --- the limits --------------------------------------------------------------------------------


def test_where_nothing_binds_k_is_what_was_asked_for() -> None:
    assert settled(ASKED, Pace("native"), SAMPLES, DEMAND)[0] == ASKED
    device = Device(lambda k: ok(0.5 * k, k))
    assert set(device.play(50)) == {8} and set(device.limits) == {"asked"}


@given(
    st.integers(1, 8),
    st.sampled_from(["asked", "memory"]),
    st.dictionaries(st.integers(1, 8), st.floats(0.1, 200.0), max_size=3),
    st.none() | st.floats(50.0, 1e6),
    st.none() | st.floats(50.0, 1e6),
    st.integers(1, 8) | st.none(),
    st.integers(0, 9),
    st.sampled_from(["memory", "compute", "link"]),
)
def test_a_newcomer_is_given_the_most_that_fits(
    most: int,
    first: str,
    seconds: dict[int, float],
    down: float | None,
    up: float | None,
    affordable: int | None,
    too_many: int,
    cause: str,
) -> None:
    pace = dataclasses.replace(
        measured(seconds, too_many=too_many, cause=cause),
        down=Rate(down, 1.0) if down else None,
        up=Rate(up, 1.0) if up else None,
    )

    def parts(k: int) -> tuple[float, float]:
        source = min(seconds, key=lambda j: (abs(j - k), j)) if seconds else 0
        size = 4000 + 1100 * k
        transfer_s = (size / down if down else 0.0) + (size / up if up else 0.0)
        return (seconds[source] * k / source if source else 0.0), transfer_s

    # What each limit allows alone, by trying every k.
    time_k = max([k for k in range(1, most + 1) if sum(parts(k)) <= ROOM_S], default=1)
    budget_k = min(affordable or most, most)
    affords = Capacity(budget_k, "link") if budget_k < most else None
    trust_k = max(k for k in range(1, most + 1) if k == 1 or not too_many or k < too_many)
    holds = Capacity(most, first)  # type: ignore[arg-type]
    capacity, after = settled(holds, pace, SAMPLES, DEMAND, affords)
    assert capacity.k == min(most, time_k, budget_k, trust_k)
    names = set()
    if most == capacity.k:
        names |= {first}
    if budget_k == capacity.k < most:
        names |= {"link"}
    if trust_k == capacity.k < most:
        names |= {cause}
    if time_k == capacity.k < most:
        training_s, transfer_s = parts(time_k + 1)
        names |= {"compute" if training_s >= transfer_s else "link"}
    assert capacity.limit in names
    assert capacity.limit == "asked" or "asked" not in names
    assert after.falls == 0


def test_what_binds_is_said_with_its_figures() -> None:
    def said(pace: Pace, affords: Capacity | None = None) -> tuple[int, str, str]:
        capacity = settled(ASKED, pace, SAMPLES, DEMAND, affords)[0]
        return capacity.k, capacity.limit, capacity.figures

    assert said(measured({4: 100.0})) == (
        3,
        "compute",
        "a round with 4 experts takes 100 s, 0 s of it on the way; 80 s of round.deadline_s are "
        "for it",
    )
    slow = Pace("native", down=Rate(4000 + 1100 * 3, 90.0))
    assert said(slow) == (
        2,
        "link",
        "a round with 3 experts takes 90 s, 90 s of it on the way; 80 s of round.deadline_s are "
        "for it",
    )
    affords = Capacity(2, "link", "what a budget says")
    assert said(Pace("native"), affords) == (2, "link", "what a budget says")
    late = measured({}, too_many=2, cause="link")
    assert said(late) == (1, "link", "it was too late with 2 experts")
    killed = measured({}, too_many=5, cause="memory")
    assert said(killed) == (4, "memory", "its process ended at work with 5 experts")


# --- kept steady -------------------------------------------------------------------------------


@given(st.lists(st.floats(1.0, 40.0), min_size=2, max_size=30), st.integers(1, 8))
def test_k_falls_at_once_and_rises_by_one_after_two_fitting_rounds(
    each: list[float], asked: int
) -> None:
    """`each`: seconds per expert of each round, in any order."""
    pace, fitted = Pace("native"), 0
    for seconds in each:
        before = pace
        capacity, pace = settled(Capacity(asked, "asked"), before, SAMPLES, DEMAND)
        allowed = settled(
            Capacity(asked, "asked"), dataclasses.replace(before, k=0), SAMPLES, DEMAND
        )[0]
        assert capacity.k <= allowed.k
        if before.k:
            more_s = before.round_s(before.k + 1, PASSES, DEMAND)
            fits = allowed.k > before.k and more_s <= MARGIN * ROOM_S
            fitted = fitted + 1 if fits else 0
            risen = fitted == STREAK
            assert capacity.k == min(allowed.k, before.k + risen)
            fitted = 0 if risen or capacity.k < before.k else fitted
        pace = pace.after(ok(seconds * capacity.k, capacity.k), PASSES, DEMAND, 1)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.floats(0.85, 1.1), st.floats(0.0, 1.0))
def test_noise_at_a_limit_moves_k_rarely(
    seed: int, limit_k: int, ratio: float, fixed: float
) -> None:
    """A round with `limit_k` takes `ratio` of what it may, +-10 %; `fixed` of it is the backbone's.

    In 200 rounds it comes down to where it fits, and hardly ever goes up again.
    """
    rng = np.random.default_rng(seed)
    most_s = ratio * ROOM_S

    def answer(k: int) -> Answer:
        true_s = most_s * (fixed + (1 - fixed) * k / limit_k)
        return ok(true_s * rng.uniform(0.9, 1.1), k)

    device = Device(answer, asked=limit_k)
    assert rises(device.play(200)) <= 2
    assert set(device.limits) <= {"asked", "compute"}


def test_without_smoothing_k_would_flap() -> None:
    """The last measurement alone, at the same limit: k moves up in about every fourth round."""
    rng = np.random.default_rng(0)
    seconds, ks = dict[int, float](), []
    for _ in range(200):
        pace = measured(seconds)
        k = settled(Capacity(4, "asked"), pace, SAMPLES, DEMAND)[0].k
        ks.append(k)
        seconds = {k: ROOM_S * k / 4 * rng.uniform(0.9, 1.1)}
    assert rises(ks) > 30


def test_what_grows_faster_than_k_is_tried_ever_less() -> None:
    """Four experts do not fit the cache: three say nothing of that."""
    device = Device(lambda k: ok(10.0 * k if k < 4 else 90.0, k), asked=4)
    tried = np.flatnonzero(np.array(device.play(300)) == 4)
    pauses = np.diff(tried)
    pauses = pauses[pauses > 1]
    assert len(pauses) >= 4 and (np.diff(pauses) >= 0).all() and pauses[-1] >= 2**4 * HOLD


def test_a_device_that_cools_down_is_given_its_experts_back() -> None:
    hot = True
    device = Device(lambda k: ok(k * (40.0 if hot else 5.0), k), asked=4)
    assert device.play(10)[-1] == 2
    hot = False
    ks = device.play(40)
    assert ks[-1] == 4 and ks == sorted(ks) and device.limits[-1] == "asked"


def test_the_name_of_a_limit_does_not_flap_either() -> None:
    """Training and the way take about as long."""
    rng = np.random.default_rng(1)

    def answer(k: int) -> Answer:
        train_s, way_s = rng.uniform(44, 56, 2) * k / 4
        return dataclasses.replace(
            ok(train_s, k), observed=Observed(uplink_bytes=4000 + 1100 * k, uplink_s=way_s)
        )

    device = Device(answer, asked=4)
    device.play(200)
    assert rises([int(name == "link") for name in device.limits]) <= 1


# --- trust -------------------------------------------------------------------------------------


def test_a_missed_deadline_lowers_k_and_five_good_rounds_bring_it_back() -> None:
    pace = Device(lambda k: ok(5.0 * k, k), asked=4).pace
    pace = dataclasses.replace(pace, k=4)
    device = Device(lambda k: ok(5.0 * k, k), 4, pace.after(Answer("late"), PASSES, DEMAND, 1))
    ks = device.play(HOLD + 2)
    assert ks == [3] * (HOLD + 1) + [4] and device.limits == ["compute"] * (HOLD + 1) + ["asked"]


def test_one_expert_is_left_to_a_device_that_is_always_late() -> None:
    device = Device(lambda k: Answer("late"), asked=5)
    assert device.play(8) == [5, 4, 3, 2, 1, 1, 1, 1]
    assert device.limits[1:] == ["compute"] * 7


def test_a_killed_device_is_tried_again_after_ever_longer() -> None:
    """Its process ends each time that it trains four."""
    killed = Answer("gone", observed=Observed(vanished=True))
    pace, ks = Pace("native"), []
    for _ in range(80):
        pace = pace.returned("unknown", 1, 0)
        capacity, pace = settled(Capacity(4, "asked"), pace, SAMPLES, DEMAND)
        pace = pace.after(killed if capacity.k == 4 else ok(1.0, capacity.k), PASSES, DEMAND, 1)
        ks.append(capacity.k)
        assert capacity.limit == ("asked" if capacity.k == 4 else "memory")
    tried = np.flatnonzero(np.array(ks) == 4).tolist()
    # Given back after 5, 10, 20 good rounds; that it fits is seen in two rounds.
    assert tried == [0, HOLD + 2, 3 * HOLD + 4, 7 * HOLD + 6, 15 * HOLD + 8][: len(tried)]
    assert len(tried) == 4 and set(ks) == {3, 4}


def test_what_memory_or_a_budget_takes_is_no_fall() -> None:
    pace = Pace("native", k=4)
    capacity, pace = settled(Capacity(2, "memory"), pace, SAMPLES, DEMAND)
    assert capacity == Capacity(2, "memory") and pace.falls == 0
    affords = Capacity(1, "link")
    capacity, pace = settled(Capacity(2, "memory"), pace, SAMPLES, DEMAND, affords)
    assert capacity == Capacity(1, "link") and pace.falls == 0


def test_a_fall_by_measurement_is_counted_once() -> None:
    """The ceiling and the measurement of a miss are one fall."""
    pace = Pace("native", k=4).after(Answer("late"), PASSES, DEMAND, 1)
    _, pace = settled(Capacity(4, "asked"), pace, SAMPLES, DEMAND)
    assert (pace.k, pace.falls, pace.clean) == (3, 1, 0)
    _, pace = settled(Capacity(4, "asked"), pace, SAMPLES, DEMAND)
    assert (pace.k, pace.falls) == (3, 1)
