"""What the server knows of the pairs of client and expert: fitness, trials, and routed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from broker_server import fitness, forecast
from broker_server.experiment import Experiment
from broker_server.state import State
from edge_runtime.protocol.messages import Report


@dataclass(frozen=True, eq=False)
class Scores:
    """Of `clients`, in rows of [C, E]: quality Q, in how many rounds the pair trained, and what
    share of its samples a client routed to an expert (1 is an even part; NaN: unknown)."""

    clients: Sequence[str]
    quality: NDArray[np.float64]
    trials: NDArray[np.int64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, state: State, clients: Sequence[str], experiment: Experiment) -> Scores:
        """What `state` holds of `clients`; newcomers start at q0, 0 and unknown."""
        experts = experiment.model.experts
        quality = fitness.initial_quality(len(clients), experts, experiment.fitness.q0)
        trials = np.zeros((len(clients), experts), np.int64)
        for i, client in enumerate(clients):
            if client in state.quality:
                quality[i], trials[i] = state.quality[client], state.trials[client]
        return cls(clients, quality, trials, forecast.table(state.shares, clients, experts))

    def after(
        self, reports: Mapping[str, Report], X: NDArray[np.bool_], experiment: Experiment
    ) -> Scores:
        """After a round with assignment `X` [C, E], of which `reports` came back."""
        settings = experiment.fitness
        quality, shares = self.quality.copy(), self.shares.copy()
        for i, client in enumerate(self.clients):
            if client not in reports:
                continue
            report = reports[client]
            scored = fitness.fitness(
                report.loss, report.hits, report.usage, settings.mode, settings.alpha
            )
            quality[i] = fitness.update_quality(
                quality[i], report.experts, scored, report.usage, settings.beta
            )
            shares[i] = forecast.update(shares[i], report.experts, report.usage)
        answered = np.array([[client in reports] for client in self.clients])
        return Scores(self.clients, quality, self.trials + (X & answered), shares)

    def into(self, state: State) -> State:
        """`state` with these rows in place of its own."""
        clients = self.clients
        return replace(
            state,
            quality={**state.quality, **dict(zip(clients, self.quality, strict=True))},
            trials={**state.trials, **dict(zip(clients, self.trials, strict=True))},
            shares={**state.shares, **dict(zip(clients, self.shares, strict=True))},
        )
