"""Eager PyTorch with autograd: what an exported program must compute, written apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edge_runtime.parts import Tensors, merge, split
from edge_runtime.trainer import Batch
from model_export.models import ModelSpec, MoE, make_model
from model_export.split import to_model, to_weights

K = 2
SPECS = {
    "digits": ModelSpec("digits", (64,), classes=10, experts=8),
    "har": ModelSpec("har", (9, 1, 128), classes=6, experts=8),
    "cifar": ModelSpec("cifar", (3, 32, 32), classes=10, experts=8),
}
BATCH = {"digits": 16, "har": 8, "cifar": 4}


class EagerSubset:
    """The subset model of `experts` as a plain torch module."""

    def __init__(self, spec: ModelSpec, experts: Sequence[int], weights: Tensors) -> None:
        self.model = MoE(spec, slots=len(experts))
        to_model(self.model, weights)
        self._experts = torch.tensor(experts)

    def step(
        self, batch: Batch, balance: float = 0.0
    ) -> tuple[float, NDArray[np.float64], Tensors]:
        """Loss, stats [k, 3] and gradients by name; the gradients stay in the model, too.

        With `balance`, the coefficient of the balance term, the gradients alone are others.
        """
        self.model.zero_grad()
        logits, gate = self.model(torch.tensor(batch.x), self._experts)
        losses = functional.cross_entropy(logits, torch.tensor(batch.y), reduction="none")
        weight = torch.tensor(batch.sample_weight)
        loss = (losses * weight).sum()
        (loss + balance * _balance_term(gate, weight)).backward()
        loss, losses = loss.detach(), losses.detach()
        stats = np.zeros((len(self._experts), 3))
        for i, label in enumerate(batch.y):
            if batch.sample_weight[i] > 0:
                hit = int(logits[i].argmax()) == label
                stats[int(gate[i].argmax())] += (1, float(losses[i]), hit)
        gradients = {
            name: value.grad.numpy().copy()
            for name, value in self.model.named_parameters()
            if value.grad is not None
        }
        return float(loss), stats, gradients


def _balance_term(gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """W k sum_e f_e P_e, an expert and a sample at a time."""
    total, chosen = float(weight.sum()), gate.argmax(1).tolist()
    term = torch.zeros(())
    for e in range(gate.shape[1]):
        f = sum(float(w) for w, c in zip(weight, chosen, strict=True) if c == e) / total
        p = sum((w * row[e] for w, row in zip(weight, gate, strict=True)), torch.zeros(())) / total
        term = term + f * p
    return total * gate.shape[1] * term


def subset(full: Tensors, experts: Sequence[int]) -> Tensors:
    """The weights of a device that holds `experts`: backbone, whole gate, its experts by slot."""
    parts = split(full)
    return merge(replace(parts, experts=tuple(parts.experts[e] for e in experts)))


def subset_weights(spec: ModelSpec, experts: Sequence[int], seed: int) -> Tensors:
    """The same of a freshly made full model."""
    return subset(to_weights(make_model(spec, seed)), experts)


def random_batch(name: str, seed: int, real: int | None = None) -> Batch:
    """A full batch for model `name`; the samples from `real` on are padding of weight 0.

    Like samples of one class lie around one point, so that there is something to learn.
    """
    spec, size = SPECS[name], BATCH[name]
    rng = np.random.default_rng(seed)
    y = rng.integers(spec.classes, size=size)
    centres = rng.normal(size=(spec.classes, *spec.shape))
    x = (centres[y] + 0.5 * rng.normal(size=(size, *spec.shape))).astype(np.float32)
    weight = rng.uniform(0.5, 1.5, size).astype(np.float32) / size
    weight[size if real is None else real :] = 0.0
    return Batch(x, y, weight)
