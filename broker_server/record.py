"""What a round leaves: one `RoundRecord`, with one `ClientRound` for each device that had work.

The coordinator makes them; the store, the report and the console read them. All figures are the
round's own; only `RoundRecord.load` adds up over the rounds. A figure that does not exist, such as
the loss of a round that no device finished, is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from broker_server.capacity import Limit
from edge_runtime.protocol.ledger import Direction

Status = Literal["ok", "late", "failed", "killed", "gone", "rejected"]
Side = Literal["server", "device"]


def printable(text: str) -> str:
    """`text` on one line, without what a terminal would obey: devices write some of our texts."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


@dataclass(frozen=True, order=True, slots=True)
class BytesRow:
    """What one side's socket moved for one client, in one direction, for one kind of thing.

    `side` is who counted: the server, or the device itself, in the account that came with its
    report. Directions are the devices': up is what a device sent. At the server, client ``""`` is
    its own connection and ``*`` is what it published once for everyone. `wire_bytes` are whole MQTT
    packets, `payload_bytes` what they carry.
    """

    side: Side
    client: str
    direction: Direction
    kind: str
    payload_bytes: int
    wire_bytes: int
    messages: int

    @property
    def mqtt_bytes(self) -> int:
        """What MQTT adds to the payload."""
        return self.wire_bytes - self.payload_bytes


@dataclass(frozen=True)
class Device:
    """What a device said of itself when it joined: its data, and what it runs on.

    `cores` are those that it may use; memory is what was available then. `version` is flexmoe's.
    `board` and `link` are names, empty if it told none.
    """

    client: str
    samples: int
    test_samples: int
    trainer: str
    machine: str
    cores: float
    memory_available_bytes: int
    version: str
    board: str = ""
    link: str = ""

    def __post_init__(self) -> None:
        for name in ("trainer", "machine", "version", "board", "link"):
            object.__setattr__(self, name, printable(getattr(self, name)))


@dataclass(frozen=True)
class ClientRound:
    """One device's part in a round; the lists follow `experts`.

    ``late`` means no answer by the deadline, ``failed`` that the device said so, ``killed`` that
    its memory limit ended it, ``gone`` that it left, ``rejected`` that its answer was not usable;
    `detail` says more. `usage` (samples), `loss` (their mean) and `hits` (samples) are empty where
    no answer counted. `quality` is Q after the round's update. `samples` is n_c. `device_accuracy`
    is that of the device's own model on its own held-out samples. Telemetry names carry their
    units. `codec` is what its update was to be coded with, `budget_bytes` what its link may carry
    in the round, both ways; 0: as much as it takes. It was `asked` to hold so many experts, and
    could hold `capacity`: bound by `limit`, with the figures in `why`. A policy may give it fewer.
    """

    client: str
    experts: list[int]
    usage: list[int]
    loss: list[float]
    hits: list[int]
    quality: list[float]
    samples: int
    device_accuracy: float
    telemetry: dict[str, float]
    status: Status
    detail: str = ""
    codec: str = ""
    budget_bytes: int = 0
    asked: int = 0
    capacity: int = 0
    limit: Limit = "asked"
    why: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", printable(self.detail))
        k = len(self.experts)
        if not len(self.usage) == len(self.loss) == len(self.hits) or len(self.usage) not in (0, k):
            raise ValueError(f"{self.client}: usage, loss and hits: expected {k} of each, or none")
        if len(self.quality) not in (0, k) or any(map(math.isnan, self.quality)):
            raise ValueError(f"{self.client}: quality: expected {k} numbers, or none")


@dataclass(frozen=True)
class RoundRecord:
    """One round of the federation; rounds count from 1.

    `loss` is the mean training loss, weighted by samples. `uplink_bytes` and `downlink_bytes` are
    wire bytes of the devices' links, all together (`books.link_bytes`), `egress_bytes` and
    `ingress_bytes` what the server's own socket sent and received. `load_cv` and `usage_cv` are std
    / mean over the experts of `load` (H, samples assigned and trained since the first round) and of
    `usage` (samples routed in this round), both [E]; `routed_cv` is that of R, k times the samples
    routed since the first round.
    `train_s` is the slowest device's; it and `round_s` are seconds of the devices' lives (`Life`),
    `assign_s` is the server's. `participants` had work, `answered` of them counted. `objective`,
    `bound` and `gap` (a fraction) are the assignment's certificate; `violated_samples` is by how
    many samples, over all experts, it misses its load bounds, and no assignment misses them by less
    than `least_violation`. `bytes` are the rows of both sides, the last round's with what the end
    of the run moved. `drops` counts dropped messages by reason. `devices` are those that were
    there. The store keeps one description of a device, the newest, and gives it back with the round
    that brought it.
    """

    round: int
    global_accuracy: float
    device_accuracy: float
    loss: float
    uplink_bytes: int
    downlink_bytes: int
    egress_bytes: int
    ingress_bytes: int
    load_cv: float
    usage_cv: float
    routed_cv: float
    assign_s: float
    train_s: float
    round_s: float
    participants: int
    answered: int
    objective: float
    bound: float
    gap: float
    violated_samples: int
    least_violation: float
    solver: str
    load: list[int] = field(default_factory=list)
    usage: list[int] = field(default_factory=list)
    clients: list[ClientRound] = field(default_factory=list)
    bytes: list[BytesRow] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", [printable(event) for event in self.events])
