"""A subset model as ExecuTorch programs: pure functions of (weights, batch), no weights inside.

The calling convention is `edge_runtime.layout.ProgramLayout`; the file carries it in a constant
method. A program is made for a kernel set: `native` or `stock` (docs/native.md). The coefficient of
the balance term (`trace.balance_term`) is a constant in a training program; it changes gradients
only, neither the layout nor what the program says of its loss.
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
from torch.fx import GraphModule

from edge_runtime.errors import ProgramError
from edge_runtime.layout import KERNEL_SETS, LAYOUT_METHOD, ROLES, ProgramLayout, TensorLayout
from edge_runtime.program_file import seal
from model_export.models import ModelSpec, MoE


@dataclass(frozen=True)
class Program:
    """An exported program: its sealed bytes, its layout, and the memory that it plans.

    `arena_bytes` is what the runtime allocates before the first step: for activations, and in a
    stock program for inputs and gradients, too.
    """

    data: bytes
    layout: ProgramLayout
    arena_bytes: int


def make_layout(spec: ModelSpec, k: int, batch: int, role: str, kernels: str) -> ProgramLayout:
    """The layout of the program that `export_program` would make."""
    if role not in ROLES or not 1 <= k <= spec.experts or batch < 1:
        raise ProgramError(
            f"cannot export role {role!r}, k={k} of {spec.experts} experts, batch {batch}: "
            f"the role is one of {ROLES}, 1 <= k <= experts, batch >= 1"
        )
    if kernels not in KERNEL_SETS:
        raise ProgramError(f"cannot export for kernels {kernels!r}; expected one of {KERNEL_SETS}")
    with torch.device("meta"):
        model = MoE(spec, slots=k)
    for name, _ in model.named_buffers():
        raise ProgramError(
            f"cannot export model {spec.name!r}: it keeps {name!r} beside its weights, and a "
            "program has no state; use GroupNorm for BatchNorm, and weights or constants otherwise"
        )
    weights = tuple(TensorLayout(n, tuple(p.shape)) for n, p in model.named_parameters())
    return ProgramLayout(
        role, kernels, spec.name, k, spec.experts, batch, spec.classes, tuple(spec.shape), weights
    )


def effective_balance(layout: ProgramLayout, balance: float) -> float:
    """The coefficient as it matters to a program of `layout`: 0 where there is nothing to balance.

    One expert has all of the gate, and an evaluation has no gradients: these programs are the same
    for every coefficient. `ProgramError` for one below 0 or not finite, in float32.
    """
    if not 0 <= balance <= torch.finfo(torch.float32).max:
        raise ProgramError(
            f"cannot export with balance {balance}; expected a number of at least 0, "
            "finite in float32"
        )
    return float(balance) if layout.role == "train" and layout.k > 1 else 0.0


def export_program(
    spec: ModelSpec,
    k: int,
    batch: int,
    role: str,
    kernels: str,
    *,
    optimize: bool = True,
    balance: float = 0.0,
) -> Program:
    """Export one program; `ProgramError` for a model that the kernels cannot train.

    `optimize=False` leaves out the passes for the stock kernels (for comparison). `balance` is the
    coefficient of the balance term, 0 or more; the loss that the program gives stays without it.
    """
    layout = make_layout(spec, k, batch, role, kernels)
    balance = effective_balance(layout, balance)
    try:
        with _quiet():
            data, plan = _export(spec, layout, optimize, balance)
    except RuntimeError as error:
        why = (str(error).strip() or repr(error)).splitlines()[0]
        raise ProgramError(
            f"cannot export model {layout.model!r} for {layout.kernels} kernels: {why}"
        ) from error
    return Program(seal(data), layout, int(sum(plan.non_const_buffer_sizes)))


def _export(
    spec: ModelSpec, layout: ProgramLayout, optimize: bool, balance: float
) -> tuple[bytes, Any]:
    """The bytes of a `.pte`, and the plan of its method."""
    from model_export.refuse import refuse_missing, refuse_random, refuse_wrong
    from model_export.trace import example_inputs, native_graph, stock_graph

    trace = native_graph if layout.kernels == "native" else stock_graph
    graph = trace(spec, layout, balance)
    refuse_wrong(graph, layout)
    if any(True for _ in graph.buffers()):
        refuse_random(graph, trace(spec, layout, balance), layout)
    executorch = _to_executorch(graph, example_inputs(layout), layout, optimize)
    plan = next(p for p in executorch.executorch_program.execution_plan if p.name == "forward")
    refuse_missing((f"{o.name}.{o.overload or 'default'}" for o in plan.operators), layout)
    return bytes(executorch.buffer), plan


def _to_executorch(
    graph: GraphModule, inputs: tuple[Any, ...], layout: ProgramLayout, optimize: bool
) -> Any:
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge

    from model_export.arena import native_planning
    from model_export.passes.stock import stock_passes

    edge = to_edge(
        torch.export.export(_Graph(graph), inputs, strict=False),
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
        constant_methods={LAYOUT_METHOD: layout.to_json()},
    )
    if layout.kernels == "native":
        return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=native_planning()))
    return (edge.transform(stock_passes()) if optimize else edge).to_executorch()


class _Graph(nn.Module):
    """A traced graph under `torch.export`, which wants a plain module."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.step = graph  # not `graph`: the exporter's own modules keep theirs under that name

    def forward(
        self, weights: tuple[Tensor, ...], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
    ) -> Any:
        return self.step(weights, x, y, experts, weight)


def training_memory_bytes(
    training: Program, evaluation: Program, *, moments: int, micro_batches: bool = False
) -> int:
    """What a device needs to train with this pair, the runtime itself and its data apart.

    Both programs; their arenas, of which the native trainer has one for both, the larger; and so
    many copies of the weights: four as received, as trained, their change, and the change as
    encoded; `moments` of the optimizer (0 for plain descent, 1 for momentum, 2 for AdamW); one for
    the gradients, which the native trainer keeps outside of the arena (for the stock trainer: the
    optimizer's scratch); and one more where gradients of `micro_batches` are summed. What the
    runtime makes of a program (tens of KiB) and the scratch of the native kernels are not counted:
    they depend on the device's processor and threads.
    """
    pair = training, evaluation
    one = max if training.layout.kernels == "native" else sum
    programs = sum(len(p.data) for p in pair) + one(p.arena_bytes for p in pair)
    return programs + (5 + moments + micro_batches) * training.layout.weights_bytes


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
