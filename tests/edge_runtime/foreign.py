"""Programs that flexmoe did not export."""

from __future__ import annotations

from functools import cache

import torch
from executorch.exir import to_edge

from edge_runtime.layout import LAYOUT_METHOD
from edge_runtime.program_file import seal


@cache  # an export takes a while
def other_program(layout: str | int | None) -> bytes:
    """A sealed ExecuTorch program that adds 1; `layout` is what it says of itself, if anything."""

    class AddOne(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    exported = torch.export.export(AddOne(), (torch.zeros(2),), strict=False)
    methods = None if layout is None else {LAYOUT_METHOD: layout}
    return seal(bytes(to_edge(exported, constant_methods=methods).to_executorch().buffer))
