"""What a round asks of any client, by how many experts it holds: bytes to move, until when."""

from __future__ import annotations

from dataclasses import dataclass

from broker_server.experiment import Experiment
from edge_runtime.parts import ModelParts, Tensors


@dataclass(frozen=True)
class Demand:
    """`epochs` over a client's samples, and the way there and back, within `deadline_s` seconds.

    A client moves at most `byte_budget` bytes a round, both directions together; 0 is no budget.
    The bytes are those of the weights as float32. Messages and headers (a few KB a round) are not
    in them, nor are programs: each travels to a client once, not every round.
    """

    epochs: int
    deadline_s: float
    byte_budget: int
    backbone_bytes: int
    expert_bytes: int
    gate_row_bytes: int
    local_gate: bool

    @classmethod
    def of(cls, model: ModelParts, experiment: Experiment) -> Demand:
        """What the rounds of `experiment` ask, with this `model`."""
        return cls(
            epochs=experiment.train.epochs,
            deadline_s=experiment.round.deadline_s,
            byte_budget=experiment.round.byte_budget,
            backbone_bytes=_size_bytes(model.backbone),
            expert_bytes=max(_size_bytes(expert) for expert in model.experts),
            gate_row_bytes=model.gate[0].nbytes,
            local_gate=experiment.gate.mode == "local",
        )

    def down_bytes(self, k: int) -> int:
        """What a client with `k` experts fetches, if it holds nothing of it already."""
        return self.backbone_bytes + k * (self.expert_bytes + self.gate_row_bytes)

    def up_bytes(self, k: int) -> int:
        """What is fetched from it; a local gate never leaves it."""
        row_bytes = 0 if self.local_gate else self.gate_row_bytes
        return self.backbone_bytes + k * (self.expert_bytes + row_bytes)

    def moved_bytes(self, k: int) -> int:
        """Both directions together."""
        return self.down_bytes(k) + self.up_bytes(k)


def _size_bytes(tensors: Tensors) -> int:
    return sum(value.nbytes for value in tensors.values())
