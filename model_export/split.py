"""A torch model's weights as numpy arrays by name, and back; `edge_runtime.parts` splits them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.parts import Tensors
from model_export.models import MoE


def to_weights(model: MoE) -> Tensors:
    """A copy of a model's weights as numpy arrays, by `state_dict` name."""
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def to_model(model: MoE, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy `weights` into `model`."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            # A copy: torch does not take read-only arrays, and decoded blobs are such.
            value.copy_(torch.from_numpy(np.array(weights[name])))
