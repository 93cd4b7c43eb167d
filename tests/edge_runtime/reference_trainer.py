"""A `Trainer` in plain numpy for the `digits` model of any size: the tests' slow, exact twin.

Its programs are layouts as JSON. Gradients are written by hand, in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_runtime.layout import ProgramLayout, TensorLayout
from edge_runtime.optimizer import Optimizer
from edge_runtime.trainer import (
    Batch,
    MemoryNeed,
    Rates,
    StepResult,
    Weights,
    check_assignment,
    micro_batches,
)

Floats = NDArray[np.float64]


def make_toy_layout(
    role: str,
    k: int = 2,
    experts: int = 4,
    shape: tuple[int, ...] = (4,),
    classes: int = 3,
    width: int = 6,
    hidden: int = 5,
    batch: int = 8,
) -> ProgramLayout:
    """The layout of a `digits` model of these sizes."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.0.weight": (width, shape[0]),
        "backbone.0.bias": (width,),
        "gate.weight": (experts, width),
    }
    for slot in range(k):
        shapes[f"experts.{slot}.0.weight"] = (hidden, width)
        shapes[f"experts.{slot}.0.bias"] = (hidden,)
        shapes[f"experts.{slot}.2.weight"] = (classes, hidden)
        shapes[f"experts.{slot}.2.bias"] = (classes,)
    weights = tuple(TensorLayout(name, size) for name, size in shapes.items())
    return ProgramLayout(role, "native", "digits", k, experts, batch, classes, shape, weights)


class ReferenceTrainer:
    """See `Trainer`. Counts what it did. Passes for a native one, to be admitted."""

    name = "native"

    def __init__(self) -> None:
        self.loads = 0
        self.given: list[dict[str, NDArray[np.float32]]] = []  # the weights of each assignment
        self.steps = 0

    @property
    def layout(self) -> ProgramLayout:
        return self._layout

    def memory_need(
        self, training: bytes, evaluation: bytes, rates: Rates, batch: int
    ) -> MemoryNeed:
        size = ProgramLayout.from_json(training.decode()).weights_bytes
        state = 2 * size if rates.optimizer == "adamw" else size
        return MemoryNeed(len(training) + len(evaluation), 0, size, size, state)

    def load(self, training: bytes, evaluation: bytes) -> None:
        self._layout = ProgramLayout.from_json(training.decode())
        ProgramLayout.from_json(evaluation.decode())
        self.loads += 1

    def assign(self, experts: list[int], weights: Weights) -> None:
        check_assignment(self._layout, experts, weights)
        self._experts = list(experts)
        self._weights = {w.name: weights[w.name].copy() for w in self._layout.weights}
        self._optimizer = Optimizer(list(self._weights.values()))
        self.given.append({name: value.copy() for name, value in self._weights.items()})

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return dict(self._weights)

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        runs = [self._run(piece) for piece in micro_batches(batch, self._layout.batch)]
        gradients = [sum(run[1][name] for run in runs) for name in self._weights]
        self._optimizer.step([np.asarray(g, np.float32) for g in gradients], rates)
        self.steps += 1
        loss = sum(result.loss for result, _ in runs)
        return StepResult(loss, np.sum([result.stats for result, _ in runs], axis=0))

    def evaluate(self, batch: Batch) -> StepResult:
        return self._run(batch)[0]

    def _run(self, batch: Batch) -> tuple[StepResult, dict[str, Floats]]:
        w = {name: value.astype(np.float64) for name, value in self._weights.items()}
        x, weight = batch.x.astype(np.float64), batch.sample_weight.astype(np.float64)
        slots = range(len(self._experts))
        features = np.maximum(x @ w["backbone.0.weight"].T + w["backbone.0.bias"], 0)
        share = _softmax(features @ w["gate.weight"][self._experts].T)
        hidden = [
            np.maximum(features @ w[f"experts.{i}.0.weight"].T + w[f"experts.{i}.0.bias"], 0)
            for i in slots
        ]
        out = [hidden[i] @ w[f"experts.{i}.2.weight"].T + w[f"experts.{i}.2.bias"] for i in slots]
        logits = sum(share[:, [i]] * out[i] for i in slots)
        chance = _softmax(np.asarray(logits))
        target = np.eye(self._layout.classes)[batch.y]
        losses = -np.log((chance * target).sum(1))

        d_logits = weight[:, None] * (chance - target)
        d_share = np.stack([(d_logits * out[i]).sum(1) for i in slots], axis=1)
        d_score = share * (d_share - (share * d_share).sum(1, keepdims=True))
        gradients = {"gate.weight": np.zeros_like(w["gate.weight"])}
        gradients["gate.weight"][self._experts] = d_score.T @ features
        d_features = d_score @ w["gate.weight"][self._experts]
        for i in slots:
            d_out = share[:, [i]] * d_logits
            d_hidden = (d_out @ w[f"experts.{i}.2.weight"]) * (hidden[i] > 0)
            gradients[f"experts.{i}.2.weight"] = d_out.T @ hidden[i]
            gradients[f"experts.{i}.2.bias"] = d_out.sum(0)
            gradients[f"experts.{i}.0.weight"] = d_hidden.T @ features
            gradients[f"experts.{i}.0.bias"] = d_hidden.sum(0)
            d_features = d_features + d_hidden @ w[f"experts.{i}.0.weight"]
        d_features = d_features * (features > 0)
        gradients["backbone.0.weight"] = d_features.T @ x
        gradients["backbone.0.bias"] = d_features.sum(0)

        routed = (share.argmax(1)[:, None] == np.array(slots)) & (weight > 0)[:, None]
        seen = np.stack([np.ones_like(losses), losses, chance.argmax(1) == batch.y], axis=1)
        stats = (routed.T.astype(np.float64) @ seen).astype(np.float32)
        return StepResult(float((weight * losses).sum()), stats), gradients


def _softmax(scores: Floats) -> Floats:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
