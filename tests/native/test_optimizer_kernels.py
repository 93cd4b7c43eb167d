"""SGD and AdamW against torch.optim, and the sums of clipping, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.native import _native

Array = NDArray[np.float32]

STEPS = 7

sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


def start(seed: int, size: int) -> tuple[Array, list[Array], torch.nn.Parameter]:
    """Weights, a gradient for each step, and the weights as torch's parameter."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(size, dtype=np.float32)
    gradients = [rng.standard_normal(size, dtype=np.float32) for _ in range(STEPS)]
    return weight, gradients, torch.nn.Parameter(torch.from_numpy(weight).double())


def step(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, gradient: Array) -> None:
    weight.grad = torch.from_numpy(gradient).double()
    optimizer.step()


def assert_near(weight: Array, expected: torch.nn.Parameter) -> None:
    np.testing.assert_allclose(weight, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


@given(
    size=sizes,
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    decay=st.sampled_from([0.0, 0.01, 0.1]),
    seed=seeds,
)
def test_sgd_equals_torch(
    kernels: _native.Kernels, size: int, momentum: float, decay: float, seed: int
) -> None:
    weight, gradients, expected = start(seed, size)
    optimizer = torch.optim.SGD([expected], lr=0.05, momentum=momentum, weight_decay=decay)
    velocity = np.zeros(size, np.float32) if momentum else None
    for gradient in gradients:
        step(optimizer, expected, gradient)
        kernels.sgd(weight, gradient, velocity, 0.05, momentum, decay)
        assert_near(weight, expected)
    if velocity is not None:
        wanted = optimizer.state[expected]["momentum_buffer"].numpy()
        np.testing.assert_allclose(velocity, wanted, rtol=1e-5, atol=1e-5)


@given(
    size=sizes,
    betas=st.sampled_from([(0.9, 0.999), (0.8, 0.95), (0.0, 0.5)]),
    epsilon=st.sampled_from([1e-8, 1e-3]),
    decay=st.sampled_from([0.0, 0.01, 0.3]),
    seed=seeds,
)
def test_adamw_equals_torch(
    kernels: _native.Kernels,
    size: int,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
    seed: int,
) -> None:
    weight, gradients, expected = start(seed, size)
    optimizer = torch.optim.AdamW([expected], lr=0.01, betas=betas, eps=epsilon, weight_decay=decay)
    m, v = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for t, gradient in enumerate(gradients, 1):
        step(optimizer, expected, gradient)
        kernels.adamw(weight, gradient, m, v, t, 0.01, *betas, epsilon, decay)
        assert_near(weight, expected)


def test_adamw_stands_still_without_gradients(kernels: _native.Kernels) -> None:
    weight, nothing = np.ones(5, np.float32), np.zeros(5, np.float32)
    kernels.adamw(weight, nothing, nothing.copy(), nothing.copy(), 1, 0.1, weight_decay=0.0)
    np.testing.assert_array_equal(weight, np.ones(5))


@given(size=st.integers(0, 3000), seed=seeds)
def test_sum_of_squares(kernels: _native.Kernels, size: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    expected = float((x.astype(np.float64) ** 2).sum())
    assert kernels.sum_of_squares(x) == pytest.approx(expected, rel=1e-12)


def test_squares_that_are_no_floats(kernels: _native.Kernels) -> None:
    for value in (1e20, -3e38, 1e-30):
        x = np.full(100, value, np.float32)
        expected = float((x.astype(np.float64) ** 2).sum())
        assert kernels.sum_of_squares(x) == pytest.approx(expected, rel=1e-12)


@given(size=st.integers(0, 600), place=st.integers(0, 599))
def test_all_finite(kernels: _native.Kernels, size: int, place: int) -> None:
    x = np.full(size, np.finfo(np.float32).max)
    assert kernels.all_finite(x) is True
    for special in (np.nan, np.inf, -np.inf):
        if place < size:
            changed = x.copy()
            changed[place] = special
            assert kernels.all_finite(changed) is False


@given(size=st.integers(0, 70), seed=seeds)
def test_scale(kernels: _native.Kernels, size: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    expected = x * np.float32(0.3)
    kernels.scale(x, 0.3)
    np.testing.assert_array_equal(x, expected)


def test_arguments_are_checked(kernels: _native.Kernels) -> None:
    weight = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"gradient must have the sizes \[4\], not \[3\]"):
        kernels.sgd(weight, weight[:3].copy(), None, 0.1)
    with pytest.raises(ValueError, match="momentum needs a velocity"):
        kernels.sgd(weight, weight, None, 0.1, 0.9)
    with pytest.raises(ValueError, match=r"velocity must have the sizes \[4\], not \[5\]"):
        kernels.sgd(weight, weight, np.zeros(5, np.float32), 0.1, 0.9)
    with pytest.raises(ValueError, match="step must be 1 or more, not 0"):
        kernels.adamw(weight, weight, weight.copy(), weight.copy(), 0, 0.1)
    frozen = weight.copy()
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        kernels.scale(frozen, 2.0)
