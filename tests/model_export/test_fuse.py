"""ReLUs become part of the operators beside them, where nobody else takes the value between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from model_export.passes.fuse import fuse
from model_export.passes.lower import lower
from model_export.passes.tidy import tidy
from tests.model_export.traced import Function, operators, rewritten, with_gradients

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
W = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
IMAGES = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(3))
KERNELS = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(4))


def fused(function: Function, *inputs: Tensor) -> GraphModule:
    return rewritten(function, *inputs, by=[tidy, lower, tidy, fuse])


def calls(graph: GraphModule, name: str) -> list[dict[str, Any]]:
    """The arguments of every call of an operator."""
    names = [a.name for a in getattr(torch.ops.flexmoe, name).default._schema.arguments]
    return [
        dict(zip(names, node.args, strict=True))
        for node in graph.graph.nodes
        if str(node.target) == f"flexmoe.{name}.default"
    ]


def norm(x: Tensor) -> Tensor:
    return functional.group_norm(x, 2)


@pytest.mark.parametrize(
    ("function", "inputs", "name"),
    [
        (lambda x, w: functional.linear(x, w).relu(), (X, W), "gemm"),
        (lambda x, w: functional.conv2d(x, w).relu(), (IMAGES, KERNELS), "conv2d"),
        (lambda x: norm(x).relu(), (IMAGES,), "group_norm"),
    ],
)
def test_a_relu_joins_what_stands_before_it(
    function: Function, inputs: tuple[Tensor, ...], name: str
) -> None:
    graph = fused(function, *inputs)
    assert operators(graph) == {f"flexmoe.{name}": 1}
    assert [call["relu"] for call in calls(graph, name)] == [True]
    gradients = fused(with_gradients(function), *inputs)
    assert not operators(gradients)["flexmoe.relu"]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x, w: (y := functional.linear(x, w)).relu() + y, (X, W)),
        (lambda x: (y := norm(x)).relu() + y, (IMAGES,)),
        (lambda x: (x + x).relu(), (X,)),
    ],
)
def test_a_value_that_others_take_stays(function: Function, inputs: tuple[Tensor, ...]) -> None:
    assert operators(fused(function, *inputs))["flexmoe.relu"] == 1


def test_relus_in_a_row_join_once() -> None:
    graph = fused(lambda x, w: functional.linear(x, w).relu().relu(), X, W)
    assert operators(graph) == {"flexmoe.gemm": 1, "flexmoe.relu": 1}


def test_the_gradient_of_a_relu_joins_that_of_the_norm() -> None:
    graph = fused(with_gradients(lambda x: norm(x).relu()), IMAGES)
    left = operators(graph)
    assert left["flexmoe.group_norm_backward"] == 1 and not left["flexmoe.relu_backward"]
    (call,) = calls(graph, "group_norm_backward")
    assert call["y"] is not None


def test_a_gradient_that_others_take_stays() -> None:
    def function(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        y, mean, rstd = torch.ops.aten.native_group_norm(x, None, None, 2, 4, 30, 2, 1e-5)
        dy = torch.ops.aten.threshold_backward(g, y, 0)
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            dy, x, mean, rstd, None, 2, 4, 30, 2, [True, False, False]
        )
        return dy, dx

    graph = fused(function, IMAGES, IMAGES.cos())
    assert operators(graph)["flexmoe.relu_backward"] == 1
    assert [call["y"] for call in calls(graph, "group_norm_backward")] == [None]
