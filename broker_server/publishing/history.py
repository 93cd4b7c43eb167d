"""One part's versions as they travelled: the frames that lead a device to the newest one.

A version is named by the digest of its tensors in their raw form. A *whole* frame leads to its
version from nothing, a *delta* frame from the version before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_runtime.codec import encode, needs, parse_coding
from edge_runtime.compression import own_compressors
from edge_runtime.protocol.blob import digest, make_ref
from edge_runtime.protocol.messages import Artifact, BlobRef
from edge_runtime.tensor_blob import Tensors, pack_tensors

FRAME_COST_BYTES = 110  # of a frame beside its bytes: named in Assign, subscribed to, published
MAX_STEPS = 64
# A lossless frame of weights is never this small a share of them: then there is no need to make it.
_SURELY_LESS = 0.25


@dataclass(frozen=True)
class Frame:
    """A blob that travels. Who takes it must know the codecs and compressors that it `needs`."""

    kind: str
    data: bytes
    ref: BlobRef
    needs: frozenset[str]

    @classmethod
    def of(cls, kind: str, data: bytes, needed: Collection[str]) -> Frame:
        """The frame of these bytes."""
        return cls(kind, data, make_ref(data), frozenset(needed))


class WholeFrames:
    """Whole lossless frames of one content, each made when it is first asked for."""

    def __init__(self, make: Callable[[str], Frame]) -> None:
        """`make` codes the content with a compressor, or with none if its name is empty."""
        self._make = make
        self._made: dict[str, Frame] = {}

    def best(self, codecs: Collection[str]) -> Frame:
        """The frame for who knows `codecs`."""
        name = next((name for name in reversed(own_compressors()) if name in codecs), "")
        if name not in self._made:
            frame = self._make(name)
            for other, made in self._made.items():
                if made.ref == frame.ref:  # no compressor shortens it: so none is needed
                    frame = self._made[other] = replace(made, needs=made.needs & frame.needs)
            self._made[name] = frame
        return self._made[name]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._made.values())


@dataclass(frozen=True)
class Step:
    """A frame, and the digest of the version that it leads on from; empty: from nothing."""

    base: bytes
    frame: Frame


class History:
    """The version of one part that devices are to hold, and the ways that lead to it.

    What can never be the cheaper way is forgotten: its memory is about twice the part's.
    """

    def __init__(self, kind: str, tensors: Tensors, steps: Sequence[Step] = ()) -> None:
        """It begins with `tensors`; `steps` lead there, at a loss that is theirs already."""
        self.kind = kind
        self._steps = list(steps)
        self._put(tensors)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that lead to the newest version, the last one last; none is lossless."""
        return tuple(self._steps)

    def add(self, frame: Frame, tensors: Tensors) -> None:
        """`frame` leads from the newest version on to `tensors`."""
        before = self.digest
        if digest(pack_tensors(tensors)) == before:  # all of it was lost: nobody needs it
            return
        self._put(tensors)
        self._steps.append(Step(before, frame))
        most = self._raw_bytes + 2 * FRAME_COST_BYTES  # of a lossless frame, with what describes it
        cost, kept = 0, 0
        for step in reversed(self._steps):
            cost += step.frame.ref.size_bytes + FRAME_COST_BYTES
            if cost > most or kept == MAX_STEPS:
                break
            kept += 1
        del self._steps[: len(self._steps) - kept]

    def artifact(self, held: Collection[bytes], codecs: Collection[str]) -> Artifact:
        """The cheapest way for a device that holds `held` and can decode `codecs`."""
        if self.digest in held:
            return Artifact(self.digest, b"", [])
        base, way = b"", list[Frame]()
        for step in reversed(self._steps):
            if not step.frame.needs <= set(codecs):
                way = []
                break
            way.insert(0, step.frame)
            base = step.base
            if not base or base in held:
                break
        else:
            way = []
        if not way or _cost(way) > _SURELY_LESS * self._raw_bytes:
            whole = [self._wholes.best(codecs)]
            if not way or _cost(whole) <= _cost(way):
                base, way = b"", whole
        return Artifact(self.digest, base, [frame.ref for frame in way])

    def frames(self) -> dict[bytes, Frame]:
        """All frames that a device may still be sent, by digest."""
        frames = [*(step.frame for step in self._steps), *self._wholes]
        return {frame.ref.digest: frame for frame in frames}

    def _put(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.digest = digest(pack_tensors(tensors))
        self._raw_bytes = sum(value.nbytes for value in tensors.values())
        self._wholes = WholeFrames(self._lossless)

    def _lossless(self, compressor: str) -> Frame:
        coding = parse_coding(f"raw+{compressor}" if compressor else "raw")
        data = encode(self.tensors, coding, np.random.default_rng(0), described=True)
        return Frame.of(self.kind, data, needs(coding))


def _cost(way: list[Frame]) -> int:
    return sum(frame.ref.size_bytes + FRAME_COST_BYTES for frame in way)
