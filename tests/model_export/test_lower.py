"""Layers and their gradients become our operators, whatever their shapes; other calls stay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from model_export.passes.lower import lower
from model_export.passes.tidy import tidy
from tests.model_export.traced import Function, Pass, operators, rewritten, with_gradients

PASSES: list[Pass] = [tidy, lower, tidy]
aten = torch.ops.aten
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
W = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
BIAS = torch.arange(5.0)
IMAGES = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(3))
few = st.integers(1, 3)


def random(*shape: int) -> Tensor:
    """The same values for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


@pytest.mark.parametrize(
    ("function", "inputs", "left"),
    [
        (functional.linear, (X, W, BIAS), {"gemm": 3, "sum_rows": 1}),
        (functional.linear, (X, W), {"gemm": 3}),
        (lambda x, w: x @ w, (X, W.T.contiguous()), {"gemm": 3}),
        (lambda x, w: x.t() @ w, (X.T.contiguous(), W.T.contiguous()), {"gemm": 3}),
        (lambda a, b: a + b, (X, X), {"add": 1}),
        (lambda a: torch.stack([a, 2 * a]), (X,), {"stack": 1, "select": 2, "add": 1}),
        (lambda a: torch.stack([a]), (X,), {}),
        (lambda a: a[0] + a[2], (X,), {"select": 2, "add": 2}),
        (torch.relu, (X,), {"relu": 1, "relu_backward": 1}),
        (lambda x: x.mean((2, 3)), (IMAGES,), {"mean_pool": 1, "mean_pool_backward": 1}),
        (lambda x: x.mean((-1, 2), True), (IMAGES,), {"mean_pool": 1, "mean_pool_backward": 1}),
        (lambda x: x.mean(2), (IMAGES[:, :, 0],), {"mean_pool": 1, "mean_pool_backward": 1}),
        (lambda x: x.sum(0), (X,), {"sum_rows": 1}),
        (lambda x: x.sum((0, 2, 3)), (IMAGES,), {"sum_channels": 1}),
    ],
)
def test_simple_layers(
    function: Function, inputs: tuple[Tensor, ...], left: dict[str, int]
) -> None:
    graph = rewritten(with_gradients(function), *inputs, by=PASSES)
    ours = {name[8:]: n for name, n in operators(graph).items() if name.startswith("flexmoe.")}
    assert ours == left
    assert not operators(graph)["aten.permute"]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: x.double() @ x.double().t(), (X,)),
        (lambda x: torch.relu(x.long()), (X,)),
        (lambda a, b: a + b, (X, X[:1])),
        (lambda a: a + 1, (X,)),
        (lambda a, b: torch.add(a, b, alpha=2), (X, X)),
        (lambda a, b: a + b.double(), (X, X)),
        (lambda a, b: torch.stack([a, b], 1), (X, X)),
        (lambda a, b: torch.stack([a, b.double()]), (X, X)),
        (lambda a: a[:, 1], (X,)),
        (lambda x: x.mean(1), (X,)),
        (lambda x: x.mean((2, 3), dtype=torch.float64), (IMAGES,)),
        (lambda x: x.sum(1), (X,)),
        (lambda x: x.sum(), (X,)),
        (lambda b, x, w: torch.addmm(b, x, w.t(), beta=2), (BIAS, X, W)),
        (lambda b, x, w: torch.addmm(b, x, w.t()), (torch.ones(3, 5), X, W)),
        (lambda b, x, w: torch.addmm(b, x, w.t()), (torch.ones(1), X, W)),
        (lambda x: functional.avg_pool2d(x, 2, ceil_mode=True), (IMAGES,)),
        (lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), (IMAGES,)),
        (lambda x: functional.avg_pool2d(x, 2, divisor_override=3), (IMAGES,)),
        (lambda x: functional.max_pool2d(x, 2, ceil_mode=True), (IMAGES,)),
        (lambda x: functional.adaptive_avg_pool2d(x, 4), (IMAGES,)),
        (lambda x, w: functional.conv_transpose2d(x, w), (IMAGES, torch.ones(4, 2, 2, 2))),
        (lambda x, w: functional.conv3d(x[None], w), (IMAGES, torch.ones(1, 2, 2, 2, 2))),
        (lambda g, x: aten.threshold_backward(g, x, 1.0), (X, X)),
        (torch.sigmoid, (X,)),
    ],
)
def test_what_we_lack_stays(function: Function, inputs: tuple[Tensor, ...]) -> None:
    graph = rewritten(function, *inputs, by=PASSES)
    left = operators(graph)
    assert left.total() > 0 and all(name.startswith("aten.") for name in left)


@given(
    n=few,
    groups=st.integers(1, 2),
    ins=few,
    outs=few,
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(few, few),
    stride=st.tuples(few, few),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
)
@settings(max_examples=40)
def test_convolutions(
    n: int,
    groups: int,
    ins: int,
    outs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    bias: bool,
) -> None:
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(s + 2 * p >= r for s, p, r in zip(size, padding, reach, strict=True)))

    def layer(*inputs: Tensor) -> Tensor:
        return functional.conv2d(
            *inputs, stride=stride, padding=padding, dilation=dilation, groups=groups
        )

    inputs = [random(n, ins * groups, *size), random(outs * groups, ins, *kernel)]
    if bias:
        inputs.append(random(outs * groups))
    left = operators(rewritten(with_gradients(layer), *inputs, by=PASSES))
    expected = {"conv2d": 1, "conv2d_backward_weight": 1, "conv2d_backward_input": 1}
    expected |= {"sum_channels": 1} if bias else {}
    assert left.total() - left["aten.arange"] - left["aten.cos"] - left["aten.reshape"] == len(
        expected
    )
    assert all(left[f"flexmoe.{name}"] == count for name, count in expected.items())


@pytest.mark.parametrize(
    ("layer", "inputs", "kinds"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), IMAGES[:, :, 0], "conv2d"),
        (nn.GroupNorm(2, 4), IMAGES, "group_norm"),
        (nn.GroupNorm(4, 4, affine=False), IMAGES, "group_norm"),
        (nn.GroupNorm(1, 4), IMAGES[:, :, 0], "group_norm"),
        (nn.GroupNorm(2, 4), X, "group_norm"),
        (nn.AvgPool2d(2), IMAGES, "avg_pool2d"),
        (nn.AvgPool2d((3, 2), (2, 1), (1, 0)), IMAGES, "avg_pool2d"),
        (nn.AdaptiveAvgPool2d((3, 1)), IMAGES, "avg_pool2d"),
        (nn.AdaptiveAvgPool2d(1), IMAGES, "mean_pool"),
        (nn.AvgPool1d(2), IMAGES[:, :, 0], "avg_pool2d"),
        (nn.MaxPool2d(2), IMAGES, "max_pool2d"),
        (nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2)), IMAGES, "max_pool2d"),
        (nn.MaxPool1d(2), IMAGES[:, :, 0], "max_pool2d"),
    ],
)
def test_layers_and_their_gradients(layer: nn.Module, inputs: Tensor, kinds: str) -> None:
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        result: Tensor = torch.func.functional_call(layer, named, (x,))
        return result

    weights = [value.detach() + 0.5 for value in layer.parameters()]
    left = operators(rewritten(with_gradients(function), inputs, *weights, by=PASSES))
    ours = [name for name in left if name.startswith("flexmoe.")]
    assert f"flexmoe.{kinds}" in ours
    assert all(name.startswith(f"flexmoe.{kinds}") for name in ours if "sum" not in name)
    assert left.keys() - set(ours) <= {"aten.arange", "aten.cos", "aten.reshape"}


def test_the_gradient_of_other_max_pools_is_ours_too() -> None:
    """The wheel's own is wrong, and where the largest values lay says all."""
    layer = with_gradients(lambda x: functional.max_pool2d(x, 4, ceil_mode=True))
    left = operators(rewritten(layer, IMAGES, by=PASSES))
    assert left["flexmoe.max_pool2d_backward"] == left["aten.max_pool2d_with_indices"] == 1
