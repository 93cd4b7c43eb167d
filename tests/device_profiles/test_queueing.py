"""The arithmetic of buckets and queues, as commands of `tc`."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.emulation import queueing
from edge_runtime.transport.shape import Shape

rates = st.floats(1000, 2e9)
shapes = st.builds(Shape, rates, rates, st.floats(0, 2), st.floats(0, 0.5))


def options(command: str) -> dict[str, str]:
    """The words of a `tc` command, each with the next one."""
    return dict(itertools.pairwise(command.split()))


@given(shapes)
def test_a_bucket_is_fit_for_its_rate(shape: Shape) -> None:
    (command,) = queueing.qdiscs("x", shape, shape.up_bps, netem=False)
    found = options(command)
    frame_bps = int(found["rate"].removesuffix("bit"))
    # 1448 of 1514 bytes are payload.
    assert shape.up_bps <= frame_bps * 1448 / 1514 < shape.up_bps + 1
    # At least two packets; and what goes out in a tick of a slow kernel's clock.
    assert int(found["burst"]) >= max(2 * 1514, int(frame_bps / 8 / 100))
    assert int(found["limit"]) >= max(24 << 10, int(frame_bps / 8))


@given(shapes)
def test_netem_is_under_the_bucket_and_holds_what_is_on_its_way(shape: Shape) -> None:
    commands = queueing.qdiscs("x", shape, shape.up_bps, netem=True)
    if not (shape.delay_s or shape.loss):
        assert len(commands) == 1
        return
    bucket, netem = map(options, commands)
    assert (bucket["root"], netem["parent"]) == ("handle", "1:1")
    assert 1514 * int(netem["limit"]) >= int(bucket["limit"]) + shape.up_bps / 8 * shape.delay_s
    assert ("delay" in netem) == (shape.delay_s > 0)
    assert ("loss" in netem) == (shape.loss > 0)


def test_a_link_without_limits_has_no_disciplines() -> None:
    assert queueing.qdiscs("x", Shape(0, 0), 0, netem=True) == []
    (command,) = queueing.qdiscs("x", Shape(0, 0, delay_s=0.05, loss=0.015), 0, netem=True)
    assert command == (
        "qdisc add dev x root handle 10: netem limit 20000 delay 50000us loss 1.500000%"
    )


@given(st.floats(0, 1e9), st.booleans())
def test_packets_come_one_by_one_unless_the_link_is_fast(rate_bps: float, lossy: bool) -> None:
    bundled = queueing.has_offload(Shape(0, 0, loss=0.1 * lossy), rate_bps)
    assert bundled == (not lossy and (rate_bps == 0 or rate_bps >= 150e6))


def test_disciplines_are_read_back() -> None:
    answer = [
        {"kind": "tbf", "handle": "1:", "root": True, "options": {"rate": 49011, "burst": 3028}},
        {"kind": "netem", "options": {"delay": {"delay": 0.05}, "loss-random": {"loss": 0.01}}},
    ]
    found = queueing.shape_of(answer)
    assert found.rate_bps == pytest.approx(375e3, rel=1e-4)
    assert (found.delay_s, found.loss) == (0.05, 0.01)
    assert queueing.shape_of([{"kind": "noqueue", "root": True, "options": {}}]).rate_bps == 0
