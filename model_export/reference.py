"""What each operator of the native device runtime computes, in plain torch.

One function for each operator of docs/native.md, with the same arguments. They are the meaning that
the device's kernels are tested against, and, run on fake tensors, the shapes that the exporter
needs. Float32 and contiguous; results never share memory with arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

_aten = torch.ops.aten


def gemm(
    a: Tensor, b: Tensor, bias: Tensor | None, transpose_a: bool, transpose_b: bool, relu: bool
) -> Tensor:
    product = (a.t() if transpose_a else a) @ (b.t() if transpose_b else b)
    if bias is not None:
        product = product + bias
    return (product.relu() if relu else product).contiguous()


def sum_rows(x: Tensor) -> Tensor:
    return x.sum(0)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    y: Tensor = _aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return (y.relu() if relu else y).contiguous()


def conv2d_backward_input(
    dy: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    x = dy.new_zeros(input_size)  # only its shape matters
    mask = [True, False, False]
    gradients = _aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    dx: Tensor = gradients[0]
    return dx.contiguous()


def conv2d_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    weight = dy.new_zeros(weight_size)  # only its shape matters
    mask = [False, True, False]
    gradients = _aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    dweight: Tensor = gradients[1]
    return dweight.contiguous()


def sum_channels(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3))


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    members = x.reshape(x.shape[0], groups, -1)
    mean = members.mean(2)
    rstd = torch.rsqrt(members.var(2, correction=0) + eps)
    y = ((members - mean.unsqueeze(2)) * rstd.unsqueeze(2)).reshape(x.shape)
    if weight is not None:
        y = y * weight.reshape(1, -1, 1, 1)
    if bias is not None:
        y = y + bias.reshape(1, -1, 1, 1)
    return (y.relu() if relu else y).contiguous(), mean, rstd


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    y: Tensor | None,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if y is not None:
        dy = dy * (y > 0)
    members = (x.shape[0], groups, -1)
    normal = (x.reshape(members) - mean.unsqueeze(2)) * rstd.unsqueeze(2)
    dweight = (dy * normal.reshape(x.shape)).sum((0, 2, 3))
    dnormal = dy if weight is None else dy * weight.reshape(1, -1, 1, 1)
    dnormal = dnormal.reshape(members)
    # Whatever shifts or scales a whole group does not change its normal form.
    shift = dnormal.mean(2, keepdim=True)
    scale = (dnormal * normal).mean(2, keepdim=True)
    dx = (dnormal - shift - normal * scale) * rstd.unsqueeze(2)
    return dx.reshape(x.shape).contiguous(), dweight, dy.sum((0, 2, 3))


def relu(x: Tensor) -> Tensor:
    return x.relu().contiguous()


def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    return (dy * (y > 0)).contiguous()


def add(a: Tensor, b: Tensor) -> Tensor:
    return (a + b).contiguous()


def mean_pool(x: Tensor) -> Tensor:
    return x.mean((2, 3)).contiguous()


def mean_pool_backward(dy: Tensor, input_size: Sequence[int]) -> Tensor:
    share = dy / (input_size[2] * input_size[3])
    return share[:, :, None, None].expand(input_size).contiguous()


def avg_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    y: Tensor = _aten.avg_pool2d(x, kernel, stride, padding)
    return y.contiguous()


def avg_pool2d_backward(
    dy: Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    x = dy.new_zeros(input_size)  # only its shape matters
    dx: Tensor = _aten.avg_pool2d_backward(dy, x, kernel, stride, padding, False, True, None)
    return dx.contiguous()


def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    y, indices = _aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation)
    return y.contiguous(), indices.contiguous()


def max_pool2d_backward(dy: Tensor, indices: Tensor, input_size: Sequence[int]) -> Tensor:
    planes = dy.new_zeros(input_size).flatten(2)
    return planes.scatter_add(2, indices.flatten(2), dy.flatten(2)).reshape(input_size)


def stack(xs: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(xs)).contiguous()


def select(x: Tensor, index: int) -> Tensor:
    return x[index].clone(memory_format=torch.contiguous_format)


def mixture_cross_entropy(
    scores: Tensor, outputs: Tensor, y: Tensor, experts: Tensor, sample_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gate, logits, loss, stats = _mixture(scores, outputs, y, experts, sample_weight)
    target = functional.one_hot(y, logits.shape[1])
    dlogits = sample_weight.unsqueeze(1) * (torch.softmax(logits, 1) - target)
    doutputs = gate.t().unsqueeze(2) * dlogits
    dgate = (outputs * dlogits).sum(2).t()
    return loss, stats, _dscores(scores, experts, gate, dgate), doutputs.contiguous()


def balanced_mixture_cross_entropy(
    scores: Tensor,
    outputs: Tensor,
    y: Tensor,
    experts: Tensor,
    sample_weight: Tensor,
    balance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, stats, dscores, doutputs = mixture_cross_entropy(
        scores, outputs, y, experts, sample_weight
    )
    gate, weight = torch.softmax(scores[:, experts], 1), sample_weight.unsqueeze(1)
    routed = (weight * functional.one_hot(gate.argmax(1), len(experts))).sum(0)
    total = sample_weight.sum()
    share = routed / torch.where(total == 0, 1, total)  # 0 for a batch of padding
    dterm = balance * len(experts) * share * weight
    return loss, stats, dscores + _dscores(scores, experts, gate, dterm), doutputs


def mixture_evaluate(
    scores: Tensor, outputs: Tensor, y: Tensor, experts: Tensor, sample_weight: Tensor
) -> tuple[Tensor, Tensor]:
    _, _, loss, stats = _mixture(scores, outputs, y, experts, sample_weight)
    return loss, stats


def _dscores(scores: Tensor, experts: Tensor, gate: Tensor, dgate: Tensor) -> Tensor:
    """`dgate` [B, k] back through the softmax and the choice of columns."""
    dchosen = gate * (dgate - (gate * dgate).sum(1, keepdim=True))
    return torch.zeros_like(scores).index_add(1, experts, dchosen)


def _mixture(
    scores: Tensor, outputs: Tensor, y: Tensor, experts: Tensor, sample_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(gate [B, k], logits [B, C], loss, stats [k, 3])."""
    gate = torch.softmax(scores[:, experts], 1)
    logits = (gate.t().unsqueeze(2) * outputs).sum(0)
    losses = functional.cross_entropy(logits, y, reduction="none")
    hits = (logits.argmax(1) == y).to(losses.dtype)
    routed = functional.one_hot(gate.argmax(1), len(experts)) * (sample_weight > 0).unsqueeze(1)
    seen = torch.stack([torch.ones_like(losses), losses, hits], 1)
    stats = routed.to(losses.dtype).t() @ seen
    return gate, logits, (sample_weight * losses).sum(), stats


REFERENCE: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (
        gemm,
        sum_rows,
        conv2d,
        conv2d_backward_input,
        conv2d_backward_weight,
        sum_channels,
        group_norm,
        group_norm_backward,
        relu,
        relu_backward,
        add,
        mean_pool,
        mean_pool_backward,
        avg_pool2d,
        avg_pool2d_backward,
        max_pool2d,
        max_pool2d_backward,
        stack,
        select,
        mixture_cross_entropy,
        balanced_mixture_cross_entropy,
        mixture_evaluate,
    )
}
