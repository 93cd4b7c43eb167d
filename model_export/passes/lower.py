"""Replaces ATen operators by those of the native device runtime (docs/native.md).

A call that no rule takes (other operators, other dtypes, options that the runtime lacks) stays, and
runs on ExecuTorch's own kernels.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from model_export.operators import ours
from model_export.passes.graph import Rule, Site, bound, rewrite, shape, value
from model_export.passes.lower_convolution import CONVOLUTION_RULES
from model_export.passes.lower_pooling import POOLING_RULES
from model_export.passes.tidy import permutation

_aten = torch.ops.aten


def lower(module: GraphModule) -> None:
    """Rewrite a tidy graph; see above."""
    rewrite(module, {target: _if_float(rule) for target, rule in _RULES.items()})


def _if_float(rule: Rule) -> Rule:
    """Our kernels take float32 only; labels and indices come in places of their own."""

    def checked(site: Site, node: Node) -> Node | list[Node] | None:
        source = node.args[0]
        sources = source if isinstance(source, (list, tuple)) else [source]
        return rule(site, node) if all(value(x).dtype == torch.float32 for x in sources) else None

    return checked


def _product(site: Site, a: Node, b: Node, bias: Node | None) -> Node:
    a, turn_a = _turned(a)
    b, turn_b = _turned(b)
    return site.call(ours.gemm.default, a, b, bias, turn_a, turn_b, False)


def _turned(matrix: Node) -> tuple[Node, bool]:
    """What a transposed matrix is the transpose of."""
    if matrix.target == _aten.permute.default and permutation(matrix) == [1, 0]:
        source = matrix.args[0]
        assert isinstance(source, Node)
        return source, True
    return matrix, False


def _mm(site: Site, node: Node) -> Node:
    named = bound(node)
    return _product(site, named["self"], named["mat2"], None)


def _addmm(site: Site, node: Node) -> Node | None:
    named = bound(node)
    # A product broadcasts what is added to it; `gemm` takes one value per column.
    if shape(named["self"]) != shape(node)[1:] or named["alpha"] != 1 or named["beta"] != 1:
        return None
    return _product(site, named["mat1"], named["mat2"], named["self"])


def _sum(site: Site, node: Node) -> Node | None:
    named = bound(node)
    x = named["self"]
    if named["keepdim"] or named["dtype"] is not None or named["dim"] is None:
        return None
    axes = sorted(axis % value(x).dim() for axis in named["dim"])
    if (value(x).dim(), axes) == (2, [0]):
        return site.call(ours.sum_rows.default, x)
    if (value(x).dim(), axes) == (4, [0, 2, 3]):
        return site.call(ours.sum_channels.default, x)
    return None


def _add(site: Site, node: Node) -> Node | None:
    named = bound(node)
    a, b = named["self"], named["other"]
    if named["alpha"] != 1 or not isinstance(b, Node):
        return None
    if shape(a) != shape(b) or value(b).dtype != torch.float32:
        return None
    return site.call(ours.add.default, a, b)


def _relu(site: Site, node: Node) -> Node:
    return site.call(ours.relu.default, node.args[0])


def _threshold_backward(site: Site, node: Node) -> Node | None:
    named = bound(node)
    if named["threshold"] != 0:
        return None
    return site.call(ours.relu_backward.default, named["grad_output"], named["self"])


def _stack(site: Site, node: Node) -> Node | None:
    named = bound(node)
    tensors = list(named["tensors"])
    if named["dim"] != 0:
        return None
    if len(tensors) == 1:
        return site.reshape(tensors[0], shape(node))
    return site.call(ours.stack.default, tensors)


def _select(site: Site, node: Node) -> Node | None:
    named = bound(node)
    x = named["self"]
    if named["dim"] != 0:
        return None
    if shape(x)[0] == 1:
        return site.reshape(x, shape(node))
    return site.call(ours.select.default, x, named["index"] % shape(x)[0])


_RULES: dict[object, Rule] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.sum.dim_IntList: _sum,
    _aten.add.Tensor: _add,
    _aten.relu.default: _relu,
    _aten.threshold_backward.default: _threshold_backward,
    _aten.stack.default: _stack,
    _aten.select.int: _select,
    **CONVOLUTION_RULES,
    **POOLING_RULES,
}
