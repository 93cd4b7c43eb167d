"""What an experiment is: every key with its type, range, default, unit and reason.

`broker_server.config` reads these from TOML. The models are frozen and strict: an unknown key, a
text where a number belongs or a value out of range is an error. A whole number may stand where a
fraction is asked. Checks that involve more than one key are in `Experiment`.
"""

from __future__ import annotations

import math
from typing import Any, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from broker_server.balance_settings import Assignment, Fitness, Gate, Participation
from broker_server.field_types import (
    MOST,
    Address,
    Dataset,
    ExpertsPerDevice,
    FilePath,
    Name,
    Partition,
    Section,
)
from broker_server.fleet_settings import Emulation, Fleets
from broker_server.train_settings import Train
from broker_server.wire_settings import Wire
from device_profiles.fleet.device_names import number_of
from device_profiles.partition import parse_scheme
from edge_runtime.protocol.messages import MAX_ITEMS
from edge_runtime.trainer import misfits


class Data(Section):
    """Which data, and who gets what of it."""

    dataset: Dataset = Field(default="digits", description="The data set.")
    path: FilePath = Field(
        default="",
        description="File or folder that holds the data set; empty for digits. A relative path "
        "starts at the experiment file's folder.",
    )
    devices: int = Field(
        default=8, ge=1, le=MOST, description="How many devices share the training data."
    )
    partition: Partition = Field(
        default="dirichlet(0.5)",
        description="Who gets which samples: iid, dirichlet(alpha), classes(n), or natural (har "
        "only: one person a device).",
    )
    test_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of a device's samples that it holds out to test its own model.",
    )


class Model(Section):
    """The mixture of experts, and how much of it a device asks for."""

    name: Dataset = Field(
        default="digits",
        description="The reference model; by default that of the data set.",
    )
    experts: int = Field(default=8, ge=1, le=MAX_ITEMS, description="E, experts in all.")
    experts_per_device: ExpertsPerDevice = Field(
        default=2,
        description="k, experts that a device trains at once, if they fit its memory. A list is "
        "dealt out to the devices in order, again from its start when it ends.",
    )

    def experts_asked(self, device: int) -> int:
        """k asked for the `device`-th device, counted from 0."""
        if isinstance(self.experts_per_device, int):
            return self.experts_per_device
        return self.experts_per_device[device % len(self.experts_per_device)]


class Round(Section):
    """How long the server waits, and for how many."""

    deadline_s: float = Field(
        default=120.0, gt=0, description="Seconds until a round closes without the late devices."
    )
    rejoin_s: float = Field(
        default=10.0,
        ge=0,
        description="Seconds that a round waits for a device that lost its connection.",
    )
    quorum: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share that a round needs: of data.devices to begin, of those who take part to "
        "count.",
    )
    join_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds to wait for the devices to join."
    )

    def quorum_of(self, devices: int) -> int:
        """How many of `devices` a round needs, at least 1."""
        return max(1, math.ceil(self.quorum * devices - 1e-9))


class Broker(Section):
    """The MQTT broker between server and devices."""

    address: Address = Field(
        default="auto",
        description="auto (mosquitto if it is on the PATH, else amqtt), mosquitto, amqtt, or the "
        "HOST:PORT of a broker that runs already.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of a broker that flexmoe starts; 0 takes a free one.",
    )
    federation: Name = Field(
        default="default",
        description="First part of every topic; keeps federations on one broker apart.",
    )


class Experiment(Section):
    """One experiment: everything that a run is made from."""

    name: Name = Field(default="experiment", description="Names the run and its folder.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="All randomness comes from it.")
    rounds: int = Field(default=30, ge=1, le=MOST, description="Rounds of training.")
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    fitness: Fitness = Fitness()
    assignment: Assignment = Assignment()
    participation: Participation = Participation()
    gate: Gate = Gate()
    round: Round = Round()
    wire: Wire = Wire()
    broker: Broker = Broker()
    emulation: Emulation = Emulation()
    fleet: Fleets = ()

    @property
    def emulated(self) -> bool:
        """Whether `flexmoe run` emulates boards."""
        return bool(self.fleet) and self.emulation.enforce != "off"

    def experts_asked(self, client: str, place: int) -> int:
        """k asked of `client`, the `place`-th to join, counted from 0.

        A device of a fleet is known by its name, wherever it is in the order.
        """
        number = number_of(client)
        if number is not None:
            first = 0
            for fleet in self.fleet:
                if number < first + fleet.count:
                    return fleet.experts_per_device or self.model.experts_asked(number)
                first += fleet.count
        return self.model.experts_asked(place)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        """Write out what a file may leave unsaid: ``broker = "auto"``, and the model's name."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        if isinstance(raw.get("broker"), str):
            raw["broker"] = {"address": raw["broker"]}
        data, model = raw.get("data"), raw.get("model", {})
        if (
            isinstance(data, dict)
            and data.get("dataset") in get_args(Dataset)
            and isinstance(model, dict)
            and "name" not in model
        ):
            raw["model"] = {"name": data["dataset"], **model}
        fleets, data = raw.get("fleet"), raw.get("data", {})
        if isinstance(fleets, list) and isinstance(data, dict) and "devices" not in data:
            counts = [fleet.get("count", 1) if isinstance(fleet, dict) else 0 for fleet in fleets]
            if counts and all(type(count) is int and count > 0 for count in counts):
                raw["data"] = {**data, "devices": sum(counts)}
        return raw

    @model_validator(mode="after")
    def _agree(self) -> Experiment:
        conflicts = list(self._conflicts())
        if conflicts:
            key, allowed = conflicts[0]
            raise PydanticCustomError(
                "conflict",
                "{key}: expected {allowed}",
                {"key": key, "allowed": allowed, "more": len(conflicts) - 1},
            )
        return self

    def _conflicts(self) -> list[tuple[str, str]]:
        """Pairs of (key, what it must be) for keys that do not go with the others."""
        data, model = self.data, self.model
        asked = model.experts_per_device
        found: list[tuple[str, str]] = []
        if data.dataset == "digits" and data.path:
            found.append(("data.path", "no path: digits come with scikit-learn"))
        if data.dataset != "digits" and not data.path:
            found.append(
                (
                    "data.path",
                    f"the file or folder that holds {data.dataset}, as in --set data.path=FILE",
                )
            )
        if parse_scheme(data.partition).kind == "natural" and data.dataset != "har":
            found.append(
                (
                    "data.partition",
                    f"iid, dirichlet(alpha) or classes(n); {data.dataset} has no "
                    "natural split, only har has",
                )
            )
        if self.assignment.policy == "fixed" and not self.assignment.file:
            found.append(("assignment.file", "the .npy of the fixed assignment"))
        if self.train.micro_batch and self.train.batch % self.train.micro_batch:
            divides = f"a divisor of train.batch = {self.train.batch}, or 0"
            found.append(("train.micro_batch", divides))
        rates = misfits(self.train.rates(1))
        found += [(f"train.{name}", must) for name, must in rates.items()]
        if not rates and misfits(self.train.rates(self.rounds)):
            decays = "more: the learning rate becomes 0 in float32 before the last round"
            found.append(("train.learning_rate_decay", decays))
        if model.name != data.dataset:
            found.append(("model.name", f'"{data.dataset}", the model for that data set'))
        if max(asked if isinstance(asked, tuple) else [asked]) > model.experts:
            found.append(("model.experts_per_device", f"at most model.experts = {model.experts}"))
        if self.fleet:
            found += self._fleet_conflicts()
        return found

    def _fleet_conflicts(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        count = sum(fleet.count for fleet in self.fleet)
        if self.data.devices != count:
            found.append(("data.devices", f"{count}, the devices of all fleets together, or none"))
        if self.wire.links:
            found.append(("wire.links", "nothing: each fleet has its link"))
        if self.emulation.enforce == "off" and self.emulation.time_scale != 1:
            found.append(("emulation.time_scale", '1, as emulation.enforce is "off"'))
        if self.train.threads:
            found.append(("train.threads", "0: each fleet has its threads"))
        for number, fleet in enumerate(self.fleet):
            if fleet.experts_per_device > self.model.experts:
                most = f"at most model.experts = {self.model.experts}"
                found.append((f"fleet.{number}.experts_per_device", most))
        return found
