"""A round's assignment problem, and the policy that an experiment names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server import fitness, forecast, load
from broker_server.assignment import AssignmentPolicy, Problem, fixed, policy
from broker_server.experiment import Experiment
from broker_server.scores import Scores
from broker_server.seeds import derive_seed
from broker_server.state import State


def round_problem(
    state: State,
    scores: Scores,
    samples: NDArray[np.int64],
    capacity: NDArray[np.int64],
    places: Sequence[str],
    experiment: Experiment,
    dear: Mapping[str, NDArray[np.bool_]] = MappingProxyType({}),
) -> Problem:
    """The problem of the round after `state`.

    samples, capacity [C]: n_c and k_c of the clients of `scores`. places: all clients, in the order
    in which rounds first saw them. dear: by client, the experts [E] that its budget of bytes would
    rather not bring to it; their quality is below that of all others.
    """
    settings, number = experiment.assignment, state.round + 1
    explored = fitness.exploration_bonus(scores.trials, state.round, experiment.fitness.explore)
    past = load.history(settings.balance, state.load, state.routed)
    lower, upper = load.bounds(past, samples, capacity, settings.delta)
    place_of = {client: place for place, client in enumerate(places)}
    quality = scores.quality + explored
    beyond = float(np.ptp(quality)) + 1.0
    for i, client in enumerate(scores.clients):
        if client in dear:
            quality[i] -= beyond * dear[client]
    return Problem(
        quality,
        samples,
        capacity,
        lower,
        upper,
        derive_seed(experiment.seed, number, "assignment"),
        weight=_weight(state, scores, samples, capacity, experiment),
        history=past,
        places=np.array([place_of[client] for client in scores.clients]),
        round=number,
    )


def _weight(
    state: State,
    scores: Scores,
    samples: NDArray[np.int64],
    capacity: NDArray[np.int64],
    experiment: Experiment,
) -> NDArray[np.float64] | None:
    """The load [C, E] that each pair would bring; None where it is n_c, and nothing is foretold."""
    balance = experiment.assignment.balance
    if balance == "assigned":
        return None
    everyone = forecast.table(state.shares, state.shares, experiment.model.experts)
    foretold = forecast.predict(scores.shares, capacity, forecast.popularity(everyone))
    return load.weights(balance, samples, foretold)


def chosen_policy(experiment: Experiment) -> AssignmentPolicy:
    """The policy of the experiment, with its options; `ConfigError` if its file is of no use."""
    settings = experiment.assignment
    if settings.policy == "fixed":
        fixed.read(settings.file, experiment.model.experts)
    options: dict[str, dict[str, Any]] = {
        "flex_moe": {"solver": settings.solver},
        "desirability": {"penalty": settings.penalty},
        "fixed": {"file": settings.file},
    }
    return policy(settings.policy, **options.get(settings.policy, {}))
