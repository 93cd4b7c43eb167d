"""The global model on the test set: all experts, the shared gate."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.parts import GATE, ModelParts, Tensors, merge
from model_export.models import ModelSpec, MoE
from model_export.split import to_model

_BATCH = 500


class GlobalEvaluation:
    """Evaluates on `x` [n, *shape] float32, `y` [n] int64."""

    def __init__(
        self, spec: ModelSpec, x: NDArray[np.float32], y: NDArray[np.int64], local_gate: bool
    ) -> None:
        self._model = MoE(spec).eval()
        self._x = torch.from_numpy(x)
        self._y = torch.from_numpy(y)
        self._local_gate = local_gate

    def accuracy(self, parts: ModelParts) -> float:
        """The share of the test set that is classified right.

        Where gates are local the server has none: the experts are averaged with equal weights.
        """
        weights: Tensors = dict(merge(parts))
        if self._local_gate:
            weights[GATE] = np.zeros_like(parts.gate)
        to_model(self._model, weights)
        experts = self._model.all_experts()
        hits = 0
        with torch.no_grad():
            for start in range(0, len(self._y), _BATCH):
                logits, _ = self._model(self._x[start : start + _BATCH], experts)
                hits += int((logits.argmax(1) == self._y[start : start + _BATCH]).sum())
        return hits / len(self._y)
