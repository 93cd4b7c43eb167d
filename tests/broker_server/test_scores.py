"""What is known of the pairs: where newcomers start, what a round moves, what stays."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server import forecast
from broker_server.experiment import Experiment
from broker_server.scores import Scores
from broker_server.state import State
from edge_runtime.protocol.messages import Report
from tests.broker_server.sample_model import make_assign, make_report, random_model

EXPERTS = 4
NAN = math.nan


def experiment(**fitness: Any) -> Experiment:
    settings = {"q0": 0.9, "alpha": 0.7, "beta": 0.25, **fitness}
    return Experiment.model_validate({"model": {"experts": EXPERTS}, "fitness": settings})


def state(**fields: Any) -> State:
    zeros = np.zeros(EXPERTS, np.int64)
    return State("s", 5, random_model(0), **{"quality": {}, "trials": {}, "load": zeros,
                                             "routed": zeros, **fields})  # fmt: skip


KNOWN = state(
    quality={"a": np.array([0.1, 0.2, 0.3, 0.4]), "gone": np.full(EXPERTS, 0.5)},
    trials={"a": np.array([1, 2, 0, 0]), "gone": np.full(EXPERTS, 3)},
    shares={"a": np.array([0.5, 1.5, NAN, NAN]), "gone": np.ones(EXPERTS)},
)


def report(experts: list[int], usage: list[int], loss: list[float]) -> Report:
    plain = make_report(make_assign(experts), {})
    return dataclasses.replace(plain, usage=usage, loss=loss, hits=[0] * len(experts))


def test_of_a_state_newcomers_start_anew() -> None:
    scores = Scores.of(KNOWN, ["b", "a"], experiment())
    assert scores.quality.tolist() == [[0.9] * EXPERTS, [0.1, 0.2, 0.3, 0.4]]
    assert scores.trials.tolist() == [[0] * EXPERTS, [1, 2, 0, 0]]
    expected = [[NAN] * EXPERTS, [0.5, 1.5, NAN, NAN]]
    assert np.array_equal(scores.shares, expected, equal_nan=True)


def test_a_client_that_never_answered_has_quality_and_no_shares() -> None:
    known = state(quality={"a": np.zeros(EXPERTS)}, trials={"a": np.zeros(EXPERTS, np.int64)})
    scores = Scores.of(known, ["a"], experiment())
    assert scores.quality.tolist() == [[0.0] * EXPERTS] and np.isnan(scores.shares).all()


def test_a_round_moves_what_was_trained_and_reported() -> None:
    """a answers, one of its experts without samples; b does not."""
    before = Scores.of(KNOWN, ["a", "b"], experiment())
    X = np.array([[True, True, True, False], [False, False, True, True]])
    answer = report([0, 1, 2], [6, 4, 0], [0.5, 1.0, 9.0])
    after = before.after({"a": answer}, X, experiment())
    moved = [0.75 * 0.1 + 0.25 * math.exp(-0.35), 0.75 * 0.2 + 0.25 * math.exp(-0.7), 0.3, 0.4]
    assert after.quality[0] == pytest.approx(moved)
    assert after.quality[1].tolist() == [0.9] * EXPERTS
    assert after.trials.tolist() == [[2, 3, 1, 0], [0] * EXPERTS]
    kept, new = 1 - forecast.BETA, forecast.BETA
    shares = [kept * 0.5 + new * 1.8, kept * 1.5 + new * 1.2, 0.0, NAN]
    assert after.shares[0] == pytest.approx(shares, nan_ok=True)
    assert np.isnan(after.shares[1]).all()
    assert before.quality[0].tolist() == [0.1, 0.2, 0.3, 0.4]  # the old ones are as they were
    assert before.trials[0].tolist() == [1, 2, 0, 0] and before.shares[0, 0] == 0.5


def test_by_accuracy_only_hits_count() -> None:
    by_hits = experiment(mode="accuracy", beta=1.0)
    answer = dataclasses.replace(report([1, 3], [8, 2], [7.0, 7.0]), hits=[6, 2])
    X = np.array([[False, True, False, True]])
    after = Scores.of(state(), ["a"], by_hits).after({"a": answer}, X, by_hits)
    assert after.quality.tolist() == [[0.9, 0.75, 0.9, 1.0]]


def test_into_a_state_go_these_clients_alone() -> None:
    scores = Scores.of(KNOWN, ["b", "a"], experiment())
    raised = dataclasses.replace(scores, quality=scores.quality + 1, trials=scores.trials + 1)
    after = raised.into(KNOWN)
    assert after.quality["a"] == pytest.approx([1.1, 1.2, 1.3, 1.4])
    assert after.quality["b"].tolist() == [1.9] * EXPERTS
    assert after.trials["a"].tolist() == [2, 3, 1, 1]
    for name in ("quality", "trials", "shares"):
        assert set(getattr(after, name)) == {"a", "b", "gone"}
        assert getattr(after, name)["gone"] is getattr(KNOWN, name)["gone"]
    assert set(KNOWN.quality) == {"a", "gone"} and after.load is KNOWN.load


@given(st.data())
def test_the_order_of_clients_does_not_matter(data: st.DataObject) -> None:
    names = ["a", "b", "c"]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    X = np.array([rng.permutation([True, True, False, False]) for _ in names])
    reports = {}
    for name, row in zip(names, X, strict=True):
        if data.draw(st.booleans()):
            usage = rng.multinomial(10, rng.dirichlet([1, 1])).tolist()
            reports[name] = report(np.flatnonzero(row).tolist(), usage, rng.random(2).tolist())
    order = data.draw(st.permutations(range(len(names))))

    def after(rows: list[int]) -> State:
        scores = Scores.of(KNOWN, [names[i] for i in rows], experiment())
        return scores.after(reports, X[rows], experiment()).into(KNOWN)

    one, other = after([0, 1, 2]), after(list(order))
    for name in ("quality", "trials", "shares"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[c], right[c], equal_nan=True) for c in left)
