"""Small functions as graphs of ATen operators, and the passes on them."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize, vjp
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Any]
Pass = Callable[[GraphModule], None]


def traced(function: Function, *inputs: Tensor) -> GraphModule:
    """The graph of `function` before any pass."""
    graph = make_fx(functionalize(function, remove="mutations"), tracing_mode="fake")(*inputs)
    graph.graph.eliminate_dead_code()
    return graph


def rewritten(function: Function, *inputs: Tensor, by: list[Pass]) -> GraphModule:
    """The graph after these passes; checks that its shapes and values are those of `function`."""
    graph = traced(function, *inputs)
    for one in by:
        one(graph)
    graph.graph.lint()
    got, expected = graph(*inputs), function(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            check_shape(node)
    return graph


def check_shape(node: Node) -> None:
    """What a pass wrote on a node is what its operator gives."""
    arguments = torch.fx.node.map_arg(node.args, lambda n: n.meta["val"])
    assert callable(node.target)
    given = node.target(*arguments, **node.kwargs)
    for got, noted in zip(flat(given), flat(node.meta["val"]), strict=True):
        assert (got.shape, got.dtype) == (noted.shape, noted.dtype), node.format_node()


def flat(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in values if isinstance(tensor, Tensor)]


def operators(graph: GraphModule) -> Counter[str]:
    """How often each operator is called, such as ``{"flexmoe.gemm": 2, "aten.mul": 1}``."""
    return Counter(
        str(node.target).rpartition(".")[0]
        for node in graph.graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    )


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """(value, gradient of each argument) of a function, pulled back from a fixed cotangent."""

    def both(*inputs: Tensor) -> tuple[Tensor, ...]:
        value, pull_back = vjp(function, *inputs)
        ramp = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape)
        return (value, *pull_back(torch.cos(ramp), create_graph=False))

    return both
