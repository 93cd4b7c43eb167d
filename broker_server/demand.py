"""What a round asks of any client, by how many experts it holds: bytes to move, until when."""

from __future__ import annotations

from dataclasses import dataclass

from broker_server.experiment import Experiment
from edge_runtime.codec import parse_coding
from edge_runtime.parts import GATE, ModelParts, Tensors


@dataclass(frozen=True)
class Moves:
    """Bytes in one direction: whatever a client holds, and for each expert that it holds."""

    fixed_bytes: int
    each_bytes: int

    def bytes(self, k: int) -> int:
        """With `k` experts."""
        return self.fixed_bytes + k * self.each_bytes


@dataclass(frozen=True)
class Demand:
    """`epochs` over a client's samples, and the way there and back, within `deadline_s` seconds.

    The bytes are about those that the codecs make of the weights. Messages (a few KB a round) are
    not in them, nor are programs, and what a client lacks because it missed rounds: each travels to
    it once, not every round. No client is given fewer than `least` experts.
    """

    epochs: int
    deadline_s: float
    down: Moves
    up: Moves
    least: int = 1

    @classmethod
    def of(cls, model: ModelParts, experiment: Experiment) -> Demand:
        """What the rounds of `experiment` ask, with this `model`."""
        backbone, gate = model.backbone, {GATE: model.gate}
        codings = experiment.wire.codings
        down, up = _Sizes(codings.downlink), _Sizes(codings.uplink)
        local = experiment.gate.mode == "local"
        all_or_nothing = experiment.assignment.policy == "full"
        row_bytes = 0 if local else -(-up.of(gate) // len(model.gate))
        return cls(
            epochs=experiment.train.epochs,
            deadline_s=experiment.round.deadline_s,
            down=Moves(down.of(backbone) + down.of(gate), max(map(down.of, model.experts))),
            up=Moves(up.of(backbone), max(map(up.of, model.experts)) + row_bytes),
            least=experiment.model.experts if all_or_nothing else 1,
        )

    def down_bytes(self, k: int) -> int:
        """What a client with `k` experts receives, if all parts changed since its last round."""
        return self.down.bytes(k)

    def up_bytes(self, k: int) -> int:
        """What is fetched from it; a local gate never leaves it."""
        return self.up.bytes(k)


class _Sizes:
    """How many bytes a codec makes of tensors, about."""

    def __init__(self, spec: str) -> None:
        self._codec = parse_coding(spec).codec

    def of(self, tensors: Tensors) -> int:
        return self._codec.size_bytes({name: value.shape for name, value in tensors.items()})
