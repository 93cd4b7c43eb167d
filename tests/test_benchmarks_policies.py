"""The benchmarks of the policies: a simulated federation, and the scores of real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import fitness_drift
from benchmarks.simulation import Settings, make_fleet, planted_optimum, round_robin, simulate
from broker_server.assignment import POLICIES, policy
from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment
from broker_server.config import Experiment, to_toml
from broker_server.record import ClientRound
from broker_server.store import Store
from tests.broker_server.sample_records import client_round, late_client, round_record

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "policies.py"
FIGURES = {"objective", "load_cv", "round_cv", "untrained", "regret"}
SMALL = Settings(clients=6, experts=4, rounds=5, noise=0.05)


def benchmark(*options: str) -> Any:
    command = [sys.executable, str(SCRIPT), "--rounds", "5", "--experts", "4", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def without_times(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: without_times(v) for key, v in value.items() if not key.startswith("solve_s")}


@pytest.fixture(scope="module")
def compared() -> Any:
    """Every policy with bounds so wide that the optimum is each client's truly best k_c."""
    return benchmark("--clients", "6", "--seeds", "2", "--delta", "100")


def test_one_fleet_is_one_object_with_every_policy(compared: Any) -> None:
    assert set(compared["policies"]) == set(POLICIES)
    for figures in compared["policies"].values():
        assert set(figures) >= FIGURES | {f"{figure}_std" for figure in FIGURES}
        assert sum(figures["solvers"].values()) == 10


def test_no_policy_that_keeps_the_capacities_beats_the_optimum(compared: Any) -> None:
    optimum = compared["optimum"]
    assert compared["informed"]["objective"] == pytest.approx(optimum)
    for name, figures in compared["policies"].items():
        if name == "full":
            assert figures["objective"] > optimum
            assert figures["regret"] < 0
        else:
            assert figures["objective"] < optimum
            assert figures["regret"] > 0, "nobody knows the truth in the first round"


@pytest.mark.parametrize("seed", range(3))
def test_who_ends_within_the_bounds_gains_no_more_than_the_optimum(seed: int) -> None:
    settings = replace(SMALL, delta=0.2)
    fleet = make_fleet(settings, seed)
    flex_moe = policy("flex_moe")
    optimum = planted_optimum(settings, fleet, flex_moe)
    informed = simulate(settings, fleet, flex_moe, knows_truth=True)
    learning = simulate(settings, fleet, flex_moe)
    assert informed.violation == learning.violation == 0
    assert learning.objective < informed.objective <= optimum + 1e-6
    greedy = simulate(settings, fleet, policy("greedy"), knows_truth=True)
    assert greedy.violation > 0 and greedy.objective >= optimum - 1e-6


def test_several_fleets_are_an_object_each_and_repeat_themselves(compared: Any) -> None:
    both = benchmark("--clients", "6", "--clients", "3", "--seeds", "2", "--delta", "100")
    assert set(both["fleets"]) == {"3", "6"}
    assert without_times(both["fleets"]["6"]) == without_times(compared)


@given(st.integers(0, 2**32), st.sampled_from(["uniform", "dirichlet"]), st.floats(0.01, 1))
def test_a_fleet_is_what_its_settings_say(seed: int, sizes: Any, participation: float) -> None:
    settings = Settings(clients=7, experts=5, rounds=4, sizes=sizes, participation=participation)
    fleet = make_fleet(settings, seed)
    assert fleet.truth.shape == fleet.observed.shape == (4, 7, 5)
    for values in (fleet.truth, fleet.observed):
        assert values.min() >= 0 and values.max() <= 1
    assert fleet.samples.min() >= 1
    assert fleet.capacity.min() >= 1 and fleet.capacity.max() <= 4
    assert fleet.present.shape == (4, np.ceil(participation * 7 - 1e-9))
    assert (np.diff(fleet.present, axis=1) > 0).all()
    fixed = round_robin(fleet)
    assert (fixed.sum(axis=1) == fleet.capacity).all()
    held = fixed.sum(axis=0)
    assert held.max() - held.min() <= 1


def test_a_policy_sees_the_moving_average_of_what_it_tried_and_never_the_truth() -> None:
    fleet = make_fleet(SMALL, 1)
    fixed = round_robin(fleet)
    seen: list[Problem] = []

    def decide(problem: Problem) -> Assignment:
        seen.append(problem)
        return Assignment.of(problem, fixed, solver="test", solve_s=0.0)

    outcome = simulate(SMALL, fleet, decide)
    expected = np.ones((6, 4))
    for t, problem in enumerate(seen):
        np.testing.assert_allclose(problem.quality, expected)
        assert problem.round == t + 1
        np.testing.assert_array_equal(problem.history, t * (fleet.samples @ fixed))
        expected[fixed] = (expected / 2 + fleet.observed[t] / 2)[fixed]
    assert outcome.objective == pytest.approx(fleet.truth[:, fixed].sum(axis=1).mean())
    loads = fleet.samples @ fixed
    assert outcome.load_cv == pytest.approx(loads.std() / loads.mean())
    assert outcome.round_cv == pytest.approx(outcome.load_cv)
    assert outcome.untrained == outcome.idle == (loads == 0).sum()


def test_who_is_not_there_has_no_part_in_it() -> None:
    settings = Settings(clients=6, experts=4, rounds=5, participation=0.5)
    fleet = make_fleet(settings, 2)
    outcome = simulate(settings, fleet, policy("full"), everything=True)
    truth = [fleet.truth[t, rows].sum() for t, rows in enumerate(fleet.present)]
    assert outcome.objective == pytest.approx(np.mean(truth))
    assert outcome.load_cv == outcome.violation == 0


BAD, GOOD = np.exp(-0.4), np.exp(-0.1)
FIRST = (1 + BAD) / 2
SECOND = (FIRST + GOOD) / 2
"""Fitness of the losses 0.4 and 0.1; Q after the one, then the other (q0 is 1, beta 0.5)."""


def part(experts: list[int], usage: list[int], loss: list[float], quality: list[float]) -> Any:
    """A device's part in a round."""
    return replace(
        client_round("device-00"),
        experts=experts,
        usage=usage,
        loss=loss,
        hits=[0] * len(usage),
        quality=quality,
    )


def stored(folder: Path, rounds: list[ClientRound], experts: int) -> Path:
    """A run of one device."""
    experiment = Experiment.model_validate({"model": {"experts": experts}})
    with Store.create(folder) as store:
        for number, client in enumerate(rounds, start=1):
            store.write_round(replace(round_record(number), clients=[client]))
    (folder / "config.toml").write_text(to_toml(experiment))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four rounds and experts. Expert 0 is seen in the first round only, expert 1 in rounds 1 and
    3, and no sample is sent to expert 2; the device is late in round 2."""
    rounds = [
        part([0, 1], [5, 5], [0.4, 0.4], [FIRST, FIRST]),
        late_client("device-00"),
        part([1, 2], [9, 0], [0.1, 0.0], [SECOND, 1.0]),
        part([2], [0], [0.0], [1.0]),
    ]
    return stored(tmp_path / "run", rounds, 4)


def test_the_whole_quality_is_carried_forward(run: Path) -> None:
    scores = fitness_drift.read(run)
    rows = [[FIRST, FIRST, 1, 1], [FIRST, FIRST, 1, 1], *2 * [[FIRST, SECOND, 1, 1]]]
    np.testing.assert_allclose(scores.quality[:, 0], rows)
    np.testing.assert_array_equal(
        scores.tried[:, 0], [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    )
    nan = np.nan
    np.testing.assert_allclose(
        scores.observed[:, 0], [[BAD, BAD, nan, nan], [nan] * 4, [nan, GOOD, nan, nan], [nan] * 4]
    )


def test_the_figures_of_a_run(run: Path) -> None:
    figures = fitness_drift.figures(fitness_drift.read(run))
    expected = {
        "global_accuracy": 1 - 0.5 / 4,
        "device_accuracy": 0.75,
        "tried": 3 / 4,
        "observed": 2 / 4,
        "unused": 2 / 5,
        "variance": np.var([FIRST, FIRST, SECOND, SECOND]) / 2,
        "late_variance": 0,
        "first": BAD,
        "later": GOOD,
        "stale": 1 / 2,
        "stale_quality": FIRST,
        "fresh_quality": SECOND,
        "settled_80": 1,
        "settled_90": 1,
    }
    assert figures == pytest.approx(expected)


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=6))
def test_correlation_without_ties_is_spearmans_formula(rankings: list[list[int]]) -> None:
    ranks = np.array(rankings, dtype=np.float64)
    expected = 1 - 6 * ((ranks - ranks[-1]) ** 2).sum(axis=1) / (5 * (25 - 1))
    np.testing.assert_allclose(
        fitness_drift.correlations(np.exp(ranks)[:, None, :]), expected, atol=1e-12
    )


def test_ties_share_a_rank_and_a_client_without_a_ranking_is_left_out() -> None:
    quality = np.array([[[1, 1, 0, 0], [1, 1, 1, 1]], [[4, 3, 2, 1], [4, 3, 2, 1]]], dtype=float)
    expected = np.corrcoef([3.5, 3.5, 1.5, 1.5], [4, 3, 2, 1])[0, 1]
    np.testing.assert_allclose(fitness_drift.correlations(quality), [expected, 1])


@pytest.mark.parametrize(
    ("correlation", "round_number"),
    [([1.0], 1), ([0.9, 0.7, 0.9, 1.0], 3), ([0.85, 0.9, 1.0], 1), ([np.nan, 0.8, 1.0], 3)],
)
def test_settled_is_the_round_after_the_last_that_is_not_above(
    correlation: list[float], round_number: int
) -> None:
    assert fitness_drift.settled(np.array(correlation), 0.8) == round_number
