"""Graph passes over an edge program that make the stock ExecuTorch kernels fast.

The stock `addmm` is a scalar loop and every transposed operand is materialised; `linear` runs on an
optimized product and takes its weight untransposed. So:

1. ``addmm(b, x, permute(w))`` -> ``linear(x, w, b)``, ``mm(x, permute(w))`` -> ``linear(x, w)``;
2. two permutes that undo each other vanish;
3. `alias_copy` (what `detach` leaves behind) vanishes.

None of them changes a value.
"""

from __future__ import annotations

from collections.abc import Callable

from executorch.exir.dialects._ops import ops
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

_PERMUTE = ops.edge.aten.permute_copy.default
_ADDMM = ops.edge.aten.addmm.default
_MM = ops.edge.aten.mm.default
_LINEAR = ops.edge.aten.linear.default
_ALIAS = ops.edge.aten.alias_copy.default


class DropAliases(PassBase):
    """Replace `alias_copy(x)` by `x`."""

    def call(self, module: GraphModule) -> PassResult:
        return _rewrite(module, _ALIAS, lambda node: _argument(node, 0))


class CancelPermutes(PassBase):
    """Replace `permute(permute(x, p), q)` by `x` where `q` undoes `p`."""

    def call(self, module: GraphModule) -> PassResult:
        def source(node: Node) -> Node | None:
            inner = _argument(node, 0)
            if inner is None or inner.target != _PERMUTE:
                return None
            first, second = _order(inner), _order(node)
            undone = [first[axis] for axis in second] == list(range(len(first)))
            return _argument(inner, 0) if undone else None

        return _rewrite(module, _PERMUTE, source)


class ProductsToLinear(PassBase):
    """Replace products with a transposed right operand by `linear`."""

    def call(self, module: GraphModule) -> PassResult:
        changed = False
        for node in list(module.graph.nodes):
            if node.target == _MM:
                x, w, bias = node.args[0], node.args[1], None
            elif node.target == _ADDMM and not node.kwargs:
                bias, x, w = node.args
            else:
                continue
            if not isinstance(w, Node) or w.target != _PERMUTE or _order(w) != [1, 0]:
                continue
            # A product broadcasts its bias; `linear` takes one value per output.
            if bias is not None and bias.meta["val"].shape != w.meta["val"].shape[1:]:
                continue
            with module.graph.inserting_before(node):
                arguments = (x, w.args[0]) if bias is None else (x, w.args[0], bias)
                linear = module.graph.call_function(_LINEAR, arguments)
            linear.meta = node.meta
            node.replace_all_uses_with(linear)
            module.graph.erase_node(node)
            changed = True
        return _cleaned(module, changed)


def stock_passes() -> list[PassBase]:
    """All of them, in the order in which they must run."""
    return [DropAliases(), CancelPermutes(), ProductsToLinear()]


def _rewrite(
    module: GraphModule, target: object, source_of: Callable[[Node], Node | None]
) -> PassResult:
    changed = False
    for node in list(module.graph.nodes):
        if node.target != target:
            continue
        source = source_of(node)
        if source is not None:
            node.replace_all_uses_with(source)
            changed = True
    return _cleaned(module, changed)


def _cleaned(module: GraphModule, changed: bool) -> PassResult:
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()
    return PassResult(module, changed)


def _argument(node: Node, index: int) -> Node | None:
    value = node.args[index]
    return value if isinstance(value, Node) else None


def _order(node: Node) -> list[int]:
    rank = node.meta["val"].dim()
    order = node.args[1]
    assert isinstance(order, (list, tuple))
    return [int(axis) % rank for axis in order]  # type: ignore[arg-type]
