"""What devices and the server say to each other: msgpack maps, versioned, checked on arrival.

A message is a frozen dataclass, packed by `edge_runtime.packing` within the limits below; what the
values mean is for the receiver to check. Bulk data never rides in a message: messages name blobs by
digest (`BlobRef`), and whoever needs one asks for its chunks with `Fetch`.

| message  | way          | when                                                       |
|----------|--------------|------------------------------------------------------------|
| Rollcall | server, all  | the server starts: who is there?                           |
| Hello    | device       | on every connection, and as the answer to a roll call      |
| Welcome  | server       | the device is accepted                                     |
| Reject   | server       | the device cannot take part, and why; it ends              |
| Assign   | server       | a round's work: experts, blobs to hold, how to train       |
| Fetch    | both         | please send these chunks                                   |
| Chunk    | both         | one chunk of a blob                                        |
| Report   | device       | the work is done: fitness, telemetry, blobs to collect     |
| Failed   | device       | the work cannot be done, and why                           |
| Received | server       | the update is complete; the device may drop it             |
| Gone     | device       | leaving (also the MQTT last will)                          |
| Stop     | server, both | the run is over                                            |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from edge_runtime.errors import WireError
from edge_runtime.packing import Packing

VERSION = 2
DIGEST_BYTES = 16
CHUNK_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = CHUNK_BYTES + 16 * 1024
MAX_BLOB_BYTES = 1 << 30
MAX_ITEMS = 4096
MAX_TEXT = 1024


@dataclass(frozen=True)
class BlobRef:
    """Names a blob: what it is, its content digest and its size.

    `kind` is ``program``, ``backbone``, ``gate`` or ``expert:<e>``.
    """

    kind: str
    digest: bytes
    size_bytes: int

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise WireError("bad-digest", f"expected {DIGEST_BYTES} bytes, got {len(self.digest)}")
        if not 0 < self.size_bytes <= MAX_BLOB_BYTES:
            raise WireError("bad-size", f"{self.size_bytes} bytes; expected 1 to {MAX_BLOB_BYTES}")

    @property
    def chunks(self) -> int:
        """How many chunks the blob travels in."""
        return -(-self.size_bytes // CHUNK_BYTES)


@dataclass(frozen=True)
class Want:
    """A range of chunks of one blob."""

    digest: bytes
    first: int
    count: int

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES or self.first < 0 or not 0 < self.count <= MAX_ITEMS:
            raise WireError("bad-want", f"first {self.first}, count {self.count}")


@dataclass(frozen=True)
class Rollcall:
    session: str


@dataclass(frozen=True)
class Hello:
    """A device says who it is. `shape` is one sample's shape; `labels` is its largest label + 1."""

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


@dataclass(frozen=True)
class Welcome:
    session: str


@dataclass(frozen=True)
class Reject:
    session: str
    reason: str


@dataclass(frozen=True)
class Assign:
    """One round's work for one device.

    `attempt` counts from 1: a round may begin again with fewer experts, and then what answers an
    earlier attempt is stale. `experts` are global ids, in the order of the program's slots;
    `expert_blobs` follow it. With `local_gate` the gate never leaves the device: `gate` is only
    where it starts from. `batch` is a step's, the program's may be a part of it. `optimizer` and
    the numbers below it: see `edge_runtime.trainer.Rates`.
    """

    session: str
    round: int
    attempt: int
    experts: list[int]
    training_program: BlobRef
    evaluation_program: BlobRef
    backbone: BlobRef
    gate: BlobRef
    expert_blobs: list[BlobRef]
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


@dataclass(frozen=True)
class Fetch:
    wants: list[Want]


@dataclass(frozen=True)
class Chunk:
    digest: bytes
    index: int
    count: int
    size_bytes: int
    data: bytes


@dataclass(frozen=True)
class Report:
    """A device's round: per assigned expert (in `experts` order) what its last epoch saw.

    `usage` counts the samples routed to the expert, `loss` is their mean loss, `hits` how many were
    classified right. `test_hits` of `test_samples` held-out samples were right after training.
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
    update: list[BlobRef]


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


Message = (
    Rollcall
    | Hello
    | Welcome
    | Reject
    | Assign
    | Fetch
    | Chunk
    | Report
    | Failed
    | Received
    | Gone
    | Stop
)
_PACKING = Packing(
    VERSION, get_args(Message), (BlobRef, Want), MAX_MESSAGE_BYTES, MAX_ITEMS, MAX_TEXT
)


def pack(message: Message) -> bytes:
    """The bytes of a message; `WireError` if it is too long for any receiver.

    Any error's text may be a reason: it is cut at `MAX_TEXT`, invalid Unicode becomes ``?``.
    """
    return _PACKING.pack(message)


def unpack(payload: bytes) -> Message:
    """The message that these bytes are; `WireError` if they are none of this protocol."""
    return cast(Message, _PACKING.unpack(payload))


def same_work(one: Assign | Report | Failed | Received, other: Assign) -> bool:
    """Whether `one` is about the work `other`: its session, its round, its attempt."""
    return (one.session, one.round, one.attempt) == (other.session, other.round, other.attempt)
