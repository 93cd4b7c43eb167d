"""Splits cover everything once, keep chains whole, honour their scheme, and repeat themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from device_profiles.partition import Scheme, holdout, parse_scheme, partition
from edge_runtime.errors import ConfigError, DataError

SCHEMES = ["iid", "dirichlet(0.3)", "classes(2)", "natural"]
BALANCED = np.repeat(np.arange(10), 100)  # 1000 samples in class order


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_chains(labels: Any, seed: int) -> Any:
    """Random chains over consecutive samples of one label, numbered in a scrambled way."""
    starts = rng(seed).random(len(labels)) < 0.3
    starts[1:] |= labels[1:] != labels[:-1]
    return np.cumsum(starts) * 7919 % 100003


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("iid", Scheme("iid")),
        (" natural ", Scheme("natural")),
        ("dirichlet(0.5)", Scheme("dirichlet", 0.5)),
        ("dirichlet( 1e-3 )", Scheme("dirichlet", 0.001)),
        ("classes(4)", Scheme("classes", 4)),
    ],
)
def test_schemes_that_can_be_read(text: str, scheme: Scheme) -> None:
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize(
    "text",
    ["", "IID", "iid()", "iid\niid", "natural(3)", "classes(2) x", "dirichlet((1))"]
    + [f"dirichlet{value}" for value in ("", "()", "(0)", "(-1)", "(nan)", "(inf)", "(2e6)", "(a)")]
    + [f"classes{value}" for value in ("", "()", "(0)", "(1.5)", "(nan)", "(inf)", "(a)")],
)
def test_schemes_that_cannot(text: str) -> None:
    with pytest.raises(ConfigError, match=r"iid, natural, dirichlet\(alpha\).*classes\(n\)"):
        parse_scheme(text)


@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(60, 400),
    classes=st.integers(1, 8),
    devices=st.integers(1, 12),
    scheme=st.sampled_from([*SCHEMES, "dirichlet(0.01)", "dirichlet(1000)", "classes(9)"]),
    chained=st.booleans(),
)
@settings(max_examples=200)
def test_every_split(
    seed: int, samples: int, classes: int, devices: int, scheme: str, chained: bool
) -> None:
    labels = np.sort(rng(seed).integers(0, classes, samples))
    people = rng(seed + 1).integers(0, 15, samples)
    chains: Any = make_chains(labels, seed) if chained else None
    minimum = 3

    def split() -> list[Any]:
        return partition(labels, devices, scheme, rng(seed), people, chains, minimum)

    kind = parse_scheme(scheme)
    present = np.unique(labels)
    units = len(np.unique(chains)) if chained else samples
    assume(units >= devices and len(np.unique(people)) >= devices)
    if kind.kind == "classes" and devices * kind.value < len(present):
        with pytest.raises(ConfigError, match="use more devices or classes"):
            split()
        return
    try:
        parts = split()
    except DataError as error:
        # Only whole chains can be too coarse for the minimum.
        assert chained and kind.kind == "dirichlet" and "splitting a chain" in str(error)
        return

    assert len(parts) == devices
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(samples))
    for part in parts:
        assert len(part) and (np.diff(part) > 0).all()
    if kind.kind == "dirichlet":
        assert min(map(len, parts)) >= minimum
    if kind.kind == "classes":
        assert max(len(np.unique(labels[part])) for part in parts) <= kind.value
    if chained and kind.kind != "natural":
        assert sum(len(np.unique(chains[part])) for part in parts) == units
    for one, same in zip(parts, split(), strict=True):
        np.testing.assert_array_equal(one, same)


def test_another_seed_gives_another_split() -> None:
    for scheme in ("iid", "dirichlet(0.5)", "classes(2)"):
        one, two = (partition(BALANCED, 8, scheme, rng(seed)) for seed in (1, 2))
        assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True)), scheme


def test_iid_devices_are_equally_large_and_see_every_class() -> None:
    parts = partition(BALANCED, 7, "iid", rng())
    assert sorted(map(len, parts)) == [142, 143, 143, 143, 143, 143, 143]
    assert all(len(np.unique(BALANCED[part])) == 10 for part in parts)


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    """A device's share of a class is Beta(a, b): its mean and variance, within 5 standard errors.

    Over m classes the standard error of the mean is sqrt(variance / m), that of the variance is
    sqrt((kurtosis - 1) / m) of it: 0.005 and 3.8 % here. Half or double alpha is 40 % off or more.
    """
    devices, alpha, classes, of_class = 5, 0.5, 2000, 200
    labels = np.repeat(np.arange(classes), of_class)
    parts = partition(labels, devices, f"dirichlet({alpha})", rng(3))
    counts = [np.bincount(labels[part], minlength=classes) for part in parts]
    shares = np.array(counts) / of_class

    a, b = alpha, alpha * (devices - 1)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    excess = 6 * ((a - b) ** 2 * (a + b + 1) - a * b * (a + b + 2))
    kurtosis = 3 + excess / (a * b * (a + b + 2) * (a + b + 3))
    mean_error = np.sqrt(variance / classes)
    variance_error = variance * np.sqrt((kurtosis - 1) / classes)
    np.testing.assert_allclose(shares.mean(axis=1), 1 / devices, rtol=0, atol=5 * mean_error)
    np.testing.assert_allclose(shares.var(axis=1), variance, rtol=0, atol=5 * variance_error)


def test_dirichlet_rounds_fairly() -> None:
    equal = partition(np.repeat(np.arange(200), 3), 3, "dirichlet(1e6)", rng())
    assert all(np.bincount(part // 3).tolist() == [1] * 200 for part in equal)
    single = partition(np.arange(4000), 4, "dirichlet(1e6)", rng())
    assert all(850 < len(part) < 1150 for part in single)


def test_a_small_alpha_skews_more_than_a_large_one() -> None:
    def largest_class_share(alpha: float) -> float:
        parts = partition(BALANCED, 10, f"dirichlet({alpha})", rng(5))
        return float(np.mean([np.bincount(BALANCED[p]).max() / len(p) for p in parts]))

    assert largest_class_share(0.05) > 0.5 > 0.15 > largest_class_share(1000)


def test_the_minimum_is_met_even_when_there_is_nothing_to_spare() -> None:
    parts = partition(np.arange(200) % 3, 20, "dirichlet(0.01)", rng(), minimum=10)
    assert [len(part) for part in parts] == [10] * 20


def test_too_little_data_for_the_minimum() -> None:
    with pytest.raises(DataError, match="at least 10 samples for each of 20 devices, got 199"):
        partition(np.arange(199) % 3, 20, "dirichlet(1)", rng())
    chains = np.repeat([0, 1, 2], [96, 2, 2])
    with pytest.raises(DataError, match="without splitting a chain"):
        partition(np.zeros(100, int), 3, "dirichlet(1)", rng(), chains=chains)


def test_classes_are_held_evenly_and_all_of_them() -> None:
    parts = partition(BALANCED, 20, "classes(3)", rng())
    holds = np.array([np.bincount(BALANCED[part], minlength=10) > 0 for part in parts])
    assert (holds.sum(axis=1) == 3).all()
    assert (holds.sum(axis=0) == 6).all()
    assert len({tuple(row) for row in holds}) > 10  # not the same few sets over and over


def test_a_rare_class_empties_no_device() -> None:
    labels = np.array([0] + [1] * 50)
    parts = partition(labels, 10, "classes(1)", rng())
    assert sorted(map(len, parts))[0] >= 1
    assert sum(0 in labels[part] for part in parts) == 1


def test_a_chain_counts_as_its_most_frequent_label() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0])
    chains = np.array([5, 5, 5, 2, 2, 2])
    parts = partition(labels, 2, "classes(1)", rng(), chains=chains)
    assert sorted(part.tolist() for part in parts) == [[0, 1, 2], [3, 4, 5]]
    # Label 1 is nowhere the most frequent: one device can hold all that count.
    odd = np.array([0, 0, 1, 2, 2, 1])
    (whole,) = partition(odd, 1, "classes(2)", rng(), chains=chains)
    assert whole.tolist() == [0, 1, 2, 3, 4, 5]


def test_natural_deals_people_in_turn() -> None:
    people = np.array([30, 1, 7, 7, 1, 30, 9])
    labels = np.zeros(7, int)
    each = partition(labels, 4, "natural", rng(), people)
    assert [part.tolist() for part in each] == [[1, 4], [2, 3], [6], [0, 5]]
    shared = partition(labels, 3, "natural", rng(), people)
    assert [part.tolist() for part in shared] == [[0, 1, 4, 5], [2, 3], [6]]
    with pytest.raises(DataError, match="at most 4 devices, one a person, got 5"):
        partition(labels, 5, "natural", rng(), people)
    with pytest.raises(ConfigError, match="who each sample is from"):
        partition(labels, 2, "natural", rng())


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="devices: expected at least 1, got 0"):
        partition(BALANCED, 0, "iid", rng())
    with pytest.raises(DataError, match="got 3 for 4 devices"):
        partition(np.arange(3), 4, "iid", rng())
    with pytest.raises(DataError, match="got 2 for 3 devices"):
        partition(np.zeros(6, int), 3, "iid", rng(), chains=np.array([0, 0, 0, 1, 1, 1]))
    with pytest.raises(DataError, match=r"chains: expected one a sample \(1000\), got \(3,\)"):
        partition(BALANCED, 4, "iid", rng(), chains=np.zeros(3, int))


@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 200),
    fraction=st.floats(0, 0.99),
    chained=st.booleans(),
)
@settings(max_examples=200)
def test_holdout(seed: int, samples: int, fraction: float, chained: bool) -> None:
    whole = 3 * samples
    indices = rng(seed).permutation(whole)[:samples]
    chains = np.arange(whole) // rng(seed).integers(1, 20) if chained else None
    train, test = holdout(indices, fraction, rng(seed), chains)

    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.sort(indices))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    ids = np.arange(whole) if chains is None else chains
    sizes = np.unique(ids[indices], return_counts=True)[1]
    assert not np.intersect1d(ids[train], ids[test]).size
    assert len(train)
    if fraction == 0 or len(sizes) == 1:
        assert not len(test)
    else:
        # As near as whole chains allow: half of one, or one where an end is cut off.
        assert len(test) and abs(len(test) - fraction * samples) <= sizes.max()
    again = holdout(indices, fraction, rng(seed), chains)
    np.testing.assert_array_equal(again[1], test)


def test_holdout_draws_at_random_and_rounds() -> None:
    drawn = {tuple(holdout(np.arange(10), 0.3, rng(seed))[1].tolist()) for seed in range(20)}
    assert len(drawn) > 10 and {len(test) for test in drawn} == {3}


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_holdout_bad_fraction(fraction: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 <= fraction < 1"):
        holdout(np.arange(4), fraction, rng())


def test_holdout_of_nothing() -> None:
    with pytest.raises(DataError, match="got none"):
        holdout(np.arange(0), 0.2, rng())
