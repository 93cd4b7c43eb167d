"""Brings a traced graph into one form, so that the other passes have few patterns to know.

1. aliases, detachments and copies vanish: a graph without mutations needs none;
2. `view`, `unsqueeze`, `squeeze` and the like become `reshape`; one after another become one;
3. `t` and `transpose` become `permute`; one after another become one, and none where they undo
   each other; a permute that moves only axes of size 1 becomes a reshape;
4. sums and means that keep their axes become those that do not, and a reshape;
5. a division by 1 vanishes.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from model_export.passes.graph import Rule, Site, bound, rewrite, shape, value

_aten = torch.ops.aten


def tidy(module: GraphModule) -> None:
    """See above; repeats until nothing changes."""
    while rewrite(module, _RULES):
        pass


def _same(site: Site, node: Node) -> Node | None:
    source = node.args[0]
    assert isinstance(source, Node)
    unchanged = value(source).dtype == value(node).dtype and shape(source) == shape(node)
    return source if unchanged else None


def _reshape(site: Site, node: Node) -> Node | None:
    source = node.args[0]
    assert isinstance(source, Node)
    if shape(source) == shape(node):
        return source
    if source.target == _aten.reshape.default:
        inner = source.args[0]
        assert isinstance(inner, Node)
        return site.reshape(inner, shape(node))
    if node.target == _aten.reshape.default:
        return None
    return site.reshape(source, shape(node))


def _permute(site: Site, node: Node) -> Node | None:
    source = node.args[0]
    assert isinstance(source, Node)
    order = permutation(node)
    if source.target == _aten.permute.default:
        first = permutation(source)
        inner = source.args[0]
        assert isinstance(inner, Node)
        source, order = inner, [first[axis] for axis in order]
    elif node.target == _aten.permute.default and not _keeps_data(source, order):
        return None
    if order == list(range(len(order))):
        return source
    if _keeps_data(source, order):
        return site.reshape(source, shape(node))
    return site.call(_aten.permute.default, source, order)


def permutation(node: Node) -> list[int]:
    """Which axis of the argument each axis of the result is."""
    rank = value(node).dim()
    if node.target == _aten.permute.default:
        return [axis % rank for axis in bound(node)["dims"]]
    order = list(range(rank))
    if node.target == _aten.transpose.int:
        first, second = bound(node)["dim0"] % rank, bound(node)["dim1"] % rank
        order[first], order[second] = order[second], order[first]
        return order
    return order[::-1]  # t


def _keeps_data(source: Node, order: list[int]) -> bool:
    sizes = shape(source)
    long = [axis for axis in order if sizes[axis] != 1]
    return long == sorted(long)


def _reduction(site: Site, node: Node) -> Node | None:
    named = bound(node)
    if not named["keepdim"] or named["dtype"] is not None:
        return None
    assert callable(node.target)
    flat = site.call(node.target, named["self"], named["dim"])
    return site.reshape(flat, shape(node))


def _division(site: Site, node: Node) -> Node | None:
    return _same(site, node) if node.args[1] == 1 else None


_RULES: dict[object, Rule] = {
    **dict.fromkeys(
        (
            _aten.alias.default,
            _aten.clone.default,
            _aten.contiguous.default,
            _aten.detach.default,
            _aten.expand.default,
            _aten.lift_fresh_copy.default,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            _aten._unsafe_view.default,
            _aten.reshape.default,
            _aten.squeeze.default,
            _aten.squeeze.dim,
            _aten.squeeze.dims,
            _aten.unsqueeze.default,
            _aten.view.default,
        ),
        _reshape,
    ),
    **dict.fromkeys((_aten.permute.default, _aten.t.default, _aten.transpose.int), _permute),
    **dict.fromkeys((_aten.mean.dim, _aten.sum.dim_IntList), _reduction),
    _aten.div.Scalar: _division,
}
