"""Sums and element by element kernels against numpy and PyTorch, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.native import _native

Array = NDArray[np.float32]

shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple) | st.tuples(
    st.integers(1, 200)
)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_sums(actual: Array, x: Array, axes: tuple[int, ...]) -> None:
    """The sums equal double precision's, within 1e-5 of the terms' size."""
    expected = x.astype(np.float64).sum(axes)
    allowed = 1e-5 * np.abs(x).astype(np.float64).sum(axes) + 1e-30
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= allowed)


@given(shape=shapes, seed=seeds)
def test_relu_and_its_gradient_equal_torch(
    kernels: _native.Kernels, shape: tuple[int, ...], seed: int
) -> None:
    x, dy = normal(seed, *shape), normal(seed + 1, *shape)
    leaf = torch.from_numpy(x).requires_grad_()
    y = torch.relu(leaf)
    y.backward(torch.from_numpy(dy))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    np.testing.assert_array_equal(kernels.relu(x), y.detach().numpy())
    np.testing.assert_array_equal(kernels.relu_backward(dy, y.detach().numpy()), leaf.grad.numpy())


@pytest.mark.parametrize("size", [1, 3, 16, 37])
def test_relu_keeps_nan_and_infinity(kernels: _native.Kernels, size: int) -> None:
    for special in (np.nan, np.inf, -np.inf, -0.0):
        x = np.full(size, special, np.float32)
        np.testing.assert_array_equal(kernels.relu(x), torch.relu(torch.from_numpy(x)).numpy())


def test_relu_gradient_is_zero_where_y_is_not_positive(kernels: _native.Kernels) -> None:
    y = np.array([0.0, -0.0, np.nan, 1e-45, 1.0] * 7, np.float32)
    dy = np.full(y.shape, np.nan, np.float32)
    np.testing.assert_array_equal(kernels.relu_backward(dy, y), np.where(y > 0, dy, 0))


@given(shape=shapes, seed=seeds)
def test_add(kernels: _native.Kernels, shape: tuple[int, ...], seed: int) -> None:
    a, b = normal(seed, *shape), normal(seed + 1, *shape)
    np.testing.assert_array_equal(kernels.add(a, b), a + b)


@given(rows=st.integers(0, 200), columns=st.integers(1, 150), seed=seeds)
def test_sum_rows(kernels: _native.Kernels, rows: int, columns: int, seed: int) -> None:
    x = normal(seed, rows, columns)
    assert_sums(kernels.sum_rows(x), x, (0,))


@given(
    batch=st.integers(0, 70),
    channels=st.integers(1, 9),
    plane=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    seed=seeds,
)
def test_sum_channels(
    kernels: _native.Kernels, batch: int, channels: int, plane: tuple[int, int], seed: int
) -> None:
    x = normal(seed, batch, channels, *plane)
    assert_sums(kernels.sum_channels(x), x, (0, 2, 3))


def test_long_sums_stay_accurate(kernels: _native.Kernels) -> None:
    ones = np.float32(1.1)
    assert kernels.sum_rows(np.full((1_000_003, 1), ones)) == pytest.approx(1.1 * 1_000_003, 1e-5)
    rows = np.full((100_003, 37), ones)
    np.testing.assert_allclose(kernels.sum_rows(rows), 1.1 * 100_003, rtol=1e-5)
    for shape in ((2, 1, 1003, 1009), (50_000, 1, 3, 3)):
        total = float(ones) * np.prod(shape)
        np.testing.assert_allclose(kernels.sum_channels(np.full(shape, ones)), total, rtol=1e-6)


def test_arguments_are_checked(kernels: _native.Kernels) -> None:
    x = np.zeros((4, 6), np.float32)
    with pytest.raises(ValueError, match="x must be a numpy array of float32"):
        kernels.relu(x.astype(np.float64))
    with pytest.raises(ValueError, match="x must be C-contiguous"):
        kernels.relu(x[:, ::2])
    with pytest.raises(ValueError, match=r"b must have the sizes \[4, 6\], not \[6, 4\]"):
        kernels.add(x, x.reshape(6, 4))
    with pytest.raises(ValueError, match=r"x must have 2 dimensions, not the sizes \[4\]"):
        kernels.sum_rows(x[:, 0].copy())
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        kernels.sum_channels(x)


def test_instruction_sets() -> None:
    assert "baseline" in _native.isas() or "neon" in _native.isas()
    assert all(_native.kernels(isa).isa == isa for isa in _native.isas())
    assert _native.kernels().vector_floats in (4, 8, 16)
    with pytest.raises(ValueError, match=_native.isas()[0]):
        _native.kernels("mmx")
