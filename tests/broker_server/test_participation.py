"""Who takes part: the promised numbers, and fair over time whoever comes and goes."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.participation import choose, number_of
from broker_server.seeds import derive_seed
from edge_runtime.errors import ConfigError

NAMES = [f"device-{i:02}" for i in range(12)]
SOMEONE = st.sets(st.sampled_from(NAMES), min_size=1).map(sorted)
SHARES = st.floats(0.01, 1.0)
SEEDS = st.integers(0, 2**31 - 1)
TOLERANCE = 1e-6


def owed(rounds: list[tuple[list[str], list[str]]]) -> dict[str, Fraction]:
    """What (available, chosen) of each round leave a client: its fair sum less its rounds."""
    sums: dict[str, Fraction] = {}
    for available, chosen in rounds:
        for client in available:
            share = Fraction(len(chosen), len(available)) - chosen.count(client)
            sums[client] = sums.get(client, Fraction(0)) + share
    return sums


def play(
    rounds: list[list[str]], fraction: float, count: int = 0, seed: int = 0
) -> tuple[list[tuple[list[str], list[str]]], dict[str, float]]:
    """The (available, chosen) of each round, and the credit after the last."""
    credit: dict[str, float] = {}
    played = []
    for number, available in enumerate(rounds):
        chosen, credit = choose(available, credit, fraction, count, derive_seed(seed, number))
        played.append((available, chosen))
    return played, credit


@given(st.integers(1, 200), SHARES, st.integers(0, 300))
def test_how_many_take_part(available: int, fraction: float, count: int) -> None:
    number = number_of(available, fraction, count)
    assert 1 <= number <= available
    if count:
        assert number == min(count, available)
    else:
        assert number - 1 < fraction * available <= number + 1e-6


@pytest.mark.parametrize(
    ("available", "fraction", "number"),
    [
        (8, 0.5, 4),
        (5, 0.5, 3),
        (100, 0.07, 7),
        (10, 0.3, 3),
        (3, 1.0, 3),
        (4, 0.01, 1),
        (0, 0.5, 0),
    ],
)
def test_a_fraction_is_rounded_up(available: int, fraction: float, number: int) -> None:
    assert number_of(available, fraction, 0) == number
    names = [f"device-{i}" for i in range(available)]
    assert len(choose(names, {}, fraction, 0, 1)[0]) == number


def test_all_take_part_at_fraction_1_and_owe_nothing() -> None:
    assert choose(NAMES, {}, 1.0, 0, 5) == (NAMES, dict.fromkeys(NAMES, 0.0))


def test_nobody_there_changes_nothing() -> None:
    assert choose([], {"a": 0.5}, 0.5, 0, 1) == ([], {"a": 0.5})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), SHARES, st.integers(0, 12), SEEDS)
def test_numbers_of_rounds_differ_by_at_most_1_when_all_are_there(
    clients: int, fraction: float, count: int, seed: int
) -> None:
    names = NAMES[:clients]
    played, credit = play([names] * 40, fraction, count, seed)
    taken = Counter(dict.fromkeys(names, 0))
    for _, chosen in played:
        taken.update(chosen)
        assert max(taken.values()) - min(taken.values()) <= 1
    fair = owed(played)
    assert all(credit[name] == pytest.approx(fair[name], abs=TOLERANCE) for name in names)


@settings(max_examples=150, deadline=None)
@given(st.lists(SOMEONE, min_size=1, max_size=60), SHARES, st.integers(0, 4), SEEDS)
def test_nobody_lags_by_the_number_of_clients_whoever_comes_and_goes(
    rounds: list[list[str]], fraction: float, count: int, seed: int
) -> None:
    """The bound of the module's proof, after every round; and credit is what is owed."""
    played, credit = play(rounds, fraction, count, seed)
    for end in range(1, len(played) + 1):
        fair = owed(played[:end])
        assert max(map(abs, fair.values())) <= len(fair) - 1
        sums = sorted(fair.values(), reverse=True)
        for j in range(1, len(fair) + 1):
            assert sum(sums[:j]) <= j * (len(fair) - j)
    assert set(credit) == set(fair)
    assert all(credit[name] == pytest.approx(fair[name], abs=TOLERANCE) for name in fair)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_with_random_presence_nobody_lags_by_two_rounds(fraction: float) -> None:
    source = random.Random(7)
    shares = {name: source.uniform(0.1, 0.9) for name in NAMES}
    rounds = [[name for name in NAMES if source.random() < shares[name]] for _ in range(500)]
    played, _ = play([names for names in rounds if names], fraction)
    for end in range(1, len(played), 7):
        assert max(map(abs, owed(played[:end]).values())) < 2


def test_who_was_away_is_neither_paid_nor_charged_and_a_newcomer_starts_at_0() -> None:
    credit = {"away": 0.75, "a": -0.5, "b": 0.25}
    chosen, after = choose(["a", "b", "new"], credit, 0.5, 1, 3)
    assert chosen == ["b"]
    assert credit == {"away": 0.75, "a": -0.5, "b": 0.25}
    third = pytest.approx(1 / 3, abs=1e-9)
    assert after["away"] == 0.75
    assert [after["a"] + 0.5, after["b"] + 0.75, after["new"]] == [third] * 3


@given(SOMEONE, SHARES, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter_and_is_kept(
    available: list[str], fraction: float, seed: int, source: Any
) -> None:
    _, credit = play([NAMES, NAMES[::2], NAMES[3:]], 0.4, seed=seed)
    shuffled = source.sample(available, len(available))
    chosen, after = choose(available, credit, fraction, 0, seed)
    again, after_again = choose(shuffled, credit, fraction, 0, seed)
    assert sorted(again) == sorted(chosen) and after_again == after
    assert again == [name for name in shuffled if name in chosen]


def test_the_seed_draws_the_lots() -> None:
    counts: Counter[str] = Counter()
    for seed in range(240):
        counts.update(choose(NAMES, {}, 0.25, 0, seed)[0])
    assert min(counts.values()) > 30 and len(counts) == 12  # 60 on average


@pytest.mark.parametrize("clients", [3, 7, 11])
def test_after_a_full_turn_all_are_exactly_equal_again(clients: int) -> None:
    """Else rounding, and not the lottery, would decide who is first in the next turn."""
    names = NAMES[:clients]
    _, credit = play([names] * clients, 0.5, count=1)
    assert len(set(credit.values())) == 1


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, math.nan])
def test_a_bad_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction must be above 0 and at most 1, not"):
        choose(NAMES, {}, fraction, 0, 0)
    assert len(choose(NAMES, {}, fraction, 2, 0)[0]) == 2


def test_a_bad_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="count must be 1 or more, or 0 for the fraction, not -1"):
        choose(NAMES, {}, 0.5, -1, 0)
