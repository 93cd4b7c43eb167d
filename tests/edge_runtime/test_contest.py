"""When lost connections mean that somebody ends them on purpose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.transport.contest import LOSSES, SHORT_CONNECTION_S, WINDOW_S, Contest


def after(lengths_s: list[float], pause_s: float) -> list[bool]:
    """What is found after each of these connections, with pauses in between."""
    contest, now_s, found = Contest(), 100.0, []
    for length_s in lengths_s:
        contest.connected(now_s)
        now_s += length_s
        contest.lost(now_s)
        found.append(contest.found)
        now_s += pause_s
    return found


@pytest.mark.parametrize(
    ("lengths_s", "pause_s", "found_at"),
    [
        ([1.0] * (LOSSES + 1), 1.0, LOSSES - 1),
        ([1.0] * LOSSES, WINDOW_S / (LOSSES - 1), None),  # too far apart
        ([1.0] * (LOSSES - 1) + [60.0] + [1.0] * (LOSSES - 1), 1.0, None),  # a good one
        ([SHORT_CONNECTION_S + 1] * 3 * LOSSES, 0.0, None),
    ],
)
def test_short_connections_in_a_row_are_a_contest(
    lengths_s: list[float], pause_s: float, found_at: int | None
) -> None:
    found = after(lengths_s, pause_s)
    assert (found.index(True) if True in found else None) == found_at


@given(st.lists(st.floats(0, 10), max_size=40), st.floats(0, 10))
def test_it_takes_so_many_losses_and_stays_found(lengths_s: list[float], pause_s: float) -> None:
    found = after(lengths_s, pause_s)
    assert not any(found[: LOSSES - 1])
    assert found == sorted(found)
