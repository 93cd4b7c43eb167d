"""A federation without devices: what assignment policies would gain, if we knew the truth.

Each client has a few experts that truly fit it, its specialities. Some experts are popular: the
chance that an expert is a client's speciality falls as 1, 1/2, 1/3 ... down a random order of the
experts. So whoever only follows quality crowds the popular ones. How well a pair truly fits, the
*truth*, moves by a random walk. A policy never sees it: it sees `Q`, as a server does, the moving
average of noisy observations of the pairs that trained (`broker_server.fitness`), and the load
bounds that follow from the loads so far (`broker_server.load`).

Truth, noise and who takes part depend on the fleet's seed alone: all policies meet the same luck.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from broker_server import fitness, load, participation
from broker_server.assignment import AssignmentPolicy, Problem
from broker_server.seeds import derive_seed

BETA, Q0 = 0.5, 1.0
"""Weight of the newest observation, and first quality: the defaults of an experiment."""

_SPECIALITIES = 3
_FITS, _MISFITS = (0.7, 0.95), (0.2, 0.5)  # ranges of the truth at the start


@dataclass(frozen=True)
class Settings:
    """A simulated federation. Clients hold 1 to 4 experts each.

    sizes: n_c; ``uniform``: 50 to 500, or ``dirichlet``: Dirichlet(1) shares of 275 samples a
    client, at least 1. delta: tolerance of the load bounds. participation: share of the clients
    that take part in a round, above 0 to 1. explore: scale of the exploration bonus. noise:
    standard deviation of one observation. drift: of the truth's step from round to round.
    """

    clients: int = 20
    experts: int = 8
    rounds: int = 100
    sizes: Literal["uniform", "dirichlet"] = "uniform"
    delta: float = 0.0
    participation: float = 1.0
    explore: float = 0.0
    noise: float = 0.1
    drift: float = 0.01


@dataclass(frozen=True, eq=False)
class Fleet:
    """What chance gave a federation.

    samples, capacity [C]: n_c and k_c. truth [T, C, E]: how well expert e fits client c in round
    t, 0 to 1. observed [T, C, E]: the fitness that c would report of e. present [T, P]: the
    clients of each round, ascending.
    """

    seed: int
    samples: NDArray[np.int64]
    capacity: NDArray[np.int64]
    truth: NDArray[np.float64]
    observed: NDArray[np.float64]
    present: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What a policy made of it; means are over the rounds.

    objective: mean of the true quality of all assigned pairs. load_cv: std / mean over experts of
    their samples in all rounds. round_cv: mean of the same of one round. untrained: experts that no
    round trained. idle: mean number of experts that a round did not train. violation: mean of the
    samples outside of the bounds, as a fraction of all that were handed out. solve_s: mean seconds
    of a decision. solvers: how many rounds each solver settled.
    """

    objective: float
    load_cv: float
    round_cv: float
    untrained: int
    idle: float
    violation: float
    solve_s: float
    solvers: dict[str, int]


def make_fleet(settings: Settings, seed: int) -> Fleet:
    """The fleet of that seed."""
    clients, experts, rounds = settings.clients, settings.experts, settings.rounds
    rng = np.random.default_rng(derive_seed(seed, "fleet"))
    if settings.sizes == "uniform":
        samples = rng.integers(50, 500, clients, endpoint=True)
    else:
        shares = rng.dirichlet(np.ones(clients)) * 275 * clients
        samples = np.maximum(1, np.rint(shares)).astype(np.int64)
    capacity = rng.integers(1, min(4, experts), clients, endpoint=True)
    # Gumbel's trick: the largest of log(weight) + noise is a draw by weight, without replacement.
    popularity = -np.log(1.0 + rng.permutation(experts))
    ranks = np.argsort(-(popularity + rng.gumbel(size=(clients, experts))), axis=1).argsort(axis=1)
    shape = (clients, experts)
    start = np.where(
        ranks < _SPECIALITIES, rng.uniform(*_FITS, shape), rng.uniform(*_MISFITS, shape)
    )
    steps = rng.normal(0, settings.drift, (rounds, *shape))
    truth = np.clip(start + steps.cumsum(axis=0), 0, 1)
    observed = np.clip(truth + rng.normal(0, settings.noise, truth.shape), 0, 1)
    return Fleet(seed, samples, capacity, truth, observed, _present(settings, seed))


def _present(settings: Settings, seed: int) -> NDArray[np.int64]:
    """Who takes part [T, P], by the rule of `broker_server.participation`."""
    clients = [str(client) for client in range(settings.clients)]
    credit: dict[str, float] = {}
    rounds = []
    for t in range(settings.rounds):
        lots = derive_seed(seed, t + 1, "participation")
        chosen, credit = participation.choose(clients, credit, settings.participation, 0, lots)
        rounds.append([int(client) for client in chosen])
    return np.array(rounds)


def round_robin(fleet: Fleet) -> NDArray[np.bool_]:
    """A fixed assignment [C, E]: clients in turn take the next k_c experts, round and round."""
    experts = fleet.truth.shape[2]
    first = np.cumsum(fleet.capacity) - fleet.capacity
    places: NDArray[np.int64] = (np.arange(experts) - first[:, None]) % experts
    return places < fleet.capacity[:, None]


def planted_optimum(settings: Settings, fleet: Fleet, decide: AssignmentPolicy) -> float:
    """A bound on the objective of who knows the truth of all rounds, and assigns them at once.

    It is the certified bound of `decide`. The load bounds are those that a policy has in its last
    round, for the loads of all rounds: no policy that ends within them, and keeps the capacities,
    gains more.
    """
    rows = fleet.present
    everyone = Problem.balanced(
        np.concatenate([truth[present] for truth, present in zip(fleet.truth, rows, strict=True)]),
        fleet.samples[rows].ravel(),
        fleet.capacity[rows].ravel(),
        delta=settings.delta,
    )
    return decide(everyone).bound / len(rows)


def simulate(
    settings: Settings,
    fleet: Fleet,
    decide: AssignmentPolicy,
    *,
    everything: bool = False,
    knows_truth: bool = False,
) -> Outcome:
    """All rounds of `fleet` under the policy `decide`.

    everything: clients hold all E experts, as the policy ``full`` asks. knows_truth: the policy is
    shown the truth in place of Q.
    """
    experts = settings.experts
    every = np.full_like(fleet.capacity, experts) if everything else fleet.capacity
    quality = fitness.initial_quality(settings.clients, experts, Q0)
    trials = np.zeros(quality.shape, np.int64)
    history = np.zeros(experts, np.int64)
    solvers: Counter[str] = Counter()
    objective = round_cv = idle = violation = solve_s = 0.0
    for t, rows in enumerate(fleet.present):
        truth, samples, capacity = fleet.truth[t], fleet.samples[rows], every[rows]
        bonus = fitness.exploration_bonus(trials, t, settings.explore)
        promise = truth if knows_truth else quality + bonus
        lower, upper = load.bounds(history, samples, capacity, settings.delta)
        answer = decide(
            Problem(
                promise[rows],
                samples,
                capacity,
                lower,
                upper,
                derive_seed(fleet.seed, t + 1, "assignment"),
                history=history.astype(np.float64),
                places=rows,
                round=t + 1,
            )
        )
        for client, held in zip(rows.tolist(), answer.X, strict=True):
            chosen = np.flatnonzero(held).tolist()
            scores, usage = fleet.observed[t, client, chosen], np.ones(len(chosen))
            quality[client] = fitness.update_quality(quality[client], chosen, scores, usage, BETA)
        trials[rows] += answer.X
        history = load.update(history, answer.X, samples)
        solvers[answer.solver] += 1
        objective += float(truth[rows][answer.X].sum())
        round_cv += load.coefficient_of_variation(answer.load)
        idle += int((answer.load == 0).sum())
        violation += answer.violation / float(samples @ capacity)
        solve_s += answer.solve_s
    rounds = len(fleet.present)
    return Outcome(
        objective=objective / rounds,
        load_cv=load.coefficient_of_variation(history),
        round_cv=round_cv / rounds,
        untrained=int((history == 0).sum()),
        idle=idle / rounds,
        violation=violation / rounds,
        solve_s=solve_s / rounds,
        solvers=dict(solvers),
    )
