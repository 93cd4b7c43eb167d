"""Rewriting a traced graph of ATen operators node by node.

Every tensor node carries its value's shape and dtype in ``meta["val"]`` (a fake tensor); `Site`
keeps that true for the nodes that it adds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument, map_arg

# Gives what stands for a node: one node, one for each of its results, or None to leave it.
Rule = Callable[["Site", Node], "Node | list[Node] | None"]


class Site:
    """A place in a graph where calls can be added: right before `node`."""

    def __init__(self, node: Node) -> None:
        self._graph: Graph = node.graph
        self._node = node

    def call(self, target: Callable[..., Any], *arguments: Any) -> Node:
        """A call of `target`, with its shapes worked out."""
        with self._graph.inserting_before(self._node):
            node = self._graph.call_function(target, arguments)
        node.meta["val"] = target(*map_arg(arguments, lambda n: n.meta["val"]))
        return node

    def results(self, target: Callable[..., Any], *arguments: Any) -> list[Node]:
        """The results of a call of `target`, which has several."""
        many = self.call(target, *arguments)
        return [self.call(operator.getitem, many, i) for i in range(len(many.meta["val"]))]

    def reshape(self, x: Node, shape: list[int]) -> Node:
        """`x` in another shape; `x` itself if it has that shape."""
        if list(value(x).shape) == shape:
            return x
        return self.call(torch.ops.aten.reshape.default, x, shape)

    def images(self, x: Node) -> Node:
        """`x` [N, C, ...] as [N, C, 1, rest]; four axes stay."""
        sizes = list(value(x).shape)
        return x if len(sizes) == 4 else self.reshape(x, [*sizes[:2], 1, math.prod(sizes[2:])])


def rewrite(module: GraphModule, rules: Mapping[object, Rule]) -> bool:
    """Put what the rule for its target gives in the place of every node; drop what nobody uses.

    Returns whether anything changed. Nodes are met in order, so a rule sees rewritten arguments.
    """
    changed = False
    for node in list(module.graph.nodes):
        rule = rules.get(node.target) if node.op == "call_function" else None
        new = rule(Site(node), node) if rule else None
        if isinstance(new, Node):
            node.replace_all_uses_with(new)
        elif new is not None:
            for user in list(node.users):
                assert user.target is operator.getitem
                user.replace_all_uses_with(new[user.args[1]])
        changed = changed or new is not None
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()
    return changed


def value(node: Argument) -> Tensor:
    """The shape and dtype of the tensor that `node` gives."""
    assert isinstance(node, Node)
    found = node.meta["val"]
    assert isinstance(found, Tensor)
    return found


def shape(node: Argument) -> list[int]:
    return list(value(node).shape)


def bound(node: Node) -> dict[str, Any]:
    """The arguments of a call by the names in its operator's schema, with defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = node.target._schema.arguments
    given = dict(zip((a.name for a in names), node.args, strict=False))
    defaults = {a.name: a.default_value for a in names if a.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
