"""A round's problem, from a state of which every figure is known; and the policy with its options.

Four experts; client a with 10 samples and one expert, client b with 20 and two: 50 on top of the 30
of earlier rounds, a share of 20 for each expert.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_server.assignment import Problem
from broker_server.experiment import Experiment
from broker_server.round_problem import chosen_policy, round_problem
from broker_server.scores import Scores
from broker_server.seeds import derive_seed
from broker_server.state import State
from edge_runtime.errors import ConfigError, FleetError
from tests.broker_server.sample_model import random_model

EXPERTS = 4
NAN = math.nan
CLIENTS, PLACES = ["a", "b"], ["c", "a", "b"]
SAMPLES, CAPACITY = np.array([10, 20]), np.array([1, 2])
STATE = State(
    session="s",
    round=6,
    model=random_model(0),
    quality={"a": np.array([0.1, 0.2, 0.3, 0.4])},
    trials={"a": np.array([0, 3, 1, 2])},
    load=np.array([0, 5, 10, 15]),
    routed=np.array([12, 9, 6, 3]),
    # Expert 3 is known to b and to c, which has no part in this round.
    shares={"b": np.array([0.01, 1.5, NAN, 0.5]), "c": np.array([NAN, NAN, NAN, 1.5])},
)


def experiment(**sections: dict[str, Any]) -> Experiment:
    base: dict[str, Any] = {
        "seed": 3,
        "model": {"experts": EXPERTS},
        "fitness": {"q0": 0.9, "explore": 0},
    }
    for name, keys in sections.items():
        base[name] = {**base.get(name, {}), **keys}
    return Experiment.model_validate(base)


def problem(
    state: State = STATE, clients: list[str] = CLIENTS, **sections: dict[str, Any]
) -> Problem:
    settings = experiment(**sections)
    scores = Scores.of(state, clients, settings)
    rows = [CLIENTS.index(client) for client in clients]
    return round_problem(state, scores, SAMPLES[rows], CAPACITY[rows], PLACES, settings)


def test_the_bounds_and_the_rows_are_those_of_who_takes_part() -> None:
    whole = problem(assignment={"delta": 0.5})
    assert whole.lower.tolist() == [10, 5, 0, 0]
    assert whole.upper.tolist() == [30, 25, 20, 15]
    assert whole.samples.tolist() == [10, 20] and whole.capacity.tolist() == [1, 2]
    assert whole.places is not None and whole.places.tolist() == [1, 2]
    # Without b there are 40 to share: 10 for each expert.
    part = problem(clients=["a"], assignment={"delta": 0.5})
    assert part.lower.tolist() == [5, 0, 0, 0] and part.upper.tolist() == [15, 10, 5, 0]
    assert part.places is not None and part.places.tolist() == [1]


def test_without_a_tolerance_half_a_mean_client_is_left() -> None:
    exactly = problem(assignment={"delta": 0})
    assert exactly.lower.tolist() == [12.5, 7.5, 2.5, 0]
    assert exactly.upper.tolist() == [27.5, 22.5, 17.5, 12.5]


@pytest.mark.parametrize(
    ("balance", "history"),
    [("assigned", [0, 5, 10, 15]), ("routed", [12, 9, 6, 5]), ("both", [6, 7, 8, 9])],
)
def test_the_history_is_that_of_the_balance(balance: str, history: list[float]) -> None:
    """Under routed the last expert counts for a third of its 15."""
    made = problem(assignment={"balance": balance, "delta": 0.5})
    assert made.history is not None and made.history.tolist() == history
    share = (sum(history) + 50) / EXPERTS
    assert made.upper == pytest.approx([1.5 * share - H for H in history])


def test_the_weights_are_those_of_the_balance() -> None:
    """A single expert is routed everything; a pair that is unknown, what its expert is elsewhere.

    Of expert 3 two clients know: (0.5 + 1.5 + 3) / 5 = 1; nobody of expert 2.
    """
    assert problem().weight is None
    routed = problem(assignment={"balance": "routed"}).weight
    assert routed is not None
    assert routed == pytest.approx(np.array([[10, 10, 10, 10], [1, 30, 20, 10]]))
    both = problem(assignment={"balance": "both"}).weight
    assert both is not None
    assert both == pytest.approx(np.array([[10, 10, 10, 10], [10.5, 25, 20, 15]]))


def test_what_absent_clients_showed_foretells_for_newcomers() -> None:
    """Of expert 0, b's 0.01 and three even parts; of expert 1, b's 1.5."""
    settings = experiment(assignment={"balance": "routed"})
    scores = Scores.of(STATE, ["new"], settings)
    made = round_problem(STATE, scores, np.array([100]), np.array([2]), ["new"], settings)
    assert made.weight is not None
    assert made.weight[0] == pytest.approx([100 * 3.01 / 4, 100 * 4.5 / 4, 100, 100])


def test_quality_has_its_bonus_for_pairs_seldom_tried() -> None:
    plain = problem()
    assert plain.quality.tolist() == [[0.1, 0.2, 0.3, 0.4], [0.9] * EXPERTS]
    bonus = problem(fitness={"explore": 0.5}).quality - plain.quality
    scale = 0.5 * math.sqrt(math.log(7))
    assert bonus[0] == pytest.approx([scale / math.sqrt(n) for n in (1, 4, 2, 3)])
    assert bonus[1] == pytest.approx([scale] * EXPERTS)


def test_the_seed_is_that_of_experiment_and_round() -> None:
    """It does not depend on who takes part; the round is the one after the state's."""
    made = problem()
    assert made.round == 7 and made.seed == derive_seed(3, 7, "assignment")
    assert problem(clients=["b"]).seed == made.seed
    scores = Scores.of(STATE, CLIENTS, experiment())
    other = Experiment.model_validate({**experiment().model_dump(), "seed": 4})
    assert round_problem(STATE, scores, SAMPLES, CAPACITY, PLACES, other).seed != made.seed


# --- the policy of an experiment ----------------------------------------------------------------


def solver_of(**assignment: Any) -> str:
    return chosen_policy(experiment(assignment=assignment))(problem()).solver


def test_the_solver_is_the_one_that_was_asked_for() -> None:
    exact = solver_of(solver="exact")
    assert exact == "cp-sat" and solver_of(solver="prices") == "prices"
    assert solver_of(solver="auto") in ("cp-sat", "prices")


@pytest.mark.parametrize("name", ["desirability", "greedy", "random", "rolling"])
def test_the_other_policies_by_name(name: str) -> None:
    made = problem()
    answer = chosen_policy(experiment(assignment={"policy": name, "solver": "exact"}))(made)
    assert answer.X.sum(axis=1).tolist() == made.capacity.tolist()
    assert answer.solver.startswith(name)


def test_the_penalty_goes_to_desirability() -> None:
    """Expert 3 fits a best and was used most: what usage counts decides whether a takes it."""
    made = problem(clients=["a"])
    for penalty, expert in ((0.0, 3), (0.1, 3), (10.0, 0)):
        settings = experiment(assignment={"policy": "desirability", "penalty": penalty})
        assert np.flatnonzero(chosen_policy(settings)(made).X[0]).tolist() == [expert]


def test_the_file_goes_to_fixed_and_rows_are_places(tmp_path: Path) -> None:
    table = np.array([[1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 1]])  # c, a, b
    np.save(tmp_path / "X.npy", table)
    decide = chosen_policy(
        experiment(assignment={"policy": "fixed", "file": str(tmp_path / "X.npy")})
    )
    assert decide(problem()).X.tolist() == table[1:].astype(bool).tolist()
    assert decide(problem(clients=["b"])).X.tolist() == table[2:].astype(bool).tolist()
    np.save(tmp_path / "X.npy", table[:2])
    with pytest.raises(FleetError, match="none for client number 2"):
        decide(problem())
    np.save(tmp_path / "X.npy", table[:, :3])
    with pytest.raises(ConfigError, match="is for 3 experts, the model has 4"):
        decide(problem())


def test_dear_experts_come_after_all_others() -> None:
    """In their own order, where a client has a budget; what others think is as it was."""
    settings = experiment()
    scores = Scores.of(STATE, CLIENTS, settings)
    dear = np.array([False, False, True, True])
    made = round_problem(STATE, scores, SAMPLES, CAPACITY, PLACES, settings, {"a": dear})
    a, b = made.quality
    plain = problem().quality
    assert a[~dear].tolist() == plain[0, ~dear].tolist() and b.tolist() == plain[1].tolist()
    assert a[dear].max() < min(plain.min(), a[~dear].min())
    assert a[3] - a[2] == pytest.approx(plain[0, 3] - plain[0, 2])
