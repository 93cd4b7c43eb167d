"""Pools against PyTorch, values and gradients, on every instruction set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from edge_runtime.native import _native

Array = NDArray[np.float32]
Pair = tuple[int, int]

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 17), st.integers(1, 17))


class Pool(NamedTuple):
    """A pool's windows; (height, width) each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    kernel = draw(pairs)
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    return Pool(kernel, draw(pairs), (padding[0], padding[1]), draw(pairs))


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def fits(shape: tuple[int, ...], pool: Pool, dilation: Pair) -> bool:
    """Whether there is a window, and none lies outside of the image altogether."""
    return all(
        size + 2 * pad > step * (kernel - 1) and pad + size > step * (kernel - 1)
        for size, kernel, pad, step in zip(
            shape[2:], pool.kernel, pool.padding, dilation, strict=True
        )
    )


def pulled_back(y: torch.Tensor, leaf: torch.Tensor, seed: int) -> tuple[Array, Array]:
    """A random dy, and the gradient that it gives `leaf` through `y`."""
    dy = normal(seed, *y.shape)
    y.backward(torch.from_numpy(dy).to(y.dtype))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return dy, leaf.grad.numpy()


@given(shape=shapes, seed=seeds)
def test_mean_pool_equals_torch(
    kernels: _native.Kernels, shape: tuple[int, ...], seed: int
) -> None:
    x = normal(seed, *shape)
    leaf = torch.from_numpy(x).double().requires_grad_()
    expected = leaf.mean((2, 3))
    dy, gradient = pulled_back(expected, leaf, seed + 1)
    np.testing.assert_allclose(
        kernels.mean_pool(x), expected.detach().numpy(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(kernels.mean_pool_backward(dy, shape), gradient, rtol=1e-6)


@given(shape=shapes, pool=pools(), seed=seeds)
def test_avg_pool_equals_torch(
    kernels: _native.Kernels, shape: tuple[int, ...], pool: Pool, seed: int
) -> None:
    assume(fits(shape, pool, (1, 1)))
    x = normal(seed, *shape)
    leaf = torch.from_numpy(x).double().requires_grad_()
    expected = functional.avg_pool2d(leaf, pool.kernel, pool.stride, pool.padding)
    dy, gradient = pulled_back(expected, leaf, seed + 1)
    y = kernels.avg_pool2d(x, pool.kernel, pool.stride, pool.padding)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    dx = kernels.avg_pool2d_backward(dy, shape, pool.kernel, pool.stride, pool.padding)
    np.testing.assert_allclose(dx, gradient, rtol=1e-5, atol=1e-6)


@given(shape=shapes, pool=pools(), seed=seeds, ties=st.booleans())
def test_max_pool_equals_torch(
    kernels: _native.Kernels, shape: tuple[int, ...], pool: Pool, seed: int, ties: bool
) -> None:
    assume(fits(shape, pool, pool.dilation))
    x = normal(seed, *shape)
    x = np.round(x) if ties else x
    leaf = torch.from_numpy(x).requires_grad_()
    expected, wanted = functional.max_pool2d(leaf, *pool, return_indices=True)
    dy, gradient = pulled_back(expected, leaf, seed + 1)
    y, indices = kernels.max_pool2d(x, *pool)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(indices, wanted.numpy())
    dx = kernels.max_pool2d_backward(dy, indices, shape)
    np.testing.assert_allclose(dx, gradient, rtol=1e-5, atol=1e-6)


def test_max_pool_keeps_nan_and_infinity(kernels: _native.Kernels) -> None:
    x = normal(3, 2, 2, 6, 6)
    x[0, 0, 1, 1] = np.nan
    x[0, 1, :, :] = -np.inf
    x[1, 0, 2, 2] = np.inf
    expected, wanted = functional.max_pool2d(torch.from_numpy(x), 3, 1, 1, return_indices=True)
    y, indices = kernels.max_pool2d(x, (3, 3), (1, 1), (1, 1))
    assert np.isnan(y).sum() == 9
    np.testing.assert_array_equal(y, expected.numpy())
    np.testing.assert_array_equal(indices, wanted.numpy())


def test_a_window_of_padding_only_takes_no_gradient(kernels: _native.Kernels) -> None:
    y, indices = kernels.max_pool2d(
        np.ones((1, 1, 3, 1), np.float32), (2, 1), (1, 1), (1, 0), (4, 1)
    )
    assert y.item() == -np.inf and indices.item() == -1
    dx = kernels.max_pool2d_backward(np.ones_like(y), indices, (1, 1, 3, 1))
    np.testing.assert_array_equal(dx, np.zeros((1, 1, 3, 1)))


@pytest.mark.parametrize("index", [-1, 4, 2**62, -(2**62)])
def test_indices_outside_of_the_plane_are_harmless(kernels: _native.Kernels, index: int) -> None:
    dy = np.ones((1, 2, 1, 1), np.float32)
    indices = np.array([index, 3]).reshape(dy.shape)
    dx = kernels.max_pool2d_backward(dy, indices, (1, 2, 2, 2))
    np.testing.assert_array_equal(dx.ravel(), [0, 0, 0, 0, 0, 0, 0, 1])


def test_no_images(kernels: _native.Kernels) -> None:
    x = np.zeros((0, 3, 4, 4), np.float32)
    assert kernels.mean_pool(x).shape == (0, 3)
    assert kernels.avg_pool2d(x, (2, 2), (2, 2)).shape == (0, 3, 2, 2)
    assert kernels.max_pool2d(x, (2, 2), (2, 2))[1].shape == (0, 3, 2, 2)


def test_arguments_are_checked(kernels: _native.Kernels) -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"larger than the padded input: input \[1, 1, 4, 4\]"):
        kernels.avg_pool2d(x, (5, 1), (1, 1))
    with pytest.raises(ValueError, match="padding must be at most half of its kernel"):
        kernels.max_pool2d(x, (2, 2), (1, 1), (2, 2))
    with pytest.raises(ValueError, match="stride and dilation must be 1 to 65536"):
        kernels.max_pool2d(x, (2, 2), (0, 1))
    with pytest.raises(ValueError, match="a pool's kernel must be 1 to 65536"):
        kernels.avg_pool2d(x, (70000, 1), (1, 1), (35000, 0))
    with pytest.raises(ValueError, match=r"dy must have the sizes \[1, 1, 2, 2\]"):
        kernels.avg_pool2d_backward(x, (1, 1, 4, 4), (2, 2), (2, 2))
    with pytest.raises(ValueError, match="no array has the sizes"):
        kernels.mean_pool_backward(x[0, 0], (4, 4, 2**62, 2**62))
