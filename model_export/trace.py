"""One step of a subset model as one graph of operators: loss, statistics and gradients.

The backward pass is traced ahead of time, so a device needs no autograd. The stock graph is in core
ATen and holds the gradient of the whole loss. The native graph pulls back the model only, up to the
scores and the experts' outputs, because the operator that computes the loss gives its own gradient;
passes then turn the rest into the operators of docs/native.md.

With a `balance` above 0 the gradients are those of the loss plus `balance` times `balance_term`.
The loss and the statistics that a program gives stay those of the plain cross-entropy, so that runs
with and without the term can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.func import functional_call, functionalize, grad_and_value, vjp
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from edge_runtime.layout import ProgramLayout
from model_export.models import ModelSpec, MoE
from model_export.operators import ours
from model_export.passes.fuse import fuse
from model_export.passes.lower import lower
from model_export.passes.schedule import schedule
from model_export.passes.separate import separate
from model_export.passes.tidy import tidy


def stock_graph(spec: ModelSpec, layout: ProgramLayout, balance: float = 0.0) -> GraphModule:
    """The program that `layout` describes as a graph of core ATen operators."""
    step = _StockStep(spec, layout, balance)
    return make_fx(step, _core())(*example_inputs(layout))


def native_graph(spec: ModelSpec, layout: ProgramLayout, balance: float = 0.0) -> GraphModule:
    """The same as a graph of the native runtime's operators; it runs in torch, too, slowly.

    What the passes do not know stays as it is in ATen.
    """
    # Without mutations, such as those of `nn.ReLU(inplace=True)`: passes move what is computed.
    step = functionalize(_NativeStep(spec, layout, balance), remove="mutations")
    inputs = example_inputs(layout)
    # Whole layers first. Then what no pass knew is decomposed, and the pieces looked at again.
    graph = _trace(step, inputs)
    _rewrite(graph)
    graph = _trace(graph, inputs, _core())
    _rewrite(graph)
    separate(graph)
    schedule(graph)
    return graph


def _trace(step: Callable[..., Any], inputs: tuple[Any, ...], core: Any = None) -> GraphModule:
    # What a model makes of numbers, or keeps as a plain tensor, is real, and becomes a buffer.
    graph = make_fx(step, core, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    mode = next(iter(graph.graph.nodes)).meta["val"].fake_mode
    for node in graph.graph.find_nodes(op="get_attr"):
        node.meta["val"] = mode.from_tensor(graph.get_buffer(node.target))
    return graph


def _rewrite(graph: GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    for rewrite in (tidy, lower, tidy, fuse):
        rewrite(graph)


def _core() -> dict[Any, Any]:
    """How to take operators apart into those that ExecuTorch has kernels for."""
    return dict(core_aten_decompositions())


def example_inputs(layout: ProgramLayout) -> tuple[Any, ...]:
    """Inputs of the right shapes for a program of `layout`; the values do not matter to it."""
    return (
        tuple(torch.full(weight.shape, 0.01) for weight in layout.weights),
        torch.zeros(layout.batch, *layout.shape),
        torch.zeros(layout.batch, dtype=torch.int64),
        torch.arange(layout.k),
        torch.full((layout.batch,), 1.0 / layout.batch),
    )


def loss_and_stats(
    model: MoE, weights: dict[str, Tensor], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted cross-entropy of a batch, the statistics that fitness needs, and the gate.

    `x` [B, *shape], `y` [B] int64, `experts` [k] int64, `weight` [B]; returns the scalar
    ``sum_i weight_i * loss_i``, `stats` [k, 3]: per slot the samples routed to it (largest gate
    weight; samples of weight 0 do not count), their summed loss, and their hits; and the gate's
    weights [B, k]. There is no balance term in any of them.
    """
    logits, gate = functional_call(model, weights, (x, experts))
    # One-hot products instead of gather and nll_loss: their gradients need no scatter.
    target = (y.unsqueeze(1) == torch.arange(model.spec.classes)).to(x.dtype)
    losses = -(torch.log_softmax(logits, dim=1) * target).sum(1)
    real = (weight > 0).to(x.dtype)
    slots = torch.arange(len(model.experts))
    routed = (gate.argmax(1).unsqueeze(1) == slots).to(x.dtype) * real.unsqueeze(1)
    hit = (logits.argmax(1) == y).to(x.dtype)
    seen = torch.stack([torch.ones_like(hit), losses, hit], dim=1)
    return (weight * losses).sum(), (routed.T @ seen).detach(), gate


def balance_term(gate: Tensor, weight: Tensor) -> Tensor:
    """How unevenly a batch uses the k experts: W where all share alike, k W where one has all.

    `gate` [B, k], `weight` [B], W = ``sum_i weight_i``; the scalar ``W * k * sum_e f_e * P_e``:
    f_e is the part of W whose largest gate weight is e's, P_e the weighted mean of e's gate weight;
    gradients flow through P only. The load-balancing loss of Switch Transformers (Fedus et al.,
    arXiv 2101.03961, equations 4 to 6), times W, so that micro-batches count by their samples; but
    f is that of each by itself, so they do not add up to the whole batch.
    """
    slots = torch.arange(gate.shape[1])
    shares = weight.unsqueeze(1)
    routed = (gate.argmax(1).unsqueeze(1) == slots).to(gate.dtype)
    total = weight.sum()
    f = (shares * routed).sum(0) / (total + (total == 0).to(total.dtype))  # padding alone: 0
    return gate.shape[1] * (f * (shares * gate).sum(0)).sum()


class _Step:
    """The function that a program computes, over weights given as a tuple."""

    def __init__(self, spec: ModelSpec, layout: ProgramLayout, balance: float) -> None:
        # The weights are inputs, and the model's own of no use; but its constants are (`program.py`
        # sees to it that they are not random).
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.seed()
            self._model = MoE(spec, slots=layout.k)
        self._names = [weight.name for weight in layout.weights]
        self._trains = layout.role == "train"
        self._balance = balance


class _StockStep(_Step):
    def __call__(
        self, weights: tuple[Tensor, ...], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        def objective(values: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            named = dict(zip(self._names, values, strict=True))
            loss, stats, gate = loss_and_stats(self._model, named, x, y, experts, weight)
            if not self._balance:
                return loss, (loss, stats)
            return loss + self._balance * balance_term(gate, weight), (loss, stats)

        if not self._trains:
            return objective(weights)[1]
        gradients, (_, (loss, stats)) = grad_and_value(objective, has_aux=True)(weights)
        return (loss, stats, *gradients)


class _NativeStep(_Step):
    def __call__(
        self, weights: tuple[Tensor, ...], x: Tensor, y: Tensor, experts: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        head = _Head(self._model)

        def forward(values: tuple[Tensor, ...]) -> Any:
            named = {f"model.{n}": v for n, v in zip(self._names, values, strict=True)}
            return functional_call(head, named, (x,))

        if not self._trains:
            scores, outputs = forward(weights)
            loss, stats = ours.mixture_evaluate(scores, outputs, y, experts, weight)
            return loss, stats
        # Without `has_aux` there are two results; torch's hint says more.
        (scores, outputs), pull_back = vjp(forward, weights)  # type: ignore[misc]
        batch = (scores, outputs, y, experts, weight)
        loss, stats, dscores, doutputs = (
            ours.balanced_mixture_cross_entropy(*batch, self._balance)
            if self._balance
            else ours.mixture_cross_entropy(*batch)
        )
        # Without a graph for second derivatives, which would take GroupNorm's gradient apart.
        (gradients,) = pull_back((dscores, doutputs), create_graph=False)
        return (loss, stats, *gradients)


class _Head(nn.Module):
    """The model up to what its mixture is made of."""

    def __init__(self, model: MoE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.scores_and_outputs(x)
