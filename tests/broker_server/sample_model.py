"""A small model in parts, and updates of it, for the tests of what the server does with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_runtime.codec import encode as encode_tensors
from edge_runtime.codec import parse_coding
from edge_runtime.codecs.planes import to_planes
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.protocol.blob import digest, kind_of_expert, make_ref
from edge_runtime.protocol.messages import Artifact, Assign, Report
from model_export.models import ModelSpec

SAMPLES = 10
SPEC = ModelSpec("digits", (4,), 3, 4)
CODING = "raw"


def random_model(seed: int, experts: int = 4, big: int = 3) -> ModelParts:
    """A model of `experts`; one tensor of each expert is [big, big]."""
    rng = np.random.default_rng(seed)

    def tensor(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return ModelParts(
        backbone={"0.weight": tensor(6, 4), "0.bias": tensor(6)},
        gate=tensor(experts, 6),
        experts=tuple({"0.weight": tensor(big, big), "0.bias": tensor(3)} for _ in range(experts)),
    )


def changes(seed: int, model: ModelParts, experts: Sequence[int]) -> dict[str, Tensors]:
    """Random changes of the backbone, the gate's rows and the `experts`, by kind."""
    rng = np.random.default_rng(seed)

    def like(tensors: Tensors) -> Tensors:
        return {n: rng.normal(size=v.shape).astype(np.float32) for n, v in tensors.items()}

    return {
        "backbone": like(model.backbone),
        "gate": like({GATE: model.gate[list(experts)]}),
        **{kind_of_expert(e): like(model.experts[e]) for e in experts},
    }


def encode(tensors: dict[str, Tensors], coding: str = CODING) -> dict[str, bytes]:
    """Each kind's tensors, coded."""
    rng, codec = np.random.default_rng(0), parse_coding(coding)
    return {kind: encode_tensors(value, codec, rng) for kind, value in tensors.items()}


def encode_anything(tensors: Tensors) -> bytes:
    """Coded as `raw` codes, but for values that are no numbers too."""
    header = encode({"": {name: np.zeros_like(value) for name, value in tensors.items()}})[""][:2]
    words = np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).view(np.uint32)
    return header + to_planes((words << 1) | (words >> 31))


def make_assign(
    experts: Sequence[int] = (1, 3),
    session: str = "s",
    number: int = 1,
    attempt: int = 1,
    local_gate: bool = False,
    artifacts: dict[str, Artifact] | None = None,
) -> Assign:
    """Work on `experts`; `artifacts` by kind are what it builds on, or what devices hold."""
    named = artifacts or {}

    def artifact(kind: str) -> Artifact:
        return named.get(kind) or Artifact(digest(kind.encode()), b"", [])

    return Assign(
        session=session,
        round=number,
        attempt=attempt,
        counted=0,
        experts=list(experts),
        training_program=artifact("program"),
        evaluation_program=artifact("program"),
        backbone=artifact("backbone"),
        gate=artifact("gate"),
        expert_parts=[artifact(kind_of_expert(e)) for e in experts],
        local_gate=local_gate,
        epochs=1,
        batch=8,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.0,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        clip_norm=0.0,
        seed=7,
        codec=CODING,
    )


def make_report(assign: Assign, update: dict[str, bytes], samples: int = SAMPLES) -> Report:
    """A good answer to `assign` with the coded sections `update`, by kind."""
    k = len(assign.experts)
    usage = [samples - (k - 1), *[1] * (k - 1)]
    return Report(
        session=assign.session,
        round=assign.round,
        attempt=assign.attempt,
        experts=list(assign.experts),
        usage=usage,
        loss=[0.5] * k,
        hits=[0] * k,
        train_loss=0.5,
        test_hits=1,
        test_samples=2,
        telemetry={"train_s": 1.0},
        update=make_ref(b"".join(update.values()) or b"nothing"),
        sections=[len(section) for section in update.values()],
        account=[],
        dropped=[],
    )
