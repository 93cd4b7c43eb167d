"""What devices and the server say to each other: msgpack maps, versioned, checked on arrival.

A message is a frozen dataclass. `pack` writes it as ``{"v": 1, "t": <type>, **fields}``; `unpack`
accepts exactly the fields of a known type, with the right types and within the limits below, and
raises `WireError` for anything else; what the values mean is for the receiver to check. Bulk data
never rides in a message: messages name blobs by digest (`BlobRef`), and whoever needs one asks for
its chunks with `Fetch`.

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

import dataclasses
import math
import reprlib
from dataclasses import dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

import msgpack

from edge_runtime.errors import WireError

VERSION = 1
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

    `experts` are global ids, in the order of the program's slots; `expert_blobs` follow it. With
    `local_gate` the gate never leaves the device: `gate` is only where it starts from. `batch` is a
    step's, the program's may be a part of it. `optimizer` and the numbers below it: see
    `edge_runtime.trainer.Rates`.
    """

    session: str
    round: int
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
    reason: str
    needed_bytes: int


@dataclass(frozen=True)
class Received:
    session: str
    round: int


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
_TYPES: dict[str, type] = {cls.__name__.lower(): cls for cls in get_args(Message)}
_HINTS: dict[type, dict[str, Any]] = {
    cls: get_type_hints(cls) for cls in [*_TYPES.values(), BlobRef, Want]
}
# Checked by msgpack before it allocates: a few bytes can claim a long array, once per level of a
# deep nesting. Extension types (timestamps too) are no part of the protocol.
_UNPACK_LIMITS = {"max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS, "max_ext_len": 0}


def pack(message: Message) -> bytes:
    """The bytes of a message; `WireError` if it is too long for any receiver.

    Any error's text may be a reason: it is cut at `MAX_TEXT`, invalid Unicode becomes ``?``.
    """
    fields = {name: _plain(getattr(message, name)) for name in _HINTS[type(message)]}
    packed: bytes = msgpack.packb(
        {"v": VERSION, "t": type(message).__name__.lower(), **fields}, unicode_errors="replace"
    )
    _check_size(packed)
    return packed


def unpack(payload: bytes) -> Message:
    """The message that these bytes are; `WireError` if they are none of this protocol."""
    _check_size(payload)
    try:
        raw = msgpack.unpackb(payload, **_UNPACK_LIMITS)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise WireError("malformed", f"not msgpack ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise WireError("malformed", f"expected a map, got {type(raw).__name__}")
    version = raw.pop("v", None)
    if type(version) is not int or version != VERSION:  # True == 1 == 1.0
        raise WireError("version", f"this side speaks version {VERSION} of the protocol")
    name = raw.pop("t", None)
    if not isinstance(name, str) or name not in _TYPES:
        # A peer's value goes to our log: reprlib keeps it short, and bears deep nesting.
        raise WireError("unknown", f"no message type {reprlib.repr(name)}")
    return cast(Message, _build(_TYPES[name], raw, name))


def _check_size(packed: bytes) -> None:
    if len(packed) > MAX_MESSAGE_BYTES:
        raise WireError("oversized", f"at most {MAX_MESSAGE_BYTES} bytes, not {len(packed)}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return [_plain(getattr(value, name)) for name in _HINTS[type(value)]]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _build(cls: type, raw: dict[Any, Any], where: str) -> Any:
    hints = _HINTS[cls]
    if raw.keys() != hints.keys():
        odd = reprlib.repr(sorted(map(repr, raw.keys() ^ hints.keys())))
        raise WireError("malformed", f"{where}: missing or unknown fields {odd}")
    return cls(**{name: _check(raw[name], hint, f"{where}.{name}") for name, hint in hints.items()})


def _check(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, or `WireError` naming the field."""
    origin = get_origin(hint)
    if hint in _HINTS:
        names = list(_HINTS[hint])
        if not isinstance(value, list) or len(value) != len(names):
            raise WireError("malformed", f"{where}: expected {hint.__name__}")
        return _build(hint, dict(zip(names, value, strict=True)), where)
    if origin is list:
        if not isinstance(value, list):
            raise WireError("malformed", f"{where}: expected a list, got {type(value).__name__}")
        return [_check(item, get_args(hint)[0], where) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise WireError("malformed", f"{where}: expected a map, got {type(value).__name__}")
        key, item = get_args(hint)
        return {_check(k, key, where): _check(v, item, where) for k, v in value.items()}
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise WireError("malformed", f"{where} is {type(value).__name__}, not {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise WireError("not-finite", where)
    if hint is int and not -(2**63) <= value < 2**63:
        raise WireError("malformed", f"{where}: out of range")
    if hint is str and len(value) > MAX_TEXT:
        raise WireError("malformed", f"{where}: longer than {MAX_TEXT} characters")
    return value
