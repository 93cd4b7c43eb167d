"""A full model -> the blobs that devices hold -> the full model again, exactly.

The backbone and each expert are one blob; the gate's rows are cut per subset, because a device
needs (and trains) only the rows of the experts that it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.codec import Codec
from edge_runtime.parts import GATE, ModelParts, Tensors, check_like, merge, split
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


def encode_backbone(parts: ModelParts, codec: Codec) -> bytes:
    return codec.encode(dict(parts.backbone))


def encode_expert(parts: ModelParts, expert: int, codec: Codec) -> bytes:
    return codec.encode(dict(parts.experts[expert]))


def encode_gate_rows(parts: ModelParts, experts: Sequence[int], codec: Codec) -> bytes:
    """The gate's rows of `experts`, as one tensor [k, features]."""
    return codec.encode({GATE: parts.gate[list(experts)]})


def split_to_blobs(weights: Tensors, codec: Codec) -> tuple[bytes, bytes, list[bytes]]:
    """The whole model as (backbone, all gate rows, one blob per expert)."""
    parts = split(weights)
    everyone = range(len(parts.experts))
    return (
        encode_backbone(parts, codec),
        encode_gate_rows(parts, everyone, codec),
        [encode_expert(parts, expert, codec) for expert in everyone],
    )


def merge_from_blobs(
    backbone: bytes, gate: bytes, experts: Sequence[bytes], like: Tensors, codec: Codec
) -> Tensors:
    """The whole model from `split_to_blobs`' pieces; checked against the shapes of `like`."""
    parts = ModelParts(
        dict(codec.decode(backbone)),
        check_like(codec.decode(gate), {GATE: like[GATE]}, "gate")[GATE],
        tuple(dict(codec.decode(expert)) for expert in experts),
    )
    return check_like(merge(parts), like, "model")
