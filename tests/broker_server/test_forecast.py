"""Shares of samples: learned from reports, foretold for pairs that never met."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server import forecast
from edge_runtime.errors import ConfigError

EXPERTS = 5
NAN = math.nan


@st.composite
def tables(draw: st.DrawFn, clients: int = 4) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Shares [C, E], many unknown, and capacities [C]; some shares from a larger capacity."""
    rows = draw(st.integers(1, clients))
    share = st.one_of(st.just(NAN), st.floats(0, EXPERTS))
    row = st.lists(share, min_size=EXPERTS, max_size=EXPERTS)
    shares = np.array(draw(st.lists(row, min_size=rows, max_size=rows)))
    k = st.lists(st.integers(1, EXPERTS), min_size=rows, max_size=rows)
    return shares, np.array(draw(k))


def predict(shares: NDArray[np.float64], capacity: NDArray[np.int64]) -> NDArray[np.float64]:
    return forecast.predict(shares, capacity, forecast.popularity(shares))


def test_the_first_share_is_taken_whole_and_then_averaged() -> None:
    first = forecast.update(np.array([NAN, NAN, 0.5]), [0, 1], [30, 10], beta=0.25)
    assert first.tolist() == [1.5, 0.5, 0.5]
    second = forecast.update(first, [0, 2], [0, 40], beta=0.25)
    assert second == pytest.approx([0.75 * 1.5, 0.5, 0.75 * 0.5 + 0.25 * 2])


@given(st.data(), st.floats(0, 1))
def test_an_update_keeps_the_total_and_touches_only_what_trained(
    data: st.DataObject, beta: float
) -> None:
    held = st.lists(st.integers(0, EXPERTS - 1), unique=True, min_size=2)
    experts = data.draw(held)
    row = np.array([0.25, NAN, 1.0, NAN, 2.0])
    row[experts] = NAN
    elsewhere = np.setdiff1d(np.arange(EXPERTS), experts)
    before = row.copy()
    for _ in range(3):  # the same company each round: shares add up to k
        usage = [data.draw(st.integers(0, 1000)) for _ in experts]
        new = forecast.update(row, experts, usage, beta)
        assert np.array_equal(new[elsewhere], before[elsewhere], equal_nan=True)
        if sum(usage) > 0:
            assert new[experts].sum() == pytest.approx(len(experts))
            assert (new[experts] >= 0).all() and (new[experts] <= len(experts) + 1e-9).all()
            row = new
        else:
            assert np.array_equal(new, row, equal_nan=True)
    assert np.isnan(before[experts]).all()  # the caller's row is his own


def test_all_usage_on_one_expert_and_none_at_all() -> None:
    unknown = np.full(3, NAN)
    assert forecast.update(unknown, [0, 2], [7, 0]).tolist()[::2] == [2.0, 0.0]
    assert np.isnan(forecast.update(unknown, [0, 2], [0, 0])).all()


def test_a_single_expert_teaches_nothing() -> None:
    assert np.isnan(forecast.update(np.full(2, NAN), [1], [50])).all()
    assert predict(np.array([[0.1, NAN]]), np.array([1])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("beta", [-0.1, 1.1, NAN])
def test_a_weight_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match="beta"):
        forecast.update(np.ones(2), [0, 1], [1, 1], beta)


def test_popularity_is_drawn_to_an_even_share_while_few_know_the_expert() -> None:
    shares = np.full((9, 3), NAN)
    shares[0, 0] = 2.0
    shares[:, 1] = 2.0
    popular = forecast.popularity(shares)
    assert popular == pytest.approx([(2 + 3) / (1 + 3), (9 * 2 + 3) / (9 + 3), 1.0])


def test_nothing_known_is_an_even_share() -> None:
    shares = np.full((2, 3), NAN)
    assert (predict(shares, np.array([2, 3])) == 1).all()
    assert (forecast.popularity(np.empty((0, 3))) == 1).all()


def test_a_known_pair_is_foretold_by_its_own_share_others_by_popularity() -> None:
    shares = np.array([[0.5, 1.5, NAN], [NAN, 0.4, 1.6]])
    popular = np.array([0.7, 0.9, 1.3])
    expected = [[0.5, 1.5, 1.3], [0.7, 0.4, 1.6]]
    assert forecast.predict(shares, np.array([2, 2]), popular).tolist() == expected


@given(tables())
def test_a_forecast_is_always_usable_as_a_weight(
    drawn: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    shares, capacity = drawn
    foretold = predict(shares, capacity)
    assert foretold.shape == shares.shape and np.isfinite(foretold).all()
    assert (foretold >= 0.05).all() and (foretold <= capacity[:, None]).all()


@given(tables(), st.permutations(range(EXPERTS)), st.data())
def test_the_order_of_experts_and_clients_does_not_matter(
    drawn: tuple[NDArray[np.float64], NDArray[np.int64]], columns: list[int], data: st.DataObject
) -> None:
    shares, capacity = drawn
    rows = data.draw(st.permutations(range(len(shares))))
    moved = predict(shares[np.ix_(rows, columns)], capacity[rows])
    np.testing.assert_allclose(moved, predict(shares, capacity)[np.ix_(rows, columns)], rtol=1e-12)


def test_a_held_set_that_stays_is_foretold_in_full() -> None:
    """Known and never changed: the weights of what it holds add up to n k."""
    row = np.full(EXPERTS, NAN)
    rng = np.random.default_rng(0)
    for _ in range(20):
        row = forecast.update(row, [0, 3, 4], rng.multinomial(90, [0.6, 0.3, 0.1]))
    foretold = predict(row[None], np.array([3]))[0]
    assert foretold[[0, 3, 4]].sum() == pytest.approx(3)
    assert foretold[[0, 3, 4]] == pytest.approx([1.8, 0.9, 0.3], abs=0.15)


def test_a_table_has_the_rows_asked_for_in_their_order() -> None:
    shares = {"a": np.array([1.0, NAN]), "b": np.array([0.5, 1.5])}
    table = forecast.table(shares, ["b", "new", "a"], 2)
    assert np.array_equal(table, [[0.5, 1.5], [NAN, NAN], [1.0, NAN]], equal_nan=True)
    assert forecast.table({}, [], 2).shape == (0, 2)
