"""Fitness and quality against the formulas, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.fitness import (
    exploration_bonus,
    fitness,
    initial_quality,
    update_quality,
)
from edge_runtime.errors import ConfigError

SCORES = st.floats(0, 1)


def test_loss_driven_fitness() -> None:
    scores = fitness([0.0, 0.5, 3.0], [0, 0, 0], [4, 1, 9], "loss", alpha=2.0)
    assert scores == pytest.approx([1.0, math.exp(-1), math.exp(-6)])


def test_accuracy_driven_fitness() -> None:
    scores = fitness([9.0, 9.0], [3, 8], [4, 8], "accuracy", alpha=1.0)
    assert scores.tolist() == [0.75, 1.0]


@pytest.mark.parametrize("mode", ["loss", "accuracy"])
def test_an_expert_without_samples_has_no_fitness(mode: Any) -> None:
    assert fitness([0.0, 0.0], [0, 5], [0, 5], mode, alpha=1.0).tolist() == [0.0, 1.0]


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.integers(-9, 99), st.integers(-9, 50)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["loss", "accuracy"]),
)
def test_no_report_can_leave_the_range(rows: list[tuple[float, int, int]], mode: Any) -> None:
    loss, hits, usage = zip(*rows, strict=True)
    scores = fitness(loss, hits, usage, mode, alpha=1.0)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_bad_settings_are_refused() -> None:
    mode: Any = "luck"
    with pytest.raises(ConfigError, match=r"'luck'.*loss, accuracy"):
        fitness([1.0], [1], [1], mode, alpha=1.0)
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="alpha"):
            fitness([1.0], [1], [1], "loss", alpha)
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="beta"):
            update_quality(np.ones(1), [0], [1.0], [1], beta)
    with pytest.raises(ConfigError, match="q0"):
        initial_quality(1, 1, math.nan)


def test_the_first_quality() -> None:
    quality = initial_quality(2, 3, 0.75)
    assert quality.shape == (2, 3) and (quality == 0.75).all() and quality.dtype == np.float64


@given(st.data(), st.floats(0, 1))
def test_quality_moves_only_where_the_pair_trained(data: st.DataObject, beta: float) -> None:
    experts = 5
    old = np.array(data.draw(st.lists(SCORES, min_size=experts, max_size=experts)))
    chosen = data.draw(st.lists(st.integers(0, experts - 1), unique=True, min_size=1))
    scores = [data.draw(SCORES) for _ in chosen]
    usage = [data.draw(st.integers(0, 2)) for _ in chosen]
    before = old.copy()

    new = update_quality(old, chosen, scores, usage, beta)

    expected = before.copy()
    for e, s, u in zip(chosen, scores, usage, strict=True):
        if u > 0:
            expected[e] = (1 - beta) * before[e] + beta * s
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-12)
    assert (old == before).all()


def test_exploration_favours_pairs_that_were_tried_seldom() -> None:
    trials = np.array([[0, 1, 3], [8, 8, 8]])
    bonus = exploration_bonus(trials, rounds=20, scale=2.0)
    for c, e in np.ndindex(trials.shape):
        assert bonus[c, e] == pytest.approx(2.0 * math.sqrt(math.log(21) / (1 + trials[c, e])))


def test_the_papers_rule_has_no_exploration() -> None:
    assert not exploration_bonus(np.array([[0, 5]]), rounds=9, scale=0.0).any()
    assert not exploration_bonus(np.zeros((2, 2), np.int64), rounds=0, scale=1.0).any()


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_a_negative_or_endless_exploration_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="explore"):
        exploration_bonus(np.zeros((1, 2), np.int64), rounds=1, scale=scale)
