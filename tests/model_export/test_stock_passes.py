"""Each pass for the stock kernels: what it rewrites, what it must leave; values stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from executorch.exir import EdgeCompileConfig, EdgeProgramManager, to_edge
from torch import Tensor, nn
from torch.fx.passes.infra.pass_base import PassBase

from model_export.passes.stock import (
    CancelPermutes,
    DropAliases,
    ProductsToLinear,
    stock_passes,
)

X = torch.arange(12.0).reshape(3, 4) - 5.0
W = torch.arange(20.0).reshape(5, 4) * 0.25 - 2.0
BIAS = torch.arange(5.0)
CUBE = torch.arange(24.0).reshape(2, 3, 4)


class Graph(nn.Module):
    """A function as a module, which is what the exporter takes."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.forward = function


def to_edge_program(function: Callable[..., Tensor], *inputs: Tensor) -> EdgeProgramManager:
    exported = torch.export.export(Graph(function), inputs, strict=False)
    return to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))


def operators(edge: EdgeProgramManager) -> Counter[str]:
    """How often each operator is called, such as ``{"permute_copy": 2}``."""
    nodes = edge.exported_program().graph.nodes
    return Counter(
        node.target.__name__.split(".")[1] for node in nodes if node.op == "call_function"
    )


def rewritten(
    function: Callable[..., Tensor], *inputs: Tensor, by: list[PassBase]
) -> tuple[Counter[str], Counter[str]]:
    """The operators before and after these passes; checks that the values are the same."""
    edge = to_edge_program(function, *inputs)
    before = operators(edge)
    edge = edge.transform(by)
    got = edge.exported_program().module()(*inputs)
    torch.testing.assert_close(got, function(*inputs), rtol=1e-6, atol=1e-6)
    return before, operators(edge)


def test_addmm_of_a_transposed_weight_becomes_linear() -> None:
    before, after = rewritten(
        lambda b, x, w: torch.addmm(b, x, w.permute(1, 0)), BIAS, X, W, by=[ProductsToLinear()]
    )
    assert before == {"addmm": 1, "permute_copy": 1}
    assert after == {"linear": 1}


def test_mm_of_a_transposed_weight_becomes_linear() -> None:
    before, after = rewritten(
        lambda x, w: torch.mm(x, w.permute(-1, -2)), X, W, by=[ProductsToLinear()]
    )
    assert before == {"mm": 1, "permute_copy": 1}
    assert after == {"linear": 1}


def test_a_permute_with_other_users_stays_for_them() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        turned = w.permute(1, 0)
        return torch.mm(x, turned) + turned.sum(0)

    _, after = rewritten(function, X, W, by=[ProductsToLinear()])
    assert after["linear"] == after["permute_copy"] == 1 and not after["mm"]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x, w: torch.mm(x, w), (X, W.T.contiguous())),
        (lambda x, w: torch.mm(x.permute(1, 0), w), (X.T.contiguous(), W.T.contiguous())),
        (lambda x, w: torch.mm(x, w.permute(0, 1)), (X, W.T.contiguous())),
        (lambda x, w, b: torch.addmm(b, x, w.permute(1, 0)), (X, W, torch.ones(3, 5))),
        (lambda x, w, b: torch.addmm(b, x, w.permute(1, 0)), (X, W, torch.tensor([2.0]))),
        (lambda x, w, b: torch.addmm(b, x, w.permute(1, 0), alpha=2), (X, W, BIAS)),
        (lambda x, w, b: torch.addmm(b, x, w.permute(1, 0), beta=3), (X, W, BIAS)),
    ],
    ids=["mm", "left", "identity", "bias-2d", "bias-broadcast", "alpha", "beta"],
)
def test_other_products_stay(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    before, after = rewritten(function, *inputs, by=[ProductsToLinear()])
    assert after == before and not after["linear"]


@pytest.mark.parametrize(("first", "second"), [((1, 0, 2), (1, 0, 2)), ((1, 2, 0), (-1, 0, 1))])
def test_permutes_that_undo_each_other_vanish(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    before, after = rewritten(
        lambda x: (2 * x).permute(first).permute(second) + 1, CUBE, by=[CancelPermutes()]
    )
    assert before["permute_copy"] == 2 and not after["permute_copy"]


def test_nested_pairs_vanish_together() -> None:
    def function(x: Tensor) -> Tensor:
        return x.permute(1, 2, 0).permute(2, 0, 1).permute(0, 2, 1).permute(0, 2, 1) * 2

    before, after = rewritten(function, CUBE, by=[CancelPermutes()])
    assert before["permute_copy"] == 4 and not after["permute_copy"]


def test_permutes_that_do_not_undo_each_other_stay() -> None:
    # Twice round the axes is once back: not where they were.
    before, after = rewritten(
        lambda x: (2 * x).permute(1, 2, 0).permute(1, 2, 0) + 1, CUBE, by=[CancelPermutes()]
    )
    assert before["permute_copy"] == after["permute_copy"] == 2


def test_the_inner_permute_stays_for_its_other_users() -> None:
    def function(x: Tensor) -> Tensor:
        turned = x.permute(1, 0)
        return turned.sum(0) + turned.permute(1, 0).sum(1)

    before, after = rewritten(function, X, by=[CancelPermutes()])
    assert before["permute_copy"] == 2 and after["permute_copy"] == 1


def test_aliases_vanish() -> None:
    before, after = rewritten(
        lambda x: torch.ops.aten.alias(torch.ops.aten.alias(x * 2)) + 1, X, by=[DropAliases()]
    )
    assert before["alias_copy"] == 2
    assert not after["alias_copy"] and after.total() == before.total() - 2


def test_all_passes_find_what_hides_behind_other_nodes() -> None:
    """A weight that is turned back, aliased and turned again ends as one linear."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.mm(x, torch.ops.aten.alias(w.t()).t().t())

    before, after = rewritten(function, X, W, by=stock_passes())
    assert before["permute_copy"] == 3 and before["alias_copy"] == 1
    assert after == {"linear": 1}


@pytest.mark.parametrize("one", stock_passes(), ids=lambda one: type(one).__name__)
def test_a_pass_says_whether_it_changed_the_graph(one: PassBase) -> None:
    graph = (
        to_edge_program(lambda x, w: torch.mm(x, torch.ops.aten.alias(w.t()).t().t()), X, W)
        .exported_program()
        .graph_module
    )
    changed = []
    for _ in range(4):
        result = one(graph)
        assert result is not None
        changed.append(result.modified)
    assert not changed[-1] and changed == sorted(changed, reverse=True)
