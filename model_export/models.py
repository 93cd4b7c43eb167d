"""The reference models: backbone + gate + experts.

`MoE` is one class for the full model on the server (all `E` experts) and for a client's subset
(`k` of them). The gate is linear and holds a row for each of the `E` experts; its softmax runs over
the experts that are present only, and the output is their weighted sum (a soft mixture: with small
`k` every assigned expert learns from every sample, weighted by the gate).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_runtime.errors import ConfigError


@dataclass(frozen=True)
class ModelSpec:
    """What makes a model: `name` in `MODELS`, one sample's `shape`, `classes`, `experts` E."""

    name: str
    shape: tuple[int, ...]
    classes: int
    experts: int


@dataclass(frozen=True)
class Parts:
    """The pieces of one model: `features` is the width that the gate sees."""

    backbone: nn.Module
    features: int
    expert: Callable[[], nn.Module]


class MoE(nn.Module):
    """A mixture of experts with `slots` of the spec's `E` experts.

    `forward(x [B, *shape], experts [slots]) -> (logits [B, classes], weights [B, slots])`.
    """

    def __init__(self, spec: ModelSpec, slots: int | None = None) -> None:
        super().__init__()
        parts = _parts(spec)
        self.spec = spec
        self.backbone = parts.backbone
        self.gate = nn.Linear(parts.features, spec.experts, bias=False)
        self.experts = nn.ModuleList(
            parts.expert() for _ in range(spec.experts if slots is None else slots)
        )

    def forward(self, x: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        scores, outputs = self.scores_and_outputs(x)
        return mix(scores, outputs, experts)

    def scores_and_outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a mixture is made of: `scores` [B, E] of all experts, `outputs` [slots, B, classes].

        Everything that has weights is in here.
        """
        features = self.backbone(x)
        pooled = features.mean((2, 3)) if features.dim() == 4 else features
        return self.gate(pooled), torch.stack([expert(features) for expert in self.experts])

    def all_experts(self) -> Tensor:
        """The ids for a model that holds every expert."""
        return torch.arange(self.spec.experts)


def mix(scores: Tensor, outputs: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """The soft mixture of the experts that are present.

    `scores` [B, E], `outputs` [k, B, C], `experts` [k] -> (logits [B, C], weights [B, k]).
    """
    # Picking columns by a 0/1 matrix instead of indexing: its gradient is a plain product, where
    # that of an index is a scatter that small runtimes lack.
    chosen = (experts.unsqueeze(1) == torch.arange(scores.shape[1])).to(scores.dtype)
    weights = torch.softmax(scores @ chosen.T, dim=1)
    return (weights.T.unsqueeze(2) * outputs).sum(0), weights


class MeanPool(nn.Module):
    """Global average over the two last axes; written as a mean, whose gradient ExecuTorch has."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _digits(spec: ModelSpec) -> Parts:
    """An MLP for flat inputs."""
    inputs, width, hidden = math.prod(spec.shape), 64, 128
    return Parts(
        backbone=nn.Sequential(nn.Linear(inputs, width), nn.ReLU()),
        features=width,
        expert=lambda: nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, spec.classes)
        ),
    )


def _har(spec: ModelSpec) -> Parts:
    """Inertial windows [channels, 1, time]: convolutions along time, then two-layer experts."""
    width, hidden = 64, 128
    return Parts(
        backbone=nn.Sequential(
            nn.Conv2d(spec.shape[0], 32, (1, 8), stride=(1, 4), padding=(0, 2)),
            nn.ReLU(),
            nn.Conv2d(32, width, (1, 4), stride=(1, 2), padding=(0, 1)),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            MeanPool(),
        ),
        features=width,
        expert=lambda: nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, spec.classes)
        ),
    )


def _cifar(spec: ModelSpec) -> Parts:
    """Images [channels, height, width]: strided convolutions, GroupNorm, convolutional experts."""
    width = 64
    return Parts(
        backbone=nn.Sequential(
            nn.Conv2d(spec.shape[0], 32, 3, stride=2, padding=1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, width, 3, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
        ),
        features=width,
        expert=lambda: nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            MeanPool(),
            nn.Linear(width, spec.classes),
        ),
    )


@dataclass(frozen=True)
class Reference:
    """How a model is built, and which samples it `takes`: `rank` axes, of sizes that `fits`."""

    build: Callable[[ModelSpec], Parts]
    rank: int
    takes: str
    fits: Callable[[tuple[int, ...]], bool] = lambda shape: min(shape) >= 1


MODELS = {
    "digits": Reference(_digits, 1, "flat samples [n]"),
    "har": Reference(
        _har,
        3,
        "windows [channels, 1, time >= 8]",
        # The two strided convolutions leave nothing of a shorter window.
        lambda shape: shape[0] >= 1 and shape[1] == 1 and shape[2] >= 8,
    ),
    "cifar": Reference(_cifar, 3, "images [channels, height, width]"),
    "fashion": Reference(_cifar, 3, "images [channels, height, width]"),
}


def _parts(spec: ModelSpec) -> Parts:
    reference = MODELS.get(spec.name)
    if reference is None:
        raise ConfigError(f"unknown model {spec.name!r}; expected one of {', '.join(MODELS)}")
    if len(spec.shape) != reference.rank or not reference.fits(spec.shape):
        raise ConfigError(
            f"model {spec.name!r} takes {reference.takes}, the data has shape {list(spec.shape)}"
        )
    return reference.build(spec)


def make_model(spec: ModelSpec, seed: int) -> MoE:
    """The full model with weights that depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MoE(spec)
