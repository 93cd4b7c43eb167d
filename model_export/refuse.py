"""Models that ExecuTorch's own kernels would train wrongly or not at all.

A device would find out late, or never, so they are refused before a program is made.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import GraphModule

from edge_runtime.errors import ProgramError
from edge_runtime.layout import ProgramLayout
from model_export.operators import NAMESPACE
from model_export.passes.graph import bound

_aten = torch.ops.aten


def refuse_wrong(graph: GraphModule, layout: ProgramLayout) -> None:
    """`ProgramError` for an operator whose gradient is wrong in release 1.5.1."""
    for node in graph.graph.nodes:
        if node.target == _aten.max_pool2d_with_indices_backward.default:
            _refuse(
                layout,
                "max_pool2d has a wrong gradient",
                "a strided convolution, or reshape and amax",
            )
        if node.target == _aten.convolution_backward.default:
            named = bound(node)
            if named["transposed"] or len(named["stride"]) != 2:
                _refuse(
                    layout,
                    "transposed convolutions and those that are not 2-D have no gradient",
                    "Conv2d, of height 1 for sequences",
                )


def refuse_random(graph: GraphModule, again: GraphModule, layout: ProgramLayout) -> None:
    """`ProgramError` unless both, of a model that was made twice, hold the same constants."""
    for first, second in zip(graph.buffers(), again.buffers(), strict=True):
        if not torch.equal(first, second):
            raise ProgramError(
                f"cannot export model {layout.model!r}: it holds a tensor of shape "
                f"{list(first.shape)} that is random, so the server and the devices would not "
                "have the same; make it a weight (nn.Parameter), or draw it from a generator with "
                "a seed of its own"
            )


def refuse_missing(operators: Iterable[str], layout: ProgramLayout) -> None:
    """`ProgramError` for operators, such as ``aten::add.out``, that there is no kernel for."""
    from executorch.extension.pybindings import _C

    known = set(_C._get_operator_names())
    missing = {o for o in operators if not o.startswith(f"{NAMESPACE}::")} - known
    if missing:
        _refuse(layout, f"there is no {', '.join(sorted(missing))}", "other layers")


def _refuse(layout: ProgramLayout, what: str, instead: str) -> None:
    trainer = "" if layout.kernels == "native" else "the native trainer, or in the model "
    raise ProgramError(
        f"cannot export model {layout.model!r} for {layout.kernels} kernels: in ExecuTorch's "
        f"kernels, {what}; use {trainer}{instead}"
    )
