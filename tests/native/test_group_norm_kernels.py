"""GroupNorm with its fused ReLU against PyTorch in double precision, on every instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.native import _native

Array = NDArray[np.float32]

EPSILON = 1e-5


class Case(NamedTuple):
    """One call: random arrays of these sizes."""

    batch: int
    groups: int
    channels_per_group: int
    plane: tuple[int, int]
    weighted: bool
    relu: bool
    offset: float
    seed: int

    def arrays(self) -> tuple[Array, Array, Array | None, Array | None]:
        """x, dy [batch, channels, *plane]; weight, bias [channels] or None."""
        rng = np.random.default_rng(self.seed)
        channels = self.groups * self.channels_per_group
        shape = (self.batch, channels, *self.plane)
        x, dy = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        x += np.float32(self.offset)
        if not self.weighted:
            return x, dy, None, None
        weight, bias = (rng.standard_normal(channels, dtype=np.float32) for _ in range(2))
        return x, dy, weight, bias


cases = st.builds(
    Case,
    batch=st.integers(1, 4),
    groups=st.integers(1, 4),
    channels_per_group=st.integers(1, 5),
    plane=st.sampled_from([(1, 1), (4, 4), (8, 8), (16, 16), (1, 16), (33, 33)])
    | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    weighted=st.booleans(),
    relu=st.booleans(),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


def leaf(array: Array | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array).double().requires_grad_()


def assert_near(actual: Array, expected: torch.Tensor, scale: float | torch.Tensor) -> None:
    """Within 1e-5 of the expected value or of `scale`, the size of the terms that it sums."""
    assert actual.dtype == np.float32 and actual.shape == tuple(expected.shape)
    expected = expected.detach()
    allowed = 1e-5 * torch.maximum(expected.abs(), torch.as_tensor(scale).double()) + 1e-30
    assert torch.all((torch.from_numpy(actual).double() - expected).abs() <= allowed)


@given(case=cases)
def test_values_and_gradients_equal_torch(kernels: _native.Kernels, case: Case) -> None:
    x, dy, weight, bias = case.arrays()
    tx, tweight, tbias = leaf(x), leaf(weight), leaf(bias)
    assert tx is not None
    linear = torch.group_norm(tx, case.groups, tweight, tbias, EPSILON)
    expected = torch.relu(linear) if case.relu else linear
    grouped = tx.detach().reshape(case.batch, case.groups, -1)
    wanted_mean = grouped.mean(2)
    wanted_rstd = (grouped.var(2, unbiased=False) + EPSILON).rsqrt()

    y, mean, rstd = kernels.group_norm(x, weight, bias, case.groups, EPSILON, case.relu)
    # The rounding of x - mean grows with |mean| and, in groups of few values, with rstd.
    factor = float(wanted_rstd.max()) * (1.0 if weight is None else float(np.abs(weight).max()))
    condition = 1.0 + (1.0 + case.offset) * factor / 50
    assert_near(y, expected, condition)
    assert_near(mean, wanted_mean, 1.0)
    assert_near(rstd, wanted_rstd, 0.0)

    # Where rounding may move y across 0, so that the two masks differ, no gradient comes in.
    sure = np.abs(linear.detach().numpy()) > 1e-5 * condition
    dy = np.where(sure, dy, np.float32(0))
    expected.backward(torch.from_numpy(dy).double())  # type: ignore[no-untyped-call]
    mask = y if case.relu else None
    dx, dweight, dbias = kernels.group_norm_backward(dy, x, mean, rstd, weight, mask, case.groups)
    assert tx.grad is not None
    assert_near(dx, tx.grad, float(np.abs(dy).max()) * factor * condition)
    if tweight is not None and tbias is not None:
        assert tweight.grad is not None and tbias.grad is not None
        terms = torch.from_numpy(np.abs(dy).sum((0, 2, 3))).double()
        assert_near(dbias, tbias.grad, terms)
        assert_near(dweight, tweight.grad, terms * condition)


def test_gradients_of_weight_and_bias_without_a_weight(kernels: _native.Kernels) -> None:
    x, dy, _, _ = Case(3, 2, 2, (5, 5), False, False, 0.0, 7).arrays()
    y, mean, rstd = kernels.group_norm(x, None, None, 2, EPSILON)
    ones = np.ones(4, np.float32)
    plain = kernels.group_norm_backward(dy, x, mean, rstd, None, None, 2)
    weighted = kernels.group_norm_backward(dy, x, mean, rstd, ones, None, 2)
    for got, wanted in zip(plain, weighted, strict=True):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(plain[1], (dy * y).sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_threads_do_not_change_the_result(kernels: _native.Kernels, relu: bool) -> None:
    x, dy, weight, bias = Case(5, 7, 3, (23, 31), True, relu, 0.5, 11).arrays()
    results = []
    for threads in (1, 2, 5):
        table = _native.kernels(kernels.isa, threads)
        y, mean, rstd = table.group_norm(x, weight, bias, 7, EPSILON, relu)
        mask = y if relu else None
        gradients = table.group_norm_backward(dy, x, mean, rstd, weight, mask, 7)
        results.append((y, mean, rstd, *gradients))
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_one_table_serves_several_python_threads(kernels: _native.Kernels) -> None:
    table = _native.kernels(kernels.isa, threads=2)
    # Large enough that the table's own threads share each call.
    arrays = [Case(8, 4, 2, (23, 31), True, False, 0.0, seed).arrays() for seed in range(4)]

    def differentiate(case: tuple[Array, Array, Array | None, Array | None]) -> list[Array]:
        x, dy, weight, bias = case
        _, mean, rstd = table.group_norm(x, weight, bias, 4, EPSILON)
        return list(table.group_norm_backward(dy, x, mean, rstd, weight, None, 4))

    with ThreadPoolExecutor(len(arrays)) as pool:
        together = list(pool.map(differentiate, arrays * 5))
    alone = [differentiate(case) for case in arrays] * 5
    for got, wanted in zip(together, alone, strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_mean_far_from_zero_keeps_its_accuracy(kernels: _native.Kernels) -> None:
    x, _, _, _ = Case(2, 2, 2, (64, 64), False, False, 1000.0, 3).arrays()
    y, _, _ = kernels.group_norm(x, None, None, 2, EPSILON)
    expected = torch.group_norm(torch.from_numpy(x).double(), 2, eps=EPSILON)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-4)


def test_nan_stays_in_its_group(kernels: _native.Kernels) -> None:
    x, _, _, _ = Case(2, 2, 2, (3, 3), False, True, 0.0, 5).arrays()
    x[1, 0, 2, 2] = np.nan
    y, mean, rstd = kernels.group_norm(x, None, None, 2, EPSILON, True)
    assert np.isnan(y[1, :2]).all() and np.isnan(mean[1, 0]) and np.isnan(rstd[1, 0])
    y[1, :2] = 0
    assert np.isfinite(y).all() and np.isfinite(mean).sum() == 3


def test_no_images(kernels: _native.Kernels) -> None:
    x = np.zeros((0, 4, 2, 2), np.float32)
    y, mean, rstd = kernels.group_norm(x, None, None, 2)
    assert y.shape == x.shape and mean.shape == rstd.shape == (0, 2)
    dx, dweight, dbias = kernels.group_norm_backward(x, x, mean, rstd, None, None, 2)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dweight, np.zeros(4))
    np.testing.assert_array_equal(dbias, np.zeros(4))


def test_arguments_are_checked(kernels: _native.Kernels) -> None:
    x = np.zeros((2, 6, 4, 4), np.float32)
    with pytest.raises(ValueError, match="6 channels do not split into 4 groups"):
        kernels.group_norm(x, None, None, 4)
    with pytest.raises(ValueError, match=r"weight must have the sizes \[6\], not \[5\]"):
        kernels.group_norm(x, np.zeros(5, np.float32), None, 2)
    with pytest.raises(ValueError, match="planes of one element or more"):
        kernels.group_norm(x[:, :, :0].copy(), None, None, 2)
    _, _, rstd = kernels.group_norm(x, None, None, 2)
    with pytest.raises(ValueError, match=r"rstd must have the sizes \[2, 3\], not \[2, 2\]"):
        kernels.group_norm_backward(x, x, np.zeros((2, 3), np.float32), rstd, None, None, 3)
