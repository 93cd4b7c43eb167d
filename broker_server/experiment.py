"""What an experiment is: every key with its type, range, default, unit and reason.

`broker_server.config` reads these from TOML. The models are frozen and strict: an unknown key, a
text where a number belongs or a value out of range is an error. A whole number may stand where a
fraction is asked. Checks that involve more than one key are in `Experiment`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from device_profiles.partition import ALLOWED, parse_scheme
from edge_runtime.errors import ConfigError
from edge_runtime.messages import MAX_ITEMS

MOST = 1_000_000  # far beyond any use; catches slips such as a time in a count's place

_HOST_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def _text(allowed: str, fits: Callable[[str], bool]) -> AfterValidator:
    """A validator for texts; `allowed` completes "expected ..."."""

    def check(value: str) -> str:
        if not fits(value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _is_partition(value: str) -> bool:
    try:
        parse_scheme(value)
    except ConfigError:
        return False
    return True


def _is_address(value: str) -> bool:
    if value in ("auto", "mosquitto", "amqtt"):
        return True
    match = _HOST_PORT.fullmatch(value)
    return match is not None and 1 <= int(match[2]) <= 65535


def _experts_per_device(value: Any) -> int | tuple[int, ...]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items or any(type(item) is not int or item < 1 for item in items):
        raise ValueError("a whole number >= 1, or a list of such")
    return tuple(items) if isinstance(value, (list, tuple)) else items[0]


Name = Annotated[
    str,
    _text("1 to 64 letters, digits, '_', '.' or '-'", lambda value: bool(_NAME.fullmatch(value))),
]
FilePath = Annotated[str, _text("a path of printable characters", str.isprintable)]
Partition = Annotated[str, _text(ALLOWED, _is_partition)]
Address = Annotated[str, _text("auto, mosquitto, amqtt, or HOST:PORT", _is_address)]
ExpertsPerDevice = Annotated[int | tuple[int, ...], PlainValidator(_experts_per_device)]
Dataset = Literal["digits", "har", "cifar", "fashion"]


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


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


class Train(Section):
    """How a device trains in a round."""

    epochs: int = Field(default=5, ge=1, le=MOST, description="Local epochs a round.")
    batch: int = Field(default=32, ge=1, le=MOST, description="Samples a step.")
    micro_batch: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="Samples that a device computes at once; their gradients are summed up to the "
        "step's. Fewer take less memory, the result is the same. A divisor of batch; 0: all.",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="SGD with momentum, or AdamW, as in PyTorch."
    )
    learning_rate: float = Field(default=0.05, gt=0, description="Step size of the optimizer.")
    learning_rate_decay: float = Field(
        default=1.0, gt=0, le=1, description="Factor on the learning rate after each round."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty of SGD; decoupled weight decay of AdamW."
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Decay of AdamW's mean of the gradients."
    )
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Decay of AdamW's mean of their squares."
    )
    epsilon: float = Field(
        default=1e-8, gt=0, description="AdamW adds it to the root of the mean square."
    )
    clip_norm: float = Field(
        default=0.0,
        ge=0,
        description="Longest gradient, as one vector of all weights; longer ones are scaled down "
        "to it. 0: as long as they come.",
    )
    trainer: Literal["native", "executorch"] = Field(
        default="native",
        description="What the devices that `flexmoe run` starts train with: native, our runtime; "
        "executorch, the stock runtime, which needs PyTorch. Devices elsewhere choose their own.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of each device that `flexmoe run` starts; 0: as many whole cores as "
        "its cgroup's quota gives, 1 without a quota.",
    )


class Fitness(Section):
    """How well an expert fits a device."""

    mode: Literal["loss", "accuracy"] = Field(
        default="loss",
        description="Fitness s of an expert on a device: exp(-alpha * loss), or its accuracy.",
    )
    alpha: float = Field(default=1.0, gt=0, description="Sharpness of loss-driven fitness.")
    beta: float = Field(
        default=0.5, ge=0, le=1, description="Weight of the newest s: Q = (1 - beta) Q + beta s."
    )
    explore: float = Field(
        default=0.0,
        ge=0,
        description="Bonus for pairs that were tried seldom: explore * sqrt(ln(1 + t) / (1 + "
        "trials)), added to Q for the assignment. 0 is the paper's rule, under which pairs that "
        "scored badly in the first rounds are never tried again.",
    )
    q0: float = Field(default=1.0, ge=0, description="Q of a pair that was never trained.")


class Assignment(Section):
    """Who trains which experts."""

    policy: Literal["flex_moe", "greedy", "random", "full"] = Field(
        default="flex_moe",
        description="flex_moe: most quality under load bounds; greedy: each device's top k by "
        "quality; random: any k; full: every expert to every device.",
    )
    delta: float = Field(
        default=0.02,
        ge=0,
        description="Tolerance of the load bounds around the fair share, as a fraction of it.",
    )


class Gate(Section):
    """Who owns the gate."""

    mode: Literal["shared", "local"] = Field(
        default="shared",
        description="shared: aggregated like the experts; local: never leaves its device.",
    )


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
        default=0.5, gt=0, le=1, description="Share of the devices that a round needs."
    )
    join_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds to wait for the devices to join."
    )


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
    gate: Gate = Gate()
    round: Round = Round()
    broker: Broker = Broker()

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
        if self.train.micro_batch and self.train.batch % self.train.micro_batch:
            divides = f"a divisor of train.batch = {self.train.batch}, or 0"
            found.append(("train.micro_batch", divides))
        if model.name != data.dataset:
            found.append(("model.name", f'"{data.dataset}", the model for that data set'))
        if max(asked if isinstance(asked, tuple) else [asked]) > model.experts:
            found.append(("model.experts_per_device", f"at most model.experts = {model.experts}"))
        return found
