"""The operators' meaning against PyTorch's own layers and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model_export import reference

few = st.integers(1, 3)
pairs = st.tuples(few, few)
seeds = st.integers(0, 1000)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(function: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """By autograd."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(function(*leaves), leaves, dy)


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@given(few, few, few, st.booleans(), st.booleans(), st.booleans(), st.booleans(), seeds)
@settings(max_examples=30)
def test_gemm(
    m: int, n: int, k: int, turn_a: bool, turn_b: bool, bias: bool, relu: bool, seed: int
) -> None:
    a, b, c = random(seed, m, k), random(seed + 1, n, k), random(seed + 2, n)
    expected = functional.linear(a, b, c if bias else None)
    got = reference.gemm(
        a.t() if turn_a else a, b if turn_b else b.t(), c if bias else None, turn_a, turn_b, relu
    )
    assert_close(got, expected.relu() if relu else expected)


@given(few, few, few, st.integers(1, 2), pairs, pairs, pairs, st.booleans(), st.booleans(), seeds)
@settings(max_examples=40)
def test_conv2d(
    n: int,
    ins: int,
    outs: int,
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    bias: bool,
    relu: bool,
    seed: int,
) -> None:
    geometry = (stride, padding, (1, 2), groups)
    x, w = random(seed, n, ins * groups, 6, 7), random(seed, outs * groups, ins, *kernel)
    b = random(seed, outs * groups) if bias else None

    def layer(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        return (
            functional.conv2d(x, w, *b, stride, padding, (1, 2), groups)
            if b
            else (functional.conv2d(x, w, None, stride, padding, (1, 2), groups))
        )

    inputs = (x, w) if b is None else (x, w, b)
    expected = layer(*inputs)
    got = reference.conv2d(x, w, b, *geometry, relu)
    assert_close(got, expected.relu() if relu else expected)
    dy = random(seed, *expected.shape)
    dx, dw, *db = gradients(layer, dy, *inputs)
    assert_close(reference.conv2d_backward_input(dy, w, x.shape, *geometry), dx)
    assert_close(reference.conv2d_backward_weight(dy, x, w.shape, *geometry), dw)
    if db:
        assert_close(reference.sum_channels(dy), db[0])


@pytest.mark.parametrize("affine", [True, False])
@given(few, few, few, pairs, st.booleans(), seeds)
@settings(max_examples=20)
def test_group_norm(
    affine: bool,
    n: int,
    groups: int,
    members: int,
    size: tuple[int, int],
    relu: bool,
    seed: int,
) -> None:
    assume(members * size[0] * size[1] > 1)  # one number has no spread: its gradient is noise
    x = random(seed, n, groups * members, *size)
    weights = [random(seed + i, groups * members) for i in (1, 2)] if affine else []

    def layer(x: Tensor, *weights: Tensor) -> Tensor:
        y = functional.group_norm(x, groups, *weights, eps=1e-3)
        return y.relu() if relu else y

    weight, bias = weights or (None, None)
    y, mean, rstd = reference.group_norm(x, weight, bias, groups, 1e-3, relu)
    assert_close(y, layer(x, *weights))
    dy = random(seed + 3, *x.shape)
    got = reference.group_norm_backward(dy, x, mean, rstd, weight, y if relu else None, groups)
    for value, expected in zip(got, gradients(layer, dy, x, *weights), strict=False):
        assert_close(value, expected)


@given(few, few, st.integers(4, 8), pairs, pairs, seeds)
@settings(max_examples=30)
def test_pools(
    n: int, channels: int, size: int, kernel: tuple[int, int], stride: tuple[int, int], seed: int
) -> None:
    padding = tuple(k // 2 for k in kernel)
    x = random(seed, n, channels, size, size + 1)

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, kernel, stride, padding)

    def largest(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, kernel, stride, padding)

    dy = random(seed, *mean(x).shape)
    assert_close(reference.avg_pool2d(x, kernel, stride, padding), mean(x))
    got = reference.avg_pool2d_backward(dy, x.shape, kernel, stride, padding)
    assert_close(got, gradients(mean, dy, x)[0])
    y, indices = reference.max_pool2d(x, kernel, stride, padding, (1, 1))
    assert_close(y, largest(x))
    assert_close(reference.max_pool2d_backward(dy, indices, x.shape), gradients(largest, dy, x)[0])
    pooled = reference.mean_pool(x)
    assert_close(pooled, functional.adaptive_avg_pool2d(x, 1).flatten(1))
    expected = gradients(lambda x: x.mean((2, 3)), pooled, x)[0]
    assert_close(reference.mean_pool_backward(pooled, x.shape), expected)


def test_small_ones() -> None:
    x, dy = random(1, 3, 4), random(2, 3, 4)
    assert_close(reference.sum_rows(x), gradients(lambda b: x + b, x, torch.zeros(4))[0])
    assert_close(reference.relu(x), functional.relu(x))
    assert_close(reference.relu_backward(dy, reference.relu(x)), gradients(torch.relu, dy, x)[0])
    assert_close(reference.add(x, dy), torch.add(x, dy))
    assert_close(reference.stack([x, dy]), torch.stack([x, dy]))
    assert_close(reference.select(x, 2), x[2])


@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 5), st.data(), seeds)
@settings(max_examples=40)
def test_mixture(batch: int, k: int, classes: int, data: st.DataObject, seed: int) -> None:
    """Sample by sample, in Python's own numbers; gradients by autograd."""
    chosen = data.draw(st.permutations(range(5)))[:k]
    scores, outputs = random(seed, batch, 5), 3 * random(seed + 1, k, batch, classes)
    y = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    weight = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=batch, max_size=batch))
    )

    def loss_of(scores: Tensor, outputs: Tensor) -> Tensor:
        odds = scores[:, chosen].exp()
        gate = odds / odds.sum(1, keepdim=True)
        logits = sum(gate[:, i, None] * outputs[i] for i in range(k))
        losses = -torch.log_softmax(logits, 1)[torch.arange(batch), y]  # type: ignore[call-overload]
        return (losses * weight).sum()

    arguments = (scores, outputs, y, torch.tensor(chosen), weight)
    loss, stats, dscores, doutputs = reference.mixture_cross_entropy(*arguments)
    assert_close(loss, loss_of(scores, outputs))
    for got, expected in zip(
        (dscores, doutputs), gradients(loss_of, torch.tensor(1.0), scores, outputs), strict=True
    ):
        assert_close(got, expected)
    expected = torch.zeros(k, 3)
    for b in range(batch):
        if weight[b] > 0:
            odds = [float(scores[b, e]) for e in chosen]
            gate = torch.softmax(torch.tensor(odds), 0)
            logits = (gate[:, None] * outputs[:, b]).sum(0)
            slot = odds.index(max(odds))
            lost = float(functional.cross_entropy(logits[None], y[b, None]))
            expected[slot] += torch.tensor([1.0, lost, float(int(logits.argmax()) == int(y[b]))])
    assert_close(stats, expected)
    for got, again in zip(reference.mixture_evaluate(*arguments), (loss, stats), strict=True):
        assert torch.equal(got, again)


@given(st.integers(1, 5), st.integers(1, 4), st.data(), seeds)
@settings(max_examples=30)
def test_the_balance_term(batch: int, k: int, data: st.DataObject, seed: int) -> None:
    """By differences of the whole objective, written out, with f as it is at the start."""
    balance, chosen = 0.7, data.draw(st.permutations(range(5)))[:k]
    scores, outputs = random(seed, batch, 5).double(), random(seed + 1, k, batch, 3).double()
    y = torch.randint(3, (batch,), generator=torch.Generator().manual_seed(seed))
    weight = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=batch, max_size=batch)),
        dtype=torch.float64,
    )
    experts, total = torch.tensor(chosen), float(weight.sum())
    first = scores[:, chosen].argmax(1)
    shares = [float(weight[first == i].sum()) / max(total, 1e-9) for i in range(k)]

    def objective(scores: Tensor) -> float:
        loss, _ = reference.mixture_evaluate(scores, outputs, y, experts, weight)
        gate = torch.softmax(scores[:, chosen], 1)
        means = [float((weight * gate[:, i]).sum()) for i in range(k)]
        return float(loss) + balance * k * sum(f * p for f, p in zip(shares, means, strict=True))

    plain = reference.mixture_cross_entropy(scores, outputs, y, experts, weight)
    got = reference.balanced_mixture_cross_entropy(scores, outputs, y, experts, weight, balance)
    for i in (0, 1, 3):
        assert torch.equal(got[i], plain[i])
    for place in range(scores.numel()):
        step = torch.zeros(scores.numel(), dtype=torch.float64)
        step[place] = 1e-5
        step = step.reshape(scores.shape)
        slope = (objective(scores + step) - objective(scores - step)) / 2e-5
        assert float(got[2].flatten()[place]) == pytest.approx(slope, abs=1e-7)
    assert k > 1 or torch.equal(got[2], plain[2])


def test_equal_gates_and_logits_count_for_the_first() -> None:
    one = torch.ones(1)
    stats = reference.mixture_evaluate(
        torch.zeros(1, 3), torch.zeros(2, 1, 4), torch.tensor([0]), torch.tensor([2, 0]), one
    )[1]
    assert stats[:, 0].tolist() == [1, 0] and stats[:, 2].tolist() == [1, 0]
