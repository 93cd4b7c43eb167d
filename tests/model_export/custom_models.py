"""Models with layers that the reference models do not have, as a user may write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from model_export.models import MODELS, MeanPool, ModelSpec, Parts, Reference

WIDTH = 6


@dataclass(frozen=True)
class Custom:
    """`stock`: some operators that our runtime leaves to ExecuTorch's kernels; empty: none."""

    shape: tuple[int, ...]
    layers: Callable[[], list[nn.Module]]
    stock: set[str]


class Scale(nn.Module):
    """Weights of which one is used in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, WIDTH))
        self.turn = nn.Parameter(torch.randn(2, WIDTH // 2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale) @ self.turn.reshape(WIDTH, WIDTH)


class Twins(nn.Module):
    """Two weights with the same gradient, and one with none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, WIDTH))
        self.second = nn.Parameter(torch.randn(4, WIDTH))
        self.idle = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.first + self.second)


class Constants(nn.Module):
    """Tensors that are no weights: kept, and made in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = torch.eye(WIDTH).roll(1, 0)

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        return ((x - mean) * torch.arange(1, WIDTH + 1)) @ self.turn


def flat(stock: set[str], *layers: Callable[[], nn.Module]) -> Custom:
    """On vectors."""
    return Custom((5,), lambda: [nn.Linear(5, WIDTH), *(make() for make in layers)], stock)


def images(stock: set[str], *layers: Callable[[], nn.Module]) -> Custom:
    """On images, after one convolution."""
    first = lambda: nn.Conv2d(3, WIDTH, 3, padding=1)  # noqa: E731
    return Custom((3, 8, 8), lambda: [first(), *(make() for make in layers)], stock)


def sequence() -> list[nn.Module]:
    """On sequences: everything one-dimensional."""
    norm = nn.GroupNorm(2, WIDTH)
    pools = nn.MaxPool1d(2), nn.AvgPool1d(2)
    return [nn.Conv1d(3, WIDTH, 3, stride=2), nn.ReLU(), pools[0], norm, pools[1]]


CUSTOM = {
    "sigmoid": flat({"aten.sigmoid"}, nn.Sigmoid),
    "silu": flat({"aten.sigmoid"}, nn.SiLU),
    "layer_norm": flat({"aten.native_layer_norm"}, lambda: nn.LayerNorm(WIDTH)),
    "leaky": flat({"aten.leaky_relu", "aten.where"}, nn.LeakyReLU),
    "in_place": flat(set(), lambda: nn.ReLU(inplace=True)),
    "scale": flat({"aten.mul", "aten.view_copy"}, Scale),
    "twins": flat({"aten.view_copy", "aten.full_like"}, Twins),
    "constants": flat({"aten.sub", "aten.mul"}, Constants),
    "max_pool": images(set(), nn.ReLU, lambda: nn.MaxPool2d(2)),
    "max_pool_ceil": images(
        {"aten.max_pool2d_with_indices"}, lambda: nn.MaxPool2d(3, ceil_mode=True)
    ),
    "avg_pool": images(set(), nn.ReLU, lambda: nn.AvgPool2d(3, stride=2, padding=1)),
    "adaptive": images(set(), lambda: nn.AdaptiveAvgPool2d((4, 2))),
    "depthwise": images(
        set(),
        lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH, bias=False),
        lambda: nn.GroupNorm(3, WIDTH, affine=False),
        nn.ReLU,
    ),
    "sequence": Custom((3, 40), sequence, {"aten.view_copy"}),
}


def register(name: str, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """Makes `CUSTOM[name]` known for one test."""
    custom = CUSTOM[name]

    def build(spec: ModelSpec) -> Parts:
        ends = {1: nn.Identity, 2: nn.Flatten, 3: MeanPool}[len(custom.shape)]
        with torch.device("meta"):
            width = nn.Sequential(*custom.layers(), ends())(torch.empty(4, *custom.shape)).shape[1]
        backbone = nn.Sequential(*custom.layers(), ends())
        return Parts(backbone, width, lambda: nn.Linear(width, spec.classes))

    monkeypatch.setitem(MODELS, name, Reference(build, len(custom.shape), "its own samples"))
    return ModelSpec(name, custom.shape, classes=3, experts=4)
