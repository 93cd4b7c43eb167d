"""A subset model as ExecuTorch programs: pure functions of (weights, batch), no weights inside.

The backward pass is traced ahead of time (`torch.func.grad_and_value` under `make_fx`), so a
device needs no autograd. The calling convention is `edge_runtime.layout.ProgramLayout`; the file
carries it in a constant method.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_runtime.errors import ProgramError
from edge_runtime.layout import LAYOUT_METHOD, ROLES, ProgramLayout, TensorLayout
from model_export.models import ModelSpec, MoE


@dataclass(frozen=True)
class Program:
    """An exported program: the bytes of its `.pte`, its layout, and the memory that it plans.

    `arena_bytes` is what the runtime allocates for activations and gradients before the first step.
    """

    data: bytes
    layout: ProgramLayout
    arena_bytes: int


def loss_and_stats(
    model: MoE, weights: dict[str, Tensor], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted cross-entropy of a batch and the statistics that fitness needs.

    `x` [B, *shape], `y` [B] int64, `experts` [k] int64, `weight` [B]; returns the scalar
    ``sum_i weight_i * loss_i`` and `stats` [k, 3]: per slot the samples routed to it (largest gate
    weight; samples of weight 0 do not count), their summed loss, and their hits.
    """
    logits, gate = torch.func.functional_call(model, weights, (x, experts))
    # One-hot products instead of gather and nll_loss: their gradients need no scatter.
    target = (y.unsqueeze(1) == torch.arange(model.spec.classes)).to(x.dtype)
    losses = -(torch.log_softmax(logits, dim=1) * target).sum(1)
    real = (weight > 0).to(x.dtype)
    slots = torch.arange(len(model.experts))
    routed = (gate.argmax(1).unsqueeze(1) == slots).to(x.dtype) * real.unsqueeze(1)
    hit = (logits.argmax(1) == y).to(x.dtype)
    seen = torch.stack([torch.ones_like(hit), losses, hit], dim=1)
    return (weight * losses).sum(), (routed.T @ seen).detach()


class _Step(nn.Module):
    """The function that a program computes, over weights given as a tuple."""

    def __init__(self, model: MoE, names: list[str], role: str) -> None:
        super().__init__()
        self._model = [model]  # in a list: its parameters are inputs here, not this module's own
        self._names = names
        self._role = role

    def forward(
        self, weights: tuple[Tensor, ...], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        def loss(values: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            named = dict(zip(self._names, values, strict=True))
            return loss_and_stats(self._model[0], named, x, y, experts, weight)

        if self._role == "evaluate":
            return loss(weights)
        gradients, (value, stats) = torch.func.grad_and_value(loss, has_aux=True)(weights)
        return (value, stats, *gradients)


def make_layout(spec: ModelSpec, k: int, batch: int, role: str) -> ProgramLayout:
    """The layout of the program that `export_program` would make."""
    if role not in ROLES or not 1 <= k <= spec.experts or batch < 1:
        raise ProgramError(
            f"cannot export role {role!r}, k={k} of {spec.experts} experts, batch {batch}: "
            f"the role is one of {ROLES}, 1 <= k <= experts, batch >= 1"
        )
    with torch.device("meta"):
        model = MoE(spec, slots=k)
    weights = tuple(TensorLayout(n, tuple(p.shape)) for n, p in model.named_parameters())
    return ProgramLayout(
        role, spec.name, k, spec.experts, batch, spec.classes, tuple(spec.shape), weights
    )


def example_inputs(layout: ProgramLayout) -> tuple[Any, ...]:
    """Inputs of the right shapes for a program of `layout`; the values do not matter to it."""
    return (
        tuple(torch.full(weight.shape, 0.01) for weight in layout.weights),
        torch.zeros(layout.batch, *layout.shape),
        torch.zeros(layout.batch, dtype=torch.int64),
        torch.arange(layout.k),
        torch.full((layout.batch,), 1.0 / layout.batch),
    )


def export_program(
    spec: ModelSpec, k: int, batch: int, role: str, optimize: bool = True
) -> Program:
    """Export one program. `optimize=False` leaves out the graph passes (for comparison)."""
    layout = make_layout(spec, k, batch, role)
    with torch.device("meta"):  # the weights are inputs; the model's own have no values
        model = MoE(spec, slots=k)
    step = _Step(model, [weight.name for weight in layout.weights], role)
    inputs = example_inputs(layout)
    with _quiet():
        from executorch.exir import EdgeCompileConfig, to_edge
        from torch._decomp import core_aten_decompositions
        from torch.fx.experimental.proxy_tensor import make_fx

        from model_export.passes import passes

        graph = make_fx(step, decomposition_table=dict(core_aten_decompositions()))(*inputs)
        exported = torch.export.export(_Graph(graph), inputs, strict=False)
        edge = to_edge(
            exported,
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={LAYOUT_METHOD: layout.to_json()},
        )
        if optimize:
            edge = edge.transform(passes())
        executorch = edge.to_executorch()
    plan = next(p for p in executorch.executorch_program.execution_plan if p.name == "forward")
    return Program(bytes(executorch.buffer), layout, int(sum(plan.non_const_buffer_sizes)))


class _Graph(nn.Module):
    """A traced graph under `torch.export`, which wants a plain module."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(
        self, weights: tuple[Tensor, ...], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
    ) -> Any:
        return self.graph(weights, x, y, experts, weight)


def training_memory_bytes(training: Program, evaluation: Program) -> int:
    """What a device needs to train with this pair, the runtime itself and its data apart.

    Both programs and their arenas, and six times the weights: as received, as trained, momentum,
    the optimizer's scratch, their change, and the change as encoded.
    """
    programs = sum(len(p.data) + p.arena_bytes for p in (training, evaluation))
    return programs + 6 * training.layout.weights_bytes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Importing and running the exporter prints pages about optional parts; errors still raise."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
