"""The mixture's loss, statistics and gradients against PyTorch, on every instruction set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from edge_runtime.native import _native


class Inputs(NamedTuple):
    """scores [B, E], outputs [k, B, C], y [B], experts [k], sample_weight [B]."""

    scores: NDArray[np.float32]
    outputs: NDArray[np.float32]
    y: NDArray[np.int64]
    experts: NDArray[np.int64]
    sample_weight: NDArray[np.float32]


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    batch, classes = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    experts = draw(st.integers(1, 9))
    chosen = draw(st.permutations(range(experts)))[: draw(st.integers(1, experts))]
    scale = draw(st.sampled_from([0.0, 1.0, 30.0]))  # 0: every value is the first of equals
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.random(batch, dtype=np.float32) * rng.integers(0, 2, batch).astype(np.float32)
    return Inputs(
        np.float32(scale) * rng.standard_normal((batch, experts), dtype=np.float32),
        np.float32(scale) * rng.standard_normal((len(chosen), batch, classes), dtype=np.float32),
        rng.integers(0, classes, batch),
        np.array(chosen, np.int64),
        weight,
    )


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


def mixture(
    scores: Tensor, outputs: Tensor, y: Tensor, experts: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss and the statistics as docs/native.md defines them."""
    gate = torch.softmax(scores[:, experts], dim=1)
    logits = torch.einsum("bk,kbc->bc", gate, outputs)
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    routed = torch.nn.functional.one_hot(gate.argmax(1), len(experts)) * (weight > 0).unsqueeze(1)
    hits = (logits.argmax(1) == y).to(losses.dtype)
    seen = torch.stack([torch.ones_like(losses), losses, hits], dim=1)
    return (weight * losses).sum(), (routed.to(losses.dtype).T @ seen).detach()


def balance_term(scores: Tensor, experts: Tensor, weight: Tensor) -> Tensor:
    """Switch Transformers' auxiliary loss of the batch, times the batch's weight W."""
    gate = torch.softmax(scores[:, experts], dim=1)
    k, total = len(experts), weight.sum()
    if total == 0:
        return torch.zeros(())
    f = torch.bincount(gate.argmax(1), weights=weight, minlength=k) / total
    p = (weight.unsqueeze(1) * gate).sum(0) / total
    return total * k * (f.detach() * p).sum()


def assert_near(actual: NDArray[np.float32], expected: Tensor) -> None:
    wanted = expected.detach().numpy()
    assert actual.dtype == np.float32 and actual.shape == wanted.shape
    np.testing.assert_allclose(
        actual, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()) + 1e-9
    )


def doubles(case: Inputs) -> tuple[Tensor, ...]:
    scores, outputs, weight = (
        torch.from_numpy(a).double() for a in (case.scores, case.outputs, case.sample_weight)
    )
    return (
        scores.requires_grad_(),
        outputs.requires_grad_(),
        torch.from_numpy(case.y),
        torch.from_numpy(case.experts),
        weight,
    )


@given(case=inputs())
def test_values_and_gradients_equal_torch(kernels: _native.Kernels, case: Inputs) -> None:
    tensors = doubles(case)
    expected, wanted = mixture(*tensors)
    expected.backward()  # type: ignore[no-untyped-call]
    loss, stats, dscores, doutputs = kernels.mixture_cross_entropy(*case)
    assert_near(loss, expected)
    assert_near(stats, wanted)
    for gradient, tensor in ((dscores, tensors[0]), (doutputs, tensors[1])):
        assert tensor.grad is not None
        scale = float(np.abs(case.outputs).max()) + 1.0  # of the terms that dscores subtracts
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=1e-6 * scale)
    others = np.setdiff1d(np.arange(case.scores.shape[1]), case.experts)
    np.testing.assert_array_equal(dscores[:, others], 0)


@given(case=inputs(), balance=st.sampled_from([0.01, 1.0, 50.0]))
def test_the_balance_term_is_in_the_gradient_of_the_scores_alone(
    kernels: _native.Kernels, case: Inputs, balance: float
) -> None:
    scores, outputs, y, experts, weight = doubles(case)
    loss, _ = mixture(scores, outputs, y, experts, weight)
    (loss + balance * balance_term(scores, experts, weight)).backward()  # type: ignore[no-untyped-call]
    got = kernels.mixture_cross_entropy(*case, balance=balance)
    plain = kernels.mixture_cross_entropy(*case)
    for i in (0, 1, 3):
        np.testing.assert_array_equal(got[i], plain[i])
    assert scores.grad is not None
    scale = float(np.abs(case.outputs).max()) + balance * len(case.experts) + 1.0
    np.testing.assert_allclose(got[2], scores.grad.numpy(), rtol=1e-5, atol=1e-6 * scale)
    if len(case.experts) == 1 or not case.sample_weight.any():
        np.testing.assert_array_equal(got[2], plain[2])


def test_the_balance_term_draws_to_the_expert_that_is_not_used(kernels: _native.Kernels) -> None:
    """By hand: outputs of zero have no gradient, f = (1, 0), and d p_0 = p_0 p_1 (ds_0 - ds_1)."""
    case = case_of([[2.0, 0.0], [1.0, 0.0]], [[[0.0, 0.0]] * 2] * 2, [0, 1])
    case.sample_weight[:] = 0.25, 0.5
    dscores = kernels.mixture_cross_entropy(*case, balance=0.1)[2]
    slope = 0.1 * 2 * case.sample_weight / (2 + 2 * np.cosh([2.0, 1.0]))
    np.testing.assert_allclose(dscores, np.stack([slope, -slope], 1), rtol=1e-5)


@given(case=inputs())
def test_evaluate_gives_the_same_loss_and_stats(kernels: _native.Kernels, case: Inputs) -> None:
    loss, stats = kernels.mixture_evaluate(*case)
    wanted = kernels.mixture_cross_entropy(*case)
    np.testing.assert_array_equal(loss, wanted[0])
    np.testing.assert_array_equal(stats, wanted[1])


def case_of(scores: list[list[float]], outputs: list[list[list[float]]], y: list[int]) -> Inputs:
    return Inputs(
        np.array(scores, np.float32),
        np.array(outputs, np.float32),
        np.array(y),
        np.arange(len(outputs)),
        np.ones(len(y), np.float32),
    )


def test_the_first_of_equal_gates_and_logits_counts(kernels: _native.Kernels) -> None:
    case = case_of([[1.0, 1.0], [0.0, 2.0]], [[[5.0, 5.0], [1.0, 1.0]]] * 2, [0, 1])
    _, stats = kernels.mixture_evaluate(*case)
    np.testing.assert_allclose(stats, [[1, np.log(2), 1], [1, np.log(2), 0]], rtol=1e-6)


def test_samples_of_weight_zero_count_nowhere(kernels: _native.Kernels) -> None:
    case = case_of([[0.0], [0.0]], [[[3.0, 1.0], [2.0, 9.0]]], [0, 1])
    case.sample_weight[1] = 0
    loss, stats, dscores, doutputs = kernels.mixture_cross_entropy(*case)
    alone = kernels.mixture_evaluate(*case_of([[0.0]], [[[3.0, 1.0]]], [0]))
    np.testing.assert_array_equal(loss, alone[0])
    np.testing.assert_array_equal(stats, alone[1])
    np.testing.assert_array_equal(dscores[1], 0)
    np.testing.assert_array_equal(doutputs[:, 1], 0)


def test_huge_values_do_not_overflow(kernels: _native.Kernels) -> None:
    case = case_of([[3e38, -3e38]], [[[1e30, -1e30]], [[0.0, 0.0]]], [0])
    loss, stats, dscores, doutputs = kernels.mixture_cross_entropy(*case)
    assert loss == 0 and stats.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert np.isfinite(dscores).all() and np.isfinite(doutputs).all()


def test_a_confident_loss_keeps_its_digits(kernels: _native.Kernels) -> None:
    loss, _ = kernels.mixture_evaluate(*case_of([[0.0]], [[[20.0, 0.0]]], [0]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-20.0)), rtol=1e-5)


@pytest.mark.parametrize("where", ["scores", "outputs", "sample_weight"])
def test_nan_reaches_the_loss(kernels: _native.Kernels, where: str) -> None:
    case = case_of([[0.0, 1.0]], [[[1.0, 2.0]], [[3.0, 4.0]]], [1])
    getattr(case, where).flat[0] = np.nan
    loss, _, dscores, _ = kernels.mixture_cross_entropy(*case)
    assert np.isnan(loss) and np.isnan(dscores).any()


def test_no_samples(kernels: _native.Kernels) -> None:
    case = Inputs(
        np.zeros((0, 3), np.float32),
        np.zeros((2, 0, 4), np.float32),
        np.zeros(0, np.int64),
        np.array([2, 0]),
        np.zeros(0, np.float32),
    )
    loss, stats, dscores, doutputs = kernels.mixture_cross_entropy(*case)
    assert loss == 0 and not stats.any()
    assert dscores.shape == (0, 3) and doutputs.shape == (2, 0, 4)


def test_arguments_are_checked(kernels: _native.Kernels) -> None:
    case = case_of([[0.0, 1.0]], [[[1.0, 2.0]], [[3.0, 4.0]]], [1])
    with pytest.raises(ValueError, match="y must be 0 to 1, not 2"):
        kernels.mixture_evaluate(*case._replace(y=np.array([2])))
    with pytest.raises(ValueError, match="experts must be 0 to 1, not -1"):
        kernels.mixture_evaluate(*case._replace(experts=np.array([0, -1])))
    with pytest.raises(ValueError, match="y must be a numpy array of int64"):
        kernels.mixture_evaluate(*case._replace(y=np.array([1], np.int32)))
    for balance in (np.nan, np.inf, -0.1):
        with pytest.raises(ValueError, match="balance must be a finite number of at least 0, not"):
            kernels.mixture_cross_entropy(*case, balance=balance)
    with pytest.raises(ValueError, match=r"sample_weight must have the sizes \[1\], not \[2\]"):
        kernels.mixture_evaluate(*case._replace(sample_weight=np.ones(2, np.float32)))
