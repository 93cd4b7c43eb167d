"""Gives every result of a program memory of its own, because the caller names where each one goes.

A result that is listed twice, is an input, or is another's reshape becomes a copy.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from model_export.passes.graph import Site, shape

_aten = torch.ops.aten


def separate(module: GraphModule) -> None:
    """See above."""
    (output,) = module.graph.find_nodes(op="output")
    site, seen, results = Site(output), set[Node](), []
    for result in output.args[0]:
        assert isinstance(result, Node)
        view = result.op == "placeholder" or result.target == _aten.reshape.default
        if view or result in seen:
            result = site.call(_aten.view_copy.default, result, shape(result))
        seen.add(result)
        results.append(result)
    output.args = (results,)
    module.recompile()
