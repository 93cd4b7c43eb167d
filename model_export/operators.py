"""The operators of the native device runtime, registered with torch as namespace `flexmoe`.

Each one has its plain form (`torch.ops.flexmoe.gemm.default`) and the form with outputs that the
exporter writes into programs (`.out`). Their values and shapes are those of `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model_export.reference import REFERENCE

NAMESPACE = "flexmoe"

_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_MIXTURE = "Tensor scores, Tensor outputs, Tensor y, Tensor experts, Tensor sample_weight"

# Arguments, and how many tensors come out.
SCHEMAS: dict[str, tuple[str, int]] = {
    "gemm": ("Tensor a, Tensor b, Tensor? bias, bool transpose_a, bool transpose_b, bool relu", 1),
    "sum_rows": ("Tensor x", 1),
    "conv2d": (f"Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, bool relu", 1),
    "conv2d_backward_input": (f"Tensor dy, Tensor weight, int[] input_size, {_GEOMETRY}", 1),
    "conv2d_backward_weight": (f"Tensor dy, Tensor x, int[] weight_size, {_GEOMETRY}", 1),
    "sum_channels": ("Tensor x", 1),
    "group_norm": ("Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, bool relu", 3),
    "group_norm_backward": (
        "Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? y, int groups",
        3,
    ),
    "relu": ("Tensor x", 1),
    "relu_backward": ("Tensor dy, Tensor y", 1),
    "add": ("Tensor a, Tensor b", 1),
    "mean_pool": ("Tensor x", 1),
    "mean_pool_backward": ("Tensor dy, int[] input_size", 1),
    "avg_pool2d": ("Tensor x, int[] kernel, int[] stride, int[] padding", 1),
    "avg_pool2d_backward": (
        "Tensor dy, int[] input_size, int[] kernel, int[] stride, int[] padding",
        1,
    ),
    "max_pool2d": ("Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation", 2),
    "max_pool2d_backward": ("Tensor dy, Tensor indices, int[] input_size", 1),
    "stack": ("Tensor[] xs", 1),
    "select": ("Tensor x, int index", 1),
    "mixture_cross_entropy": (_MIXTURE, 4),
    "balanced_mixture_cross_entropy": (f"{_MIXTURE}, float balance", 4),
    "mixture_evaluate": (_MIXTURE, 2),
}


def _register() -> None:
    """Define every operator once in this process, however often this file is imported."""
    for name, (arguments, count) in SCHEMAS.items():
        full = f"{NAMESPACE}::{name}"
        if torch._C._dispatch_has_kernel(full):
            continue
        outs = ["out"] if count == 1 else [f"out{i}" for i in range(count)]
        marked = [f"Tensor({'abcd'[i]}!)" for i in range(count)]
        written = ", ".join(f"{kind} {out}" for kind, out in zip(marked, outs, strict=True))
        reference = REFERENCE[name]
        into = partial(_write_into, reference, outs)
        torch.library.define(full, f"({arguments}) -> {_results(['Tensor'] * count)}")
        torch.library.define(f"{full}.out", f"({arguments}, *, {written}) -> {_results(marked)}")
        torch.library.impl(full, "cpu", reference)
        torch.library.impl(f"{full}.out", "cpu", into)
        torch.library.register_fake(full, reference)
        torch.library.register_fake(f"{full}.out", into)


def _results(kinds: list[str]) -> str:
    return kinds[0] if len(kinds) == 1 else f"({', '.join(kinds)})"


def _write_into(
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    names: list[str],
    *arguments: Any,
    **keywords: Any,
) -> Tensor | tuple[Tensor, ...]:
    """`reference` into the tensors that the keywords `names` give."""
    outs = tuple(keywords.pop(name) for name in names)
    results = reference(*arguments, **keywords)
    for out, result in zip(outs, (results,) if len(outs) == 1 else results, strict=True):
        out.copy_(result)
    return outs[0] if len(outs) == 1 else outs


_register()
ours = torch.ops.flexmoe
"""The operators, once they are registered."""
