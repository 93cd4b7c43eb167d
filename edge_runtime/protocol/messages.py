"""What devices and the server say to each other: msgpack arrays, versioned, checked on arrival.

A message is a frozen dataclass, packed by `edge_runtime.protocol.packing` within the limits of
`message_parts`; what the values mean is for the receiver to check. Bulk data never rides in a
message: messages name blobs by digest (`BlobRef`). What goes down is on topics of its own
(docs/protocol.md); what goes up is asked for with `Fetch` and comes as `Chunk`s.

| message  | way          | when                                                         |
|----------|--------------|--------------------------------------------------------------|
| Rollcall | server, all  | the server starts: who is there?                             |
| Hello    | device       | on every connection, and as the answer to a roll call        |
| Welcome  | server       | the device is accepted                                       |
| Reject   | server       | the device cannot take part, and why; it ends                |
| Assign   | server       | a round's work: experts, contents to hold, how to train      |
| Holding  | device       | the work cannot be begun from what the device holds          |
| Fetch    | both         | please send these chunks (down: publish them again)          |
| Chunk    | device       | one chunk of an update                                       |
| Report   | device       | the work is done: fitness, telemetry, the update to collect  |
| Failed   | device       | the work cannot be done, and why                             |
| Received | server       | the update is complete; the device may drop it               |
| Gone     | device       | leaving (also the MQTT last will)                            |
| Stop     | server, all  | the run is over                                              |
| Account  | device       | after the stop: the bytes that no report has told of         |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from edge_runtime.errors import WireError
from edge_runtime.protocol.message_parts import CHUNK_BYTES as CHUNK_BYTES
from edge_runtime.protocol.message_parts import DIGEST_BYTES as DIGEST_BYTES
from edge_runtime.protocol.message_parts import MAX_BLOB_BYTES as MAX_BLOB_BYTES
from edge_runtime.protocol.message_parts import MAX_HELD as MAX_HELD
from edge_runtime.protocol.message_parts import MAX_ITEMS as MAX_ITEMS
from edge_runtime.protocol.message_parts import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from edge_runtime.protocol.message_parts import MAX_TEXT as MAX_TEXT
from edge_runtime.protocol.message_parts import MIN_CHUNK_BYTES as MIN_CHUNK_BYTES
from edge_runtime.protocol.message_parts import Artifact as Artifact
from edge_runtime.protocol.message_parts import BlobRef as BlobRef
from edge_runtime.protocol.message_parts import Moved as Moved
from edge_runtime.protocol.message_parts import Want as Want
from edge_runtime.protocol.message_parts import check_digest, check_held
from edge_runtime.protocol.packing import Packing

VERSION = 4


@dataclass(frozen=True)
class Rollcall:
    session: str


@dataclass(frozen=True)
class Hello:
    """A device says who it is. `shape` is one sample's shape; `labels` is its largest label + 1.

    `link` is the class of its link and `board` the name of its board, or empty. `memory_kills`
    counts the processes that the kernel killed because its memory limit was reached; -1: it does
    not say. `codecs` names what it can decode and encode (codecs and compressors). `held` are the
    digests of the contents that it holds.
    """

    session: str
    samples: int
    test_samples: int
    shape: list[int]
    labels: int
    trainer: str
    machine: str
    cores: float
    memory_available_bytes: int
    version: str
    link: str
    board: str
    memory_kills: int
    codecs: list[str]
    held: list[bytes]

    def __post_init__(self) -> None:
        if self.memory_kills < -1:
            raise WireError("malformed", f"{self.memory_kills} memory kills; expected -1 or more")
        check_held(self.held)


@dataclass(frozen=True)
class Welcome:
    """The device is in. Blobs travel in chunks of `chunk_bytes`.

    `retained`: the broker keeps the chunks that go down; else a device has to ask for them.
    """

    session: str
    chunk_bytes: int
    retained: bool

    def __post_init__(self) -> None:
        if not MIN_CHUNK_BYTES <= self.chunk_bytes <= CHUNK_BYTES:
            raise WireError("bad-size", f"chunks of {self.chunk_bytes} bytes")


@dataclass(frozen=True)
class Reject:
    session: str
    reason: str


@dataclass(frozen=True)
class Assign:
    """One round's work for one device.

    `attempt` counts from 1: a round may begin again with fewer experts, and then what answers an
    earlier attempt is stale. `counted` is the last round whose update of this device is in the
    model; 0: none is. `experts` are global ids, in the order of the program's slots;
    `expert_parts` follow it. `gate` has all rows. With `local_gate` the gate never leaves the
    device: `gate` is only where it starts from. `batch` is a step's, the program's may be a part of
    it. `optimizer` and the numbers below it: see `edge_runtime.trainer.Rates`. `codec` is what the
    update is to be coded with (see `edge_runtime.codec`).
    """

    session: str
    round: int
    attempt: int
    counted: int
    experts: list[int]
    training_program: Artifact
    evaluation_program: Artifact
    backbone: Artifact
    gate: Artifact
    expert_parts: list[Artifact]
    local_gate: bool
    epochs: int
    batch: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    clip_norm: float
    seed: int
    codec: str


@dataclass(frozen=True)
class Holding:
    """The device lacks what the work builds on; `held` are the digests of what it does hold."""

    session: str
    round: int
    attempt: int
    held: list[bytes]

    def __post_init__(self) -> None:
        check_held(self.held)


@dataclass(frozen=True)
class Fetch:
    wants: list[Want]


@dataclass(frozen=True)
class Chunk:
    """Bytes ``index * chunk_bytes`` and on of the blob `digest`."""

    digest: bytes
    index: int
    data: bytes

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if self.index < 0:
            raise WireError("bad-chunk", f"chunk {self.index}")


@dataclass(frozen=True)
class Report:
    """A device's round: per assigned expert (in `experts` order) what its last epoch saw.

    `usage` counts the samples routed to the expert, `loss` is their mean loss, `hits` how many were
    classified right. `test_hits` of `test_samples` held-out samples were right after training.
    `update` is one blob: backbone, gate rows (unless they are local), each expert, one after the
    other, in `sections` of so many bytes. `account` is what the device's socket moved since the
    last report, `dropped` the digests of contents that it holds no longer.
    """

    session: str
    round: int
    attempt: int
    experts: list[int]
    usage: list[int]
    loss: list[float]
    hits: list[int]
    train_loss: float
    test_hits: int
    test_samples: int
    telemetry: dict[str, float]
    update: BlobRef
    sections: list[int]
    account: list[Moved]
    dropped: list[bytes]

    def __post_init__(self) -> None:
        check_held(self.dropped)


@dataclass(frozen=True)
class Failed:
    """`needed_bytes`: the memory that the work needs, if that is the reason; else 0."""

    session: str
    round: int
    attempt: int
    reason: str
    needed_bytes: int


@dataclass(frozen=True)
class Received:
    session: str
    round: int
    attempt: int


LAST_WILL = "connection lost"
"""The reason in a device's last will, which the broker sends when its connection is lost."""


@dataclass(frozen=True)
class Gone:
    reason: str


@dataclass(frozen=True)
class Stop:
    session: str
    reason: str


@dataclass(frozen=True)
class Account:
    """What the device's socket moved since its last report, until just before this message."""

    session: str
    account: list[Moved]


Message = (
    Rollcall
    | Hello
    | Welcome
    | Reject
    | Assign
    | Holding
    | Fetch
    | Chunk
    | Report
    | Failed
    | Received
    | Gone
    | Stop
    | Account
)
_PACKING = Packing(
    VERSION,
    get_args(Message),
    (BlobRef, Artifact, Moved, Want),
    MAX_MESSAGE_BYTES,
    MAX_ITEMS,
    MAX_TEXT,
)


def pack(message: Message) -> bytes:
    """The bytes of a message; `WireError` if it is too long for any receiver.

    Any error's text may be a reason: it is cut at `MAX_TEXT`, invalid Unicode becomes ``?``.
    """
    return _PACKING.pack(message)


def unpack(payload: bytes) -> Message:
    """The message that these bytes are; `WireError` if they are none of this protocol."""
    return cast(Message, _PACKING.unpack(payload))


def same_work(one: Assign | Holding | Report | Failed | Received, other: Assign) -> bool:
    """Whether `one` is about the work `other`: its session, its round, its attempt."""
    return (one.session, one.round, one.attempt) == (other.session, other.round, other.attempt)
