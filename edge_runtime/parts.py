"""A model's weights in parts: backbone, gate, experts.

The names are those of the torch model's `state_dict` (`backbone.*`, `gate.weight`,
`experts.<slot>.*`); inside a part they are relative (`0.weight`, not `experts.3.0.weight`), so an
expert's bytes depend neither on its slot nor on its id. Pure functions, no copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import WireError

Tensors = dict[str, NDArray[np.float32]]
GATE = "gate.weight"


@dataclass(frozen=True)
class ModelParts:
    """A model in parts. `gate` is [E, features]; `experts` has one entry per slot."""

    backbone: Tensors
    gate: NDArray[np.float32]
    experts: tuple[Tensors, ...]


def split(weights: Mapping[str, NDArray[np.float32]]) -> ModelParts:
    """The parts of a full or a subset model's `weights`."""
    backbone: Tensors = {}
    experts: dict[int, Tensors] = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            backbone[rest] = value
        elif part == "experts":
            slot, _, rest = rest.partition(".")
            experts.setdefault(int(slot), {})[rest] = value
    return ModelParts(backbone, weights[GATE], tuple(experts[i] for i in range(len(experts))))


def merge(parts: ModelParts) -> Tensors:
    """The weights of these parts; `merge(split(w))` equals `w`."""
    weights = {f"backbone.{name}": value for name, value in parts.backbone.items()}
    weights[GATE] = parts.gate
    for slot, expert in enumerate(parts.experts):
        weights.update({f"experts.{slot}.{name}": value for name, value in expert.items()})
    return weights


def difference(after: Tensors, before: Tensors) -> Tensors:
    """`after - before`, tensor by tensor."""
    return {name: value - before[name] for name, value in after.items()}


def check_like(tensors: Mapping[str, NDArray[np.generic]], model: Tensors, what: str) -> Tensors:
    """`tensors` if they are finite float32 of `model`'s names and shapes, else `WireError`."""
    odd = sorted(tensors.keys() ^ model.keys())
    if odd:
        raise WireError("wrong-names", f"{what}: missing or unknown tensor {odd[0]!r}")
    for name, value in tensors.items():
        if value.shape != model[name].shape or value.dtype != np.float32:
            raise WireError(
                "wrong-shape",
                f"{what}: {name!r} is {value.dtype} {list(value.shape)}, "
                f"expected float32 {list(model[name].shape)}",
            )
        if not np.isfinite(value).all():
            raise WireError("not-finite", f"{what}: {name!r} holds NaN or infinity")
    return {name: value.astype(np.float32, copy=False) for name, value in tensors.items()}
