"""What the rounds carry forward, frozen; and as bytes, so that a killed server goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

import msgpack
import numpy as np
from numpy.typing import NDArray

from broker_server.capacity import Cap
from broker_server.pace import Pace
from broker_server.publishing.history import Frame, Step
from edge_runtime.errors import DataError
from edge_runtime.parts import ModelParts, merge, split
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import DIGEST_BYTES
from edge_runtime.tensor_blob import pack_tensors, unpack_tensors

_VERSION = 6


@dataclass(frozen=True)
class State:
    """After `round` rounds of `session`.

    `quality`, `trials` (rounds in which the pair trained) and `shares` (routed; NaN: unknown) are
    [E] by client. `load` is H and `routed` R, both [E]. `credit` is of the clients that rounds
    choose from.
    `places` are all clients in the order in which rounds first saw them, within a round by name: a
    list of capacities in the experiment is dealt out in this order. `caps` are of the clients whose
    memory did not hold what they were given; `paces` are what the rounds showed of each client.
    `counted` is the last round in which a client's update became part of the model.
    `published` is what devices hold of `model`, None before it was first published, and `ways` are
    the steps that led there, by kind. `unsent` are the kinds of the parts that changed since.
    """

    session: str
    round: int
    model: ModelParts
    quality: Mapping[str, NDArray[np.float64]]
    trials: Mapping[str, NDArray[np.int64]]
    load: NDArray[np.int64]
    routed: NDArray[np.int64]
    shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    credit: Mapping[str, float] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    caps: Mapping[str, Cap] = field(default_factory=dict)
    paces: Mapping[str, Pace] = field(default_factory=dict)
    published: ModelParts | None = None
    counted: Mapping[str, int] = field(default_factory=dict)
    ways: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    unsent: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """A checkpoint: the digest of what follows, and a msgpack map.

        A published model that is as the model is not in it twice.
        """
        model = pack_tensors(merge(self.model))
        published = None if self.published is None else pack_tensors(merge(self.published))
        packed: bytes = msgpack.packb(
            {
                "version": _VERSION,
                "session": self.session,
                "round": self.round,
                "model": model,
                "published": b"" if published == model else published,
                "ways": {kind: [_plain(step) for step in way] for kind, way in self.ways.items()},
                "unsent": list(self.unsent),
                "quality": {client: row.tolist() for client, row in self.quality.items()},
                "trials": {client: row.tolist() for client, row in self.trials.items()},
                "load": self.load.tolist(),
                "routed": self.routed.tolist(),
                "shares": {client: row.tolist() for client, row in self.shares.items()},
                "credit": dict(self.credit),
                "places": list(self.places),
                "caps": {client: astuple(cap) for client, cap in self.caps.items()},
                "counted": dict(self.counted),
                "paces": {client: pace.to_plain() for client, pace in self.paces.items()},
            }
        )
        return digest(packed) + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """The state that `to_bytes` wrote; `DataError` if one bit of it is another."""
        packed = data[DIGEST_BYTES:]
        if digest(packed) != data[:DIGEST_BYTES]:
            raise DataError("the checkpoint is damaged; start a new run in another --out")
        raw = msgpack.unpackb(packed)
        if raw["version"] != _VERSION:
            raise DataError(
                f"the checkpoint has version {raw['version']}, this release reads {_VERSION}; "
                "go on with the release that wrote it"
            )
        model, published = split(unpack_tensors(raw["model"])), None
        if raw["published"] is not None:
            published = split(unpack_tensors(raw["published"])) if raw["published"] else model
        return cls(
            session=raw["session"],
            round=raw["round"],
            model=model,
            quality={client: np.array(row) for client, row in raw["quality"].items()},
            trials={c: np.array(row, dtype=np.int64) for c, row in raw["trials"].items()},
            load=np.array(raw["load"], dtype=np.int64),
            routed=np.array(raw["routed"], dtype=np.int64),
            shares={c: np.array(row, dtype=np.float64) for c, row in raw["shares"].items()},
            credit=raw["credit"],
            places=tuple(raw["places"]),
            caps={client: Cap(*cap) for client, cap in raw["caps"].items()},
            paces={client: Pace.from_plain(pace) for client, pace in raw["paces"].items()},
            published=published,
            counted=raw["counted"],
            ways={
                kind: tuple(Step(base, Frame.of(kind, data, names)) for base, data, names in way)
                for kind, way in raw["ways"].items()
            },
            unsent=tuple(raw["unsent"]),
        )


def _plain(step: Step) -> list[object]:
    return [step.base, step.frame.data, sorted(step.frame.needs)]
