"""Lets one operator of the native device runtime do the work of two.

1. A ReLU right after `gemm`, `conv2d` or `group_norm` becomes part of it, where nothing else takes
   the value before the ReLU.
2. `relu_backward` right before `group_norm_backward` becomes part of it.
"""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from model_export.operators import ours
from model_export.passes.graph import Rule, Site, rewrite

_LAST_IS_RELU = (ours.gemm.default, ours.conv2d.default, ours.group_norm.default)


def fuse(module: GraphModule) -> None:
    """Rewrite a lowered graph; see above."""
    rewrite(module, _RULES)


def _relu(site: Site, node: Node) -> Node | None:
    """Switches the flag where the value is made."""
    source = node.args[0]
    assert isinstance(source, Node)
    made, others = source, set(source.users)
    if source.target is operator.getitem:
        made = source.args[0]  # type: ignore[assignment]
    if made.target not in _LAST_IS_RELU or made.args[-1] or others != {node}:
        return None
    made.args = (*made.args[:-1], True)
    return source


def _group_norm_backward(site: Site, node: Node) -> list[Node] | None:
    dy, x, mean, rstd, weight, y, groups = node.args
    if not isinstance(dy, Node) or dy.target != ours.relu_backward.default:
        return None
    if y is not None or len(dy.users) != 1:
        return None
    arguments = (dy.args[0], x, mean, rstd, weight, dy.args[1], groups)
    return site.results(ours.group_norm_backward.default, *arguments)


_RULES: dict[object, Rule] = {
    ours.relu.default: _relu,
    ours.group_norm_backward.default: _group_norm_backward,
}
