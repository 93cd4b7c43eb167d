"""The published model: what devices hold, or are led to, part by part."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from broker_server.publishing.history import Frame, History, Step
from broker_server.seeds import derive_seed
from edge_runtime.codec import Coding, Preset, decode, encode, needs, parse_coding
from edge_runtime.errors import FlexmoeError, WireError
from edge_runtime.parts import GATE, ModelParts, difference
from edge_runtime.protocol.blob import kind_of_expert
from edge_runtime.protocol.messages import Artifact
from edge_runtime.tensor_blob import Tensors


def parts_of(model: ModelParts) -> Iterator[tuple[str, Tensors]]:
    """The parts that travel, by kind: the backbone, the gate (all rows), each expert."""
    yield "backbone", model.backbone
    yield "gate", {GATE: model.gate}
    for expert, tensors in enumerate(model.experts):
        yield kind_of_expert(expert), tensors


def changed_kinds(before: ModelParts, after: ModelParts) -> list[str]:
    """The kinds of the parts that are not the same to the last bit."""
    pairs = zip(parts_of(before), parts_of(after), strict=True)
    return [kind for (kind, one), (_, other) in pairs if not _equal(one, other)]


class Publication:
    """Publishes the server's model step by step.

    With a lossless codec the published model is the server's. With another, each step is coded from
    the difference of the two, so it carries what the steps before it lost. What is drawn at random
    depends on (seed, round, kind) alone: a resumed server publishes the same.
    """

    def __init__(self, codings: Preset, whole_every: int, seed: int) -> None:
        """`whole_every` so many rounds parts that changed are sent without loss; 0: never."""
        self._downlink = parse_coding(codings.downlink)
        self._whole = parse_coding(codings.whole)
        self._whole_every = whole_every
        self._seed = seed
        self._parts: dict[str, History] = {}
        self._frames: dict[bytes, Frame] = {}  # all that devices may still be sent, by digest
        self.published: ModelParts | None = None
        """What devices hold, or are led to."""

    def begin(self, model: ModelParts, codecs: Collection[str]) -> ModelParts:
        """Publish the `model` that a run begins with, in whole frames; what is lost is lost.

        `codecs` are those that all devices know.
        """
        self._parts = {}
        for kind, tensors in parts_of(model):
            if _lossless(self._whole):
                self._parts[kind] = History(kind, tensors)
                continue
            try:
                data = encode(tensors, self._whole, self._rng(0, kind), codecs, described=True)
                decoded = decode(data, None, sum(value.nbytes for value in tensors.values()))
            except WireError as error:
                raise FlexmoeError(
                    f"wire.whole = {self._whole.spec} cannot code the model's {kind} ({error}); "
                    "choose another codec"
                ) from None
            first = Step(b"", Frame.of(kind, data, needs(self._whole, codecs)))
            self._parts[kind] = History(kind, {name: decoded[name] for name in tensors}, [first])
        return self._published()

    def resume(self, published: ModelParts, ways: Mapping[str, Sequence[Step]]) -> None:
        """Go on from what a server had `published`, and the `ways` that led there."""
        self._parts = {
            kind: History(kind, tensors, ways.get(kind, ()))
            for kind, tensors in parts_of(published)
        }
        self._note_frames()
        self.published = published

    @property
    def ways(self) -> dict[str, tuple[Step, ...]]:
        """By kind the steps that lead to the published parts; without parts that have none."""
        return {kind: part.steps for kind, part in self._parts.items() if part.steps}

    def publish(
        self, model: ModelParts, changed: Collection[str], number: int, codecs: Collection[str]
    ) -> ModelParts:
        """The published model after round `number` led to `model`.

        Only parts of the kinds that `changed` are sent. `codecs` are those that all devices know.
        """
        due = self._whole_every > 0 and number % self._whole_every == 0
        for kind, tensors in parts_of(model):
            if kind not in changed:
                continue
            if due or _lossless(self._downlink) or not self._step(kind, tensors, number, codecs):
                self._parts[kind] = History(kind, tensors)
        return self._published()

    def artifact(self, kind: str, held: Collection[bytes], codecs: Collection[str]) -> Artifact:
        """The cheapest way to a part for a device that holds `held` and can decode `codecs`."""
        part = self._parts[kind]
        artifact = part.artifact(held, codecs)
        if artifact.frames and not artifact.base:  # it may have been made now
            self._frames |= part.frames()
        return artifact

    def find(self, name: bytes) -> Frame | None:
        """The frame of this digest, if a device may still be sent it."""
        return self._frames.get(name)

    def _published(self) -> ModelParts:
        self._note_frames()
        backbone, gate, *experts = (part.tensors for part in self._parts.values())
        self.published = ModelParts(backbone, gate[GATE], tuple(experts))
        return self.published

    def _note_frames(self) -> None:
        frames = (part.frames() for part in self._parts.values())
        self._frames = {name: frame for found in frames for name, frame in found.items()}

    def _step(self, kind: str, tensors: Tensors, number: int, codecs: Collection[str]) -> bool:
        """Code what the part lacks as a delta; False if the codec cannot."""
        part = self._parts[kind]
        with np.errstate(over="ignore"):
            change = difference(tensors, part.tensors)
            try:
                data = encode(change, self._downlink, self._rng(number, kind), codecs)
                shapes = {name: value.shape for name, value in tensors.items()}
                step = decode(data, shapes, sum(value.nbytes for value in tensors.values()))
            except WireError:  # the change, or what the codec makes of it, is not finite
                return False
            after = {name: value + step[name] for name, value in part.tensors.items()}
        if not all(np.isfinite(value).all() for value in after.values()):
            return False
        part.add(Frame.of(kind, data, needs(self._downlink, codecs)), after)
        return True

    def _rng(self, number: int, kind: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self._seed, number, "published", kind))


def _lossless(coding: Coding) -> bool:
    return coding.codec.name == "raw"


def _equal(one: Tensors, other: Tensors) -> bool:
    """Whether they are the same to the last bit."""
    return all(
        value is other[name] or value.tobytes() == other[name].tobytes()
        for name, value in one.items()
    )
