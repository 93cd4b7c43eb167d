"""The coordinator with scripted devices, to see who takes part and what is given to whom.

No threads, no training, no real time: a device answers with random changes of the model, and says
that all of its samples but one went to the first of its two experts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from broker_server.artifacts import Artifacts
from broker_server.assignment import Assignment, Problem
from broker_server.books.traffic import Traffic
from broker_server.coordinator import Federation, run_rounds
from broker_server.evaluation import GlobalEvaluation
from broker_server.exchange import Exchange
from broker_server.experiment import Experiment
from broker_server.life import Life
from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.publication import Publication
from broker_server.record import RoundRecord
from broker_server.roster import Roster
from broker_server.round_problem import chosen_policy
from broker_server.spool import Spool
from broker_server.state import State
from edge_runtime.parts import split
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import CHUNK_BYTES
from model_export.models import ModelSpec, make_model
from model_export.split import to_weights
from tests.broker_server.layout_programs import LayoutPrograms
from tests.broker_server.scripted_device import FEDERATION, HELLO, Device
from tests.edge_runtime.driven import DrivenLink, World

EXPERTS, K = 4, 2
SIZES = {"a": 10, "b": 20, "c": 30, "d": 40}


def spec_of(experts: int) -> ModelSpec:
    """The model, with so many experts."""
    return ModelSpec("digits", (64,), 10, experts)


def start_of(experts: int) -> State:
    """Before the first round."""
    model = split(to_weights(make_model(spec_of(experts), 0)))
    none = np.zeros(experts, np.int64)
    return State("s", 0, model, {}, {}, none, none)


START = start_of(EXPERTS)
MODEL = START.model


def experiment(**sections: dict[str, Any]) -> Experiment:
    """A small experiment; `sections` change single keys."""
    base: dict[str, Any] = {
        "seed": 3,
        "data": {"devices": len(SIZES)},
        "model": {"experts": EXPERTS, "experts_per_device": K},
        "assignment": {"policy": "greedy", "solver": "prices"},
        "round": {"join_timeout_s": 5.0, "rejoin_s": 1.0},
    }
    for name, keys in sections.items():
        base[name] = {**base.get(name, {}), **keys}
    return Experiment.model_validate(base)


class Fleet:
    """A server, its devices, and the problems and answers of the rounds that it ran."""

    def __init__(
        self,
        folder: Path,
        settings: Experiment,
        chunk_bytes: int = CHUNK_BYTES,
        life: Life | None = None,
    ) -> None:
        self.world = World()
        experts = settings.model.experts
        spec = spec_of(experts)
        self.start = START if experts == EXPERTS else start_of(experts)
        self.problems: list[Problem] = []
        self.assignments: list[Assignment] = []
        self.records: list[RoundRecord] = []
        self.devices: dict[str, Device] = {}
        mailbox = ServerMailbox(DrivenLink(self.world, "server"), FEDERATION, Ledger())
        self.mailbox = mailbox
        mailbox.chunk_bytes = chunk_bytes
        wire = settings.wire
        publication = Publication(wire.codings, wire.whole_every, settings.seed)
        artifacts = Artifacts(settings, spec, LayoutPrograms(), publication)
        roster, spool = Roster(spec, "s", chunk_bytes=chunk_bytes), Spool(folder / "spool")
        clock = self.world.clock
        self.broadcast = Broadcast(mailbox, artifacts.find, clock=clock)
        self.exchange = Exchange(
            mailbox, roster, self.broadcast, "s", spool, experts, clock=clock, life=life
        )
        decide = chosen_policy(settings)

        def noted(problem: Problem) -> Assignment:
            self.problems.append(problem)
            self.assignments.append(decide(problem))
            return self.assignments[-1]

        self.federation = Federation(
            experiment=settings,
            roster=roster,
            exchange=self.exchange,
            spool=spool,
            publication=publication,
            artifacts=artifacts,
            policy=noted,
            evaluation=GlobalEvaluation(
                spec, np.ones((1, 64), np.float32), np.zeros(1, np.int64), False
            ),
            traffic=Traffic(mailbox),
        )
        for name in SIZES:
            self.add(name, Device(self.world, name, self.start.model, seed=len(name)))

    def add(self, name: str, device: Device) -> None:
        """A device joins; one of this name that was there before is gone."""
        if name in self.devices:
            self.world.actors.remove(self.devices.pop(name).step)
        samples = SIZES.get(name, 50)
        device.hello = dataclasses.replace(HELLO, samples=samples, shape=[64], labels=10)
        self.devices[name] = device
        self.exchange.gather(len(self.devices), 10.0)
        self.listen()  # or the last words of the one before it would be heard in a round

    def lose(self, name: str) -> None:
        """The device's connection breaks, and its will is heard."""
        device = self.devices.pop(name)
        self.world.actors.remove(device.step)
        device.link.kill()
        self.listen()

    def say(self, name: str, **fields: Any) -> None:
        """The device says hello again, with other figures."""
        device = self.devices[name]
        device.hello = dataclasses.replace(device.hello, **fields)
        device.mailbox.send(device.hello)
        self.listen()

    def listen(self) -> None:
        """Give the server time to hear what was said."""
        self.exchange.gather(1000, 0.1)

    def run(self, rounds: int, state: State | None = None) -> State:
        """Up to round number `rounds`."""
        return run_rounds(
            state or self.start,
            self.federation,
            rounds,
            lambda _, record: self.records.append(record),
        )

    def chosen(self) -> list[list[str]]:
        """Who took part in each round."""
        return [[client.client for client in record.clients] for record in self.records]
