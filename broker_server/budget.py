"""What devices' links may carry in a round, and what fits: how many experts, which, and the codec.

Before the assignment a device's `Allowance` says how many experts fit by what it holds, and which
would not. After it, when the frames for a device are known, its update is coded with the widest
codec of the ladder that fits beside them. Nothing here depends on time: the same holdings under the
same published model allow the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_server.capacity import Capacity, count_of
from broker_server.experiment import Experiment
from broker_server.publishing.publication import Publication
from broker_server.roster import Member
from broker_server.round_cost import RoundCost, UpdateSizes, step_bytes
from edge_runtime.codec import Coding, needs, parse_coding, resolve
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.protocol.blob import kind_of_expert
from edge_runtime.protocol.messages import CHUNK_BYTES, BlobRef

LADDER = (
    "int8+zip",
    "int4+zip",
    "topk(0.2,4)",
    "topk(0.1,4)",
    "topk(0.05,4)",
    "topk(0.02,4)",
    "topk(0.01,4)",
)
"""Codecs of updates for links that cannot carry the configured one, the widest first."""

_CLEARLY = 1.25
_CHOOSING = ("flex_moe", "desirability", "greedy")  # policies that look at quality


@dataclass(frozen=True)
class Allowance:
    """What a budget of `asked_bytes` allows one device in a round; all in bytes, both ways.

    least_bytes: what a round takes that carries one step of all that it must. shared_bytes: of a
    round, whatever the experts. each_bytes [E]: what each expert adds, coded as narrowly as can be.
    likely_bytes [E]: the same, but an expert that is to travel whole, once, counts as one step.
    Under a policy that does not look at quality both are the means over the experts.
    """

    asked_bytes: int
    least_bytes: int
    shared_bytes: int
    each_bytes: list[int]
    likely_bytes: list[int]

    def round_bytes(self, k: int) -> int:
        """What a round with the `k` cheapest experts takes."""
        return self.shared_bytes + sum(sorted(self.likely_bytes)[:k])

    def capacity(self, most: int) -> Capacity | None:
        """As many experts as fit, at least one; None if `most` do."""
        fitting = (k for k in range(most, 1, -1) if self.round_bytes(k) <= self.asked_bytes)
        k = next(fitting, 1)
        if k == most:
            return None
        figures = (
            f"a round with {count_of(k + 1)} moves about {self.round_bytes(k + 1):,} bytes, "
            f"wire.bytes_per_round is {self.asked_bytes:,}"
        )
        return Capacity(k, "link", figures)

    def dear(self, k: int) -> NDArray[np.bool_]:
        """Which experts [E] cost more than one of `k` may, and clearly more than the `k` cheapest.

        So there are `k` at least that are not dear, and where all cost about the same none is.
        """
        most = (self.asked_bytes - self.shared_bytes) / k
        least = sorted(self.each_bytes)[k - 1]
        dear: NDArray[np.bool_] = np.array(self.each_bytes) > max(most, _CLEARLY * least)
        return dear

    @property
    def objection(self) -> str:
        """What to say of a budget that no round can meet; empty if one can."""
        if self.least_bytes <= self.asked_bytes:
            return ""
        least_bytes = -(-self.least_bytes // 100) * 100
        return f"asked {self.asked_bytes:,} bytes a round, the least is about {least_bytes:,}"


class Budgets:
    """The budgets of an experiment, against what its publication would send."""

    def __init__(self, experiment: Experiment, publication: Publication) -> None:
        self._wire = experiment.wire
        self._federation = experiment.broker.federation
        self._local_gate = experiment.gate.mode == "local"
        policy = experiment.assignment.policy
        self._least_k = experiment.model.experts if policy == "full" else 1
        self._chooses = policy in _CHOOSING
        self._publication = publication
        self._downlink = parse_coding(self._wire.codings.downlink)
        self._uplink = parse_coding(self._wire.codings.uplink)

    def asked(self, member: Member) -> int:
        """What its link may carry in a round, bytes; 0 if it has no budget."""
        return self._wire.budget_of(member.client, member.hello.link)

    def allowance(
        self, member: Member, held: Collection[bytes], chunk_bytes: int = CHUNK_BYTES
    ) -> Allowance | None:
        """What fits where the device holds `held`; None without a budget."""
        asked_bytes = self.asked(member)
        if not asked_bytes:
            return None
        model, cost = self._model, RoundCost(self._federation, member.client, chunk_bytes)
        sizes, narrowest = UpdateSizes(model, self._local_gate), self._ladder(member)[-1]
        up_bytes = sizes.each_bytes(narrowest)
        alone_bytes = cost.messages_bytes(1) - cost.messages_bytes(0) + up_bytes
        base_bytes = cost.messages_bytes(0) + sizes.shared_bytes(narrowest)

        def step(part: Tensors) -> int:
            return cost.frame_bytes(step_bytes(self._downlink, part))

        def way(kind: str, part: Tensors) -> tuple[int, int]:
            """What the part costs, and what it would if it did not travel whole."""
            artifact = self._publication.artifact(kind, held, member.hello.codecs)
            exact = cost.frames_bytes(artifact.frames)
            return exact, exact if artifact.base else min(exact, step(part))

        gate = {GATE: model.gate}
        ways = [way(kind_of_expert(e), part) for e, part in enumerate(model.experts)]
        each = [exact + alone_bytes for exact, _ in ways]
        likely = [steady + alone_bytes for _, steady in ways]
        if not self._chooses:
            each, likely = _evened(each), _evened(likely)
        steps = [step(model.backbone), step(gate), self._least_k * max(map(step, model.experts))]
        return Allowance(
            asked_bytes=asked_bytes,
            least_bytes=base_bytes + sum(steps) + self._least_k * alone_bytes,
            shared_bytes=base_bytes + way("backbone", model.backbone)[1] + way("gate", gate)[1],
            each_bytes=each,
            likely_bytes=likely,
        )

    def coding(
        self,
        member: Member,
        k: int,
        frames: Iterable[BlobRef],
        chunk_bytes: int = CHUNK_BYTES,
        last: bool = False,
    ) -> str:
        """What the device is to code its update of `k` experts with, beside these frames.

        The `last` round leaves room for the end of the run.
        """
        asked_bytes = self.asked(member)
        chosen = self._uplink
        if asked_bytes:
            cost = RoundCost(self._federation, member.client, chunk_bytes)
            sizes = UpdateSizes(self._model, self._local_gate)
            left_bytes = asked_bytes - cost.messages_bytes(k) - cost.frames_bytes(frames)
            left_bytes -= cost.end_bytes(k) if last else 0
            ladder = self._ladder(member)
            fitting = (coding for coding in ladder if sizes.bytes(coding, k) <= left_bytes)
            chosen = next(fitting, ladder[-1])
        return resolve(chosen, member.hello.codecs).spec

    @property
    def _model(self) -> ModelParts:
        model = self._publication.published
        if model is None:
            raise RuntimeError("budgets need a published model")
        return model

    def _ladder(self, member: Member) -> list[Coding]:
        """The configured codec, then those that the device knows, each smaller than the last."""
        sizes, codecs = UpdateSizes(self._model, self._local_gate), member.hello.codecs
        ladder = [self._uplink]
        for coding in map(parse_coding, LADDER):
            known = needs(coding, codecs) <= set(codecs)
            if known and sizes.bytes(coding, 1) < sizes.bytes(ladder[-1], 1):
                ladder.append(coding)
        return ladder


def _evened(sizes: list[int]) -> list[int]:
    """The mean, for each."""
    return [round(sum(sizes) / len(sizes))] * len(sizes)


def dear_pairs(
    given: Mapping[str, Capacity], allowances: Mapping[str, Allowance]
) -> dict[str, NDArray[np.bool_]]:
    """By client that has a budget: which experts [E] are dear where it is given so many."""
    return {c: allowances[c].dear(held.k) for c, held in given.items() if c in allowances}
