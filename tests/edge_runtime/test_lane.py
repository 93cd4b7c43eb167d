"""One direction of an emulated link, with a clock of our own."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.transport.lane import QUEUE_BYTES, SEGMENT_BYTES, Lane

RATES = st.sampled_from([0.0, 5470.0, 26e3, 375e3, 44.5e6, 940e6])
DELAYS = st.sampled_from([0.0, 0.001, 0.05, 1.5])
LOSSES = st.sampled_from([0.0, 0.01, 0.3])


def take_all(lane: Lane, now_s: float) -> bytes:
    taken = b""
    while (piece := lane.first(now_s)) is not None:
        taken += piece
        lane.take(len(piece))
    return taken


class Run:
    """What went through a lane in one run: what was put in, and what came out when."""

    def __init__(self, lane: Lane, steps: list[tuple[float, int, bool]]) -> None:
        """`steps`: seconds to wait, bytes to put in if there is room, whether to take."""
        random = Random(0)
        self.put, self.got = b"", b""
        self.came: list[tuple[float, int]] = []  # when, how many until then
        self.most_held = 0
        now_s = 0.0
        for wait_s, count, takes in steps:
            now_s += wait_s
            data = random.randbytes(min(count, lane.room))
            self.put += data
            lane.put(data, now_s)
            self.most_held = max(self.most_held, len(self.put) - len(self.got))
            if takes:
                self._take(lane, now_s)
        lane.end(now_s)
        self._take(lane, now_s)
        while not lane.is_over(now_s):
            next_s = lane.next_s()
            assert next_s is not None and next_s > now_s
            now_s = next_s
            self._take(lane, now_s)

    def _take(self, lane: Lane, now_s: float) -> None:
        self.got += take_all(lane, now_s)
        self.came.append((now_s, len(self.got)))


STEPS = st.lists(st.tuples(st.floats(0, 2), st.integers(0, 100_000), st.booleans()), max_size=20)


@given(RATES, DELAYS, LOSSES, STEPS)
def test_a_lane_keeps_order_and_loses_nothing(
    rate_bps: float, delay_s: float, loss: float, steps: list[tuple[float, int, bool]]
) -> None:
    lane = Lane(rate_bps, delay_s, loss, Random(1))
    run = Run(lane, steps)
    assert run.got == run.put
    assert run.most_held <= lane.most_bytes
    assert lane.room == lane.most_bytes


@given(RATES.filter(bool), DELAYS, LOSSES, STEPS)
def test_a_lane_is_never_faster_than_its_bucket(
    rate_bps: float, delay_s: float, loss: float, steps: list[tuple[float, int, bool]]
) -> None:
    lane = Lane(rate_bps, delay_s, loss, Random(1))
    for now_s, count in Run(lane, steps).came:
        since_s = max(0.0, now_s - delay_s)  # time, as it all started at 0
        assert count <= lane.burst_bytes + rate_bps / 8 * since_s + 1e-6 * count + 1


@given(RATES.filter(bool), DELAYS, st.booleans())
def test_a_full_lane_keeps_its_rate_whatever_the_delay(
    rate_bps: float, delay_s: float, sleepy: bool
) -> None:
    """Its owner looks only when a piece is due, and when sleepy only at every fifth."""
    lane = Lane(rate_bps, delay_s, 0.0, Random(1))
    taken, now_s, looks = 0, 0.0, 0
    while taken < 4 * lane.most_bytes:
        lane.put(bytes(lane.room), now_s)
        next_s = lane.next_s()
        assert next_s is not None
        now_s = max(now_s, next_s)
        looks += 1
        if not sleepy or looks % 5 == 0:
            taken += len(take_all(lane, now_s))
    assert now_s <= delay_s + (taken + lane.most_bytes) / (rate_bps / 8)
    # All that is left of the difference is what was in the lane, and 20 ms of the rate.
    assert now_s >= delay_s + (taken - lane.burst_bytes) / (rate_bps / 8) - 1e-6


@given(DELAYS, st.integers(1, 50_000))
def test_bytes_arrive_after_the_delay_and_not_before(delay_s: float, count: int) -> None:
    lane = Lane(0, delay_s, 0.0, Random(1))
    lane.put(bytes(count), 7.0)
    lane.end(7.0)
    if delay_s:
        assert lane.first(7.0 + delay_s * 0.99) is None
    assert not lane.is_over(7.0 + delay_s * 0.99)
    assert len(take_all(lane, 7.0 + delay_s)) == count
    assert lane.is_over(7.0 + delay_s)


def test_a_burst_is_twenty_milliseconds_or_a_packet() -> None:
    assert Lane(80e6, 0, 0, Random(1)).burst_bytes == 200_000
    slow = Lane(8 * SEGMENT_BYTES, 0, 0, Random(1))  # a packet a second
    slow.put(bytes(3 * SEGMENT_BYTES), 0.0)
    assert len(take_all(slow, 0.0)) == SEGMENT_BYTES
    assert take_all(slow, 0.99) == b""
    assert len(take_all(slow, 1.0)) == SEGMENT_BYTES
    slow.put(bytes(SEGMENT_BYTES), 60.0)  # after the third, the bucket has filled again: once
    assert len(take_all(slow, 60.0)) == 2 * SEGMENT_BYTES


@pytest.mark.parametrize(("delay_s", "penalty_s"), [(0.25, 0.5), (0.001, 0.02)])
def test_a_lost_packet_costs_one_more_round_trip_for_it_and_what_is_behind(
    delay_s: float, penalty_s: float
) -> None:
    class Dice(Random):
        def random(self) -> float:
            return next(rolls)

    rolls = iter([0.9, 0.01, 0.9, 0.9])  # the second packet is lost, once
    lane = Lane(0, delay_s, 0.1, Dice())
    lane.put(bytes(3 * SEGMENT_BYTES), 0.0)
    assert len(take_all(lane, delay_s)) == SEGMENT_BYTES
    assert take_all(lane, delay_s + 0.99 * penalty_s) == b""
    assert len(take_all(lane, delay_s + penalty_s)) == 2 * SEGMENT_BYTES


@given(st.integers(0, 5))
def test_the_seed_decides_what_is_lost(seed: int) -> None:
    def times(seed: int) -> list[float]:
        lane = Lane(0, 0.1, 0.3, Random(seed))
        lane.put(bytes(40 * SEGMENT_BYTES), 0.0)
        found = []
        while (next_s := lane.next_s()) is not None:
            found.append(next_s)
            lane.take(SEGMENT_BYTES)
        return found

    assert times(seed) == times(seed)
    assert times(seed) != times(seed + 1)


def test_bytes_may_be_taken_in_parts() -> None:
    lane = Lane(0, 0, 0, Random(1))
    data = bytes(range(256)) * 40
    lane.put(data, 0.0)
    got = b""
    while (piece := lane.first(0.0)) is not None:
        got += piece[:100]
        lane.take(min(100, len(piece)))
    assert got == data
    assert lane.room == lane.most_bytes


def test_many_small_writes_do_not_outgrow_the_lane() -> None:
    lane = Lane(8, 0, 0, Random(1))
    writes = 0
    while lane.room:
        lane.put(b"!", 0.0)
        writes += 1
    assert writes < QUEUE_BYTES / 100
