"""What rounds show of a client."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.demand import Demand, Moves
from broker_server.memory import Peak
from broker_server.pace import HOLD, MAX_DOUBLINGS, WEIGHT, Pace, Rate, paces_after
from broker_server.work import Answer, Observed
from tests.broker_server.sample_model import make_assign, make_report

PASSES, NUMBER = 600, 7
DEMAND = Demand(3, 60.0, Moves(4000, 1100), Moves(4000, 1100))
ODD = [math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e-300, 1e300]


def ok(
    telemetry: Mapping[str, float], uplink_bytes: int = 0, uplink_s: float = 0.0, k: int = 2
) -> Answer:
    report = make_report(make_assign(range(k)), {})
    report = dataclasses.replace(report, telemetry=dict(telemetry))
    return Answer("ok", report=report, observed=Observed(uplink_bytes, uplink_s))


def late(**seen: object) -> Answer:
    return Answer("late", observed=Observed(**seen))  # type: ignore[arg-type]


def through(pace: Pace, *answers: Answer) -> Pace:
    for answer in answers:
        pace = pace.after(answer, PASSES, DEMAND, NUMBER)
    return pace


# --- what is measured --------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=20))
def test_seconds_are_a_moving_average(times: list[float]) -> None:
    pace = through(Pace("native", k=3), *(ok({"train_s": t}, k=3) for t in times))
    n = len(times) - 1
    weights = [(1 - WEIGHT) ** n, *(WEIGHT * (1 - WEIGHT) ** (n - i) for i in range(1, n + 1))]
    want = sum(w * t for w, t in zip(weights, times, strict=True))
    assert pace.training_s(3, PASSES) == pytest.approx(want, rel=1e-9)
    assert pace.training_s(3, 2 * PASSES) == pytest.approx(2 * want, rel=1e-9)


@given(st.sets(st.integers(1, 12), min_size=1), st.floats(0.0, 5.0), st.floats(0.01, 5.0))
def test_what_was_not_measured_is_scaled_from_the_nearest(
    measured: set[int], fixed: float, each: float
) -> None:
    """Steps take `fixed + each * k`: upwards that is never too little, downwards never too much."""
    pace = Pace("native", {k: (fixed + each * k) / PASSES for k in measured})
    for k in range(1, 13):
        nearest = min(abs(j - k) for j in measured)
        source = k - nearest if k - nearest in measured else k + nearest
        want = (fixed + each * source) * k / source
        told, true = pace.training_s(k, PASSES), fixed + each * k
        assert told == pytest.approx(want)
        assert told >= true * (1 - 1e-9) if source <= k else told <= true * (1 + 1e-9)


def test_what_was_trained_is_measured_where_a_policy_gave_fewer() -> None:
    """What it can hold stays: it need not be earned again, one round in good order at a time."""
    before = Pace("native", k=3, limit="memory", streak=1)
    paces, samples = {"a": before}, {"a": PASSES // DEMAND.epochs}
    for k, train_s in ((1, 6.0), (2, 9.0)):
        paces = paces_after(
            paces, {"a": k}, {"a": ok({"train_s": train_s}, k=k)}, samples, DEMAND, NUMBER
        )
    seconds = {1: 6.0 / PASSES, 2: 9.0 / PASSES}
    assert paces["a"].seconds == pytest.approx(seconds)
    assert paces["a"] == dataclasses.replace(before, seconds=paces["a"].seconds, clean=2)


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        (Answer("late"), "too_many"),
        (Answer("gone", observed=Observed(vanished=True)), "suspect"),
        (Answer("late", observed=Observed(restarted=True)), "too_many"),
    ],
    ids=["late", "vanished", "restarted"],
)
def test_what_went_wrong_went_wrong_with_what_was_given(answer: Answer, field: str) -> None:
    """Two experts of the three that it could hold."""
    paces = paces_after(
        {"a": Pace("native", k=3)}, {"a": 2}, {"a": answer}, {"a": 10}, DEMAND, NUMBER
    )
    assert getattr(paces["a"], field) == 2 and paces["a"].k == 3


def test_nothing_measured_takes_no_time() -> None:
    assert Pace("native").round_s(4, PASSES, DEMAND) == 0.0


def test_a_link_is_measured_both_ways() -> None:
    pace = through(Pace("native", k=2), ok({"fetch_bytes": 8000.0, "fetch_s": 4.0}, 5000, 1.0))
    assert pace.down == Rate(8000.0, 4.0) and pace.up == Rate(5000, 1.0)
    # 4000 + 2 * 1100 bytes each way.
    assert pace.transfer_s(2, DEMAND) == pytest.approx(6200 / 2000 + 6200 / 5000)
    assert pace.round_s(2, PASSES, DEMAND) == pace.transfer_s(2, DEMAND)


def test_a_round_that_moves_little_says_little_of_a_link() -> None:
    """Almost all of its time is waiting."""
    quick = ok({"fetch_bytes": 1e6, "fetch_s": 1.0})
    pace = through(Pace("native", k=2), quick, ok({"fetch_bytes": 100.0, "fetch_s": 0.1}))
    assert pace.down is not None and pace.down.seconds_for(10**6) == pytest.approx(1.0, rel=0.05)
    assert through(pace, ok({"fetch_bytes": 0.0, "fetch_s": 0.0})).down == pace.down


@given(
    st.lists(
        st.tuples(*[st.floats(0.01, 1e6) | st.sampled_from(ODD)] * 3, st.booleans()), max_size=8
    ),
    st.integers(1, 10**9),
)
def test_whatever_a_device_tells_a_prediction_is_a_time(
    told: list[tuple[float, float, float, bool]], passes: int
) -> None:
    pace = Pace("native", k=2)
    for train_s, moved, seconds, good in told:
        telemetry = {"train_s": train_s, "fetch_bytes": moved, "fetch_s": seconds}
        answer = ok(telemetry) if good else late(telemetry=telemetry)
        pace = pace.after(answer, passes, DEMAND, NUMBER)
    for k in (1, 2, 64):
        assert pace.round_s(k, passes, DEMAND) >= 0.0  # and no NaN


def test_figures_that_are_none_change_nothing() -> None:
    pace = through(Pace("native", k=2), ok({"train_s": 6.0}))
    for odd in (math.nan, math.inf, -1.0, 0.0):
        again = through(pace, ok({"train_s": odd, "fetch_bytes": odd, "fetch_s": odd}))
        assert (again.seconds, again.down, again.up) == (pace.seconds, None, None)
    assert through(pace, ok({})).seconds == pace.seconds


# --- falling short -----------------------------------------------------------------------------


def test_a_missed_deadline_is_a_measurement() -> None:
    """At that k it took longer: whatever was measured before."""
    before = through(Pace("native", k=3), ok({"train_s": 6.0}, 6000, 10.0, k=3))
    pace = through(before, late())
    assert pace.round_s(3, PASSES, DEMAND) >= DEMAND.deadline_s
    assert (pace.too_many, pace.ceiling, pace.cause, pace.clean) == (3, 2, "compute", 0)
    assert through(Pace("native", k=1), late()).ceiling == 1


@pytest.mark.parametrize(
    ("telemetry", "uplink", "cause"),
    [
        ({}, (0, 0.0), "compute"),
        ({"train_s": 40.0, "fetch_s": 5.0}, (3000, 10.0), "compute"),
        ({"train_s": 10.0, "fetch_s": 5.0}, (3000, 30.0), "link"),
        ({"train_s": 10.0, "fetch_s": 30.0}, (0, 5.0), "link"),
    ],
)
def test_what_a_late_device_lacks(
    telemetry: dict[str, float], uplink: tuple[int, float], cause: str
) -> None:
    size, seconds = uplink
    answer = late(telemetry=telemetry, uplink_bytes=size, uplink_s=seconds)
    pace = through(Pace("native", k=3), answer)
    assert (pace.too_many, pace.cause) == (3, cause)
    assert pace.up == (Rate(size, seconds) if size else None)
    if cause == "compute":
        assert pace.round_s(3, PASSES, DEMAND) >= DEMAND.deadline_s
    else:
        assert pace.training_s(3, PASSES) == telemetry["train_s"]


def test_a_device_that_the_server_kept_waiting_is_not_late() -> None:
    pace = through(Pace("native", k=3), ok({"train_s": 6.0}, k=3))
    assert through(pace, late(kept_waiting=True, telemetry={"train_s": 1.0})) == pace


@pytest.mark.parametrize("status", ["gone", "failed", "rejected"])
def test_other_ends_say_nothing_of_the_pace(status: str) -> None:
    """What a refusal for lack of memory needs is a `Cap`; a goodbye is no failure."""
    pace = through(Pace("native", k=3), ok({"train_s": 6.0}, k=3))
    assert through(pace, Answer(status)) == pace  # type: ignore[arg-type]


def test_a_process_that_ended_at_work_is_told_by_the_next_hello() -> None:
    before = Pace("native", k=3, clean=2)
    vanished = through(before, Answer("gone", observed=Observed(vanished=True)))
    assert vanished == dataclasses.replace(before, suspect=3)
    assert vanished.returned(None, 1, NUMBER) == before  # it had only lost its connection
    killed = vanished.returned("unknown", 1, NUMBER)
    assert (killed.too_many, killed.ceiling, killed.cause) == (3, 2, "memory")
    assert (killed.suspect, killed.clean) == (0, 0)
    assert before.returned("unknown", 1, NUMBER) == before  # it came anew between two rounds


KILLED = Answer("killed")


def test_a_kill_lowers_at_once_and_says_so() -> None:
    pace = through(Pace("native", k=3, clean=2), KILLED)
    assert (pace.too_many, pace.ceiling, pace.cause, pace.clean) == (3, 2, "memory", 0)
    assert pace.killed and (pace.sits_out, pace.rests) == (0, 0)
    # Another cause of another fall is told as it is.
    assert not through(dataclasses.replace(pace, k=2), late()).killed


@pytest.mark.parametrize("kills", range(MAX_DOUBLINGS + 3))
def test_with_the_fewest_experts_a_kill_makes_it_sit_out_for_ever_longer(kills: int) -> None:
    pace, number = Pace("native", k=1), NUMBER
    for kill in range(kills + 1):
        pace = pace.after(KILLED, PASSES, DEMAND, number)
        rest = HOLD * 2 ** min(kill, MAX_DOUBLINGS)
        assert (pace.sits_out, pace.rests, pace.ceiling) == (number + rest, kill + 1, 1)
        number = pace.sits_out + 1
    # After enough rounds in good order all that is forgotten.
    pace = through(pace, *[ok({})] * 3 * HOLD)
    assert (pace.rests, pace.killed, pace.too_many) == (0, False, 0)


def test_the_fewest_may_be_all() -> None:
    """Where all experts go everywhere, fewer are of no use."""
    everything = dataclasses.replace(DEMAND, least=4)
    pace = Pace("native", k=4).after(KILLED, PASSES, everything, NUMBER)
    assert pace.sits_out == NUMBER + HOLD


def test_a_kill_may_be_told_by_the_next_hello() -> None:
    for k, sits_out in ((3, 0), (1, NUMBER + HOLD)):
        vanished = through(Pace("native", k=k), Answer("gone", observed=Observed(vanished=True)))
        killed = vanished.returned("killed", 1, NUMBER)
        assert killed == through(Pace("native", k=k), KILLED)
        assert (killed.suspect, killed.sits_out) == (0, sits_out)
    idle = Pace("native", k=3)
    assert idle.returned("killed", 1, NUMBER) == idle  # it was between two rounds


def test_what_was_not_its_memory_lowers_nothing() -> None:
    vanished = through(Pace("native", k=3), Answer("gone", observed=Observed(vanished=True)))
    assert vanished.returned("other", 1, NUMBER) == Pace("native", k=3)


def test_the_peak_of_its_memory_is_noted() -> None:
    told = {"peak_rss_mib": 40.0, "memory_limit_mib": 64.0}
    pace = through(Pace("native", k=3), ok(told, k=3))
    assert pace.peak == Peak(3, 40.0, 64.0)
    assert through(pace, late(telemetry={**told, "peak_rss_mib": 50.0})).peak == Peak(3, 50.0, 64.0)
    assert through(pace, KILLED).peak == pace.peak
    assert through(pace, ok({})).peak is None


@pytest.mark.parametrize("status", ["late", "gone"])
def test_a_process_that_ended_and_came_back_within_the_round(status: str) -> None:
    answer = Answer(status, observed=Observed(vanished=status == "gone", restarted=True))  # type: ignore[arg-type]
    pace = through(Pace("native", k=3), answer)
    assert (pace.too_many, pace.cause, pace.suspect, pace.seconds) == (3, "memory", 0, {})


def test_one_that_came_back_and_finished_held_its_experts() -> None:
    answer = dataclasses.replace(ok({"train_s": 6.0}), observed=Observed(restarted=True))
    assert through(Pace("native", k=3), answer).too_many == 0


def test_the_lower_ceiling_counts() -> None:
    pace = through(Pace("native", k=4), late())
    again = through(dataclasses.replace(pace, k=2), late())
    assert again.too_many == 2
    assert through(again, late()).too_many == 2


# --- trust comes back --------------------------------------------------------------------------


@pytest.mark.parametrize("falls", range(MAX_DOUBLINGS + 3))
def test_each_fall_takes_twice_as_long_to_forget(falls: int) -> None:
    hold = HOLD * 2 ** min(max(falls - 1, 0), MAX_DOUBLINGS)
    fallen = Pace("native", {2: 0.1, 3: 0.2}, k=2, too_many=3, cause="compute", falls=falls)
    pace = through(fallen, *[ok({"train_s": 60.0})] * (hold - 1))
    assert (pace.too_many, set(pace.seconds)) == (3, {2, 3})
    pace = through(pace, ok({"train_s": 60.0}))
    assert (pace.too_many, pace.ceiling, set(pace.seconds)) == (4, 3, {2})
    assert pace.falls == falls


def test_what_no_longer_binds_is_forgotten_whole() -> None:
    """It was given fewer than the ceiling for long: something else binds it."""
    pace = through(Pace("native", k=2, too_many=4, cause="compute", falls=1), *[ok({})] * HOLD)
    assert pace == Pace("native", k=2)


def test_rounds_that_go_wrong_do_not_count_as_clean() -> None:
    pace = through(Pace("native", k=2, too_many=3, falls=1), *[ok({})] * (HOLD - 1))
    for answer in (Answer("failed"), Answer("rejected"), Answer("gone")):
        assert through(pace, answer).too_many == 3
    assert through(pace, late(), ok({})).clean == 1


# --- carried forward ---------------------------------------------------------------------------

rates = st.none() | st.builds(Rate, st.floats(1, 1e9), st.floats(1e-6, 1e6))
small = st.integers(0, 64)
limits = st.sampled_from(["asked", "memory", "compute", "link"])


@given(
    st.builds(
        Pace,
        st.sampled_from(["native", "executorch"]),
        st.dictionaries(st.integers(1, 64), st.floats(0, 1e6), max_size=4),
        *[rates] * 2,
        small,
        limits,
        *[small] * 4,
        limits,
        small,
        st.booleans(),
        *[small] * 2,
        st.none() | st.builds(Peak, st.integers(1, 64), st.floats(1, 1e6), st.floats(1, 1e6)),
    )
)
def test_a_checkpoint_keeps_it(pace: Pace) -> None:
    assert Pace.from_plain(msgpack.unpackb(msgpack.packb(pace.to_plain()))) == pace


def test_all_paces_are_carried_and_those_at_work_move() -> None:
    paces = {name: Pace("native", k=2) for name in "abc"}
    answers = {"a": ok({"train_s": 6.0}), "c": late()}
    after = paces_after(paces, {"a": 2, "c": 2}, answers, {"a": 10, "c": 20}, DEMAND, NUMBER)
    assert list(after) == ["a", "b", "c"] and after["b"] is paces["b"]
    assert after["a"].seconds == {2: 6.0 / (10 * DEMAND.epochs)}
    assert after["c"].seconds == {2: DEMAND.deadline_s / (20 * DEMAND.epochs)}
