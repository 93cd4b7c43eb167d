"""Seeds: the same parts give the same seed for ever, other parts another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.seeds import derive_seed

PARTS = st.lists(st.integers(-5, 5) | st.text("ab-01", max_size=3), max_size=4)


def test_seeds_never_change() -> None:
    """These figures are part of what makes an old run repeatable."""
    assert derive_seed(0, 1, "device-00") == 1167673684
    assert derive_seed(0, 1, "assignment") == 1588677832


@given(PARTS)
def test_they_fit_every_generator(parts: list[int | str]) -> None:
    assert 0 <= derive_seed(*parts) < 2**31


@given(PARTS, PARTS)
def test_equal_parts_give_equal_seeds_and_others_differ(
    left: list[int | str], right: list[int | str]
) -> None:
    assert (derive_seed(*left) == derive_seed(*right)) == (left == right)


@pytest.mark.parametrize(
    ("left", "right"),
    [((1, 23), (12, 3)), ((1, "2"), (1, 2)), (("ab", "c"), ("a", "bc")), ((1,), (1, ""))],
)
def test_where_a_part_ends_matters(
    left: tuple[int | str, ...], right: tuple[int | str, ...]
) -> None:
    assert derive_seed(*left) != derive_seed(*right)


def test_rounds_and_clients_get_seeds_of_their_own() -> None:
    seeds = {derive_seed(0, t, f"device-{c:02d}") for t in range(1, 51) for c in range(40)}
    assert len(seeds) >= 50 * 40 - 5  # a birthday or two among 2**31
