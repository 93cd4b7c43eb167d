"""Convolutions and their gradients against PyTorch in double, on every instruction set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import conv2d

from edge_runtime.native import _native

Array = NDArray[np.float32]
Pair = tuple[int, int]

# Of the sum of the terms' magnitudes: some 30 roundings of float32, however many terms there are.
TOLERANCE = 2e-6


class Case(NamedTuple):
    """One convolution of random arrays."""

    batch: int
    group_in: int
    group_out: int
    plane: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    with_bias: bool = False
    relu: bool = False
    seed: int = 0

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def x_size(self) -> tuple[int, int, int, int]:
        return self.batch, self.groups * self.group_in, *self.plane

    @property
    def weight_size(self) -> tuple[int, int, int, int]:
        return self.groups * self.group_out, self.group_in, *self.kernel

    @property
    def y_size(self) -> tuple[int, int, int, int]:
        rows, columns = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                self.plane, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return self.batch, self.groups * self.group_out, rows, columns

    def arrays(self) -> tuple[Array, Array, Array | None, Array]:
        """x, weight, bias or None, and dy."""
        rng = np.random.default_rng(self.seed)
        x, weight, dy = (
            rng.standard_normal(size, dtype=np.float32)
            for size in (self.x_size, self.weight_size, self.y_size)
        )
        bias = rng.standard_normal(self.weight_size[0], dtype=np.float32)
        return x, weight, bias if self.with_bias else None, dy

    def run(self, kernels: _native.Kernels) -> tuple[Array, Array, Array]:
        """y, dx, dweight."""
        x, weight, bias, dy = self.arrays()
        return (
            kernels.conv2d(x, weight, bias, *self.geometry, self.relu),
            kernels.conv2d_backward_input(dy, weight, self.x_size, *self.geometry),
            kernels.conv2d_backward_weight(dy, x, self.weight_size, *self.geometry),
        )


def pairs(values: st.SearchStrategy[int]) -> st.SearchStrategy[Pair]:
    return st.tuples(values, values)


channels = st.integers(1, 6) | st.sampled_from([9, 16, 17, 33, 40])
cases = st.builds(
    Case,
    batch=st.integers(1, 9) | st.sampled_from([16, 17, 31, 32, 33]),
    group_in=channels,
    group_out=channels,
    plane=pairs(st.integers(1, 9)) | st.sampled_from([(1, 33), (16, 16), (4, 4), (13, 19)]),
    kernel=pairs(st.integers(1, 5)) | st.just((1, 8)),
    stride=pairs(st.integers(1, 4)),
    padding=pairs(st.integers(0, 4)),
    dilation=pairs(st.sampled_from([1, 1, 2, 3])),
    groups=st.sampled_from([1, 1, 1, 2, 5]),
    with_bias=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
depthwise_cases = st.builds(
    Case,
    batch=st.integers(1, 4),
    group_in=st.just(1),
    group_out=st.just(1) | st.integers(1, 3),
    plane=pairs(st.integers(1, 20)),
    kernel=pairs(st.integers(1, 5)),
    stride=pairs(st.integers(1, 3)),
    padding=pairs(st.integers(0, 3)),
    dilation=pairs(st.integers(1, 2)),
    groups=st.integers(2, 40),
    with_bias=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)

DIGITS_LIKE = Case(32, 1, 8, (8, 8), (3, 3), padding=(1, 1), with_bias=True, relu=True)
HAR_FIRST = Case(32, 9, 32, (1, 128), (1, 8), (1, 4), (0, 2), with_bias=True, relu=True)
HAR_SECOND = Case(32, 32, 64, (1, 32), (1, 4), (1, 2), (0, 1), with_bias=True)
CIFAR_FIRST = Case(32, 3, 32, (32, 32), (3, 3), (2, 2), (1, 1), with_bias=True)
CIFAR_EXPERT = Case(32, 64, 64, (8, 8), (3, 3), (2, 2), (1, 1), with_bias=True)
LARGE_DEPTHWISE = Case(8, 1, 1, (24, 24), (3, 3), padding=(1, 1), groups=40)
DEPTHWISE = Case(3, 1, 1, (24, 24), (3, 3), padding=(1, 1), groups=40, with_bias=True, relu=True)
IMAGE_INSIDE_KERNEL = Case(5, 3, 4, (2, 3), (5, 5), (2, 1), (3, 2), with_bias=True)
PADDING_ONLY = Case(2, 2, 3, (1, 1), (1, 1), (2, 2), (4, 4), with_bias=True)
MANY_BANDS = Case(2, 40, 8, (60, 60), (3, 3), padding=(1, 1))  # more than the scratch of one band
# The second row of y needs earlier rows of x than the first.
BACK_AND_FORTH = Case(17, 16, 1, (13, 19), (4, 1), padding=(1, 0), dilation=(3, 1))
FEW_IMAGES = Case(3, 20, 70, (9, 9), (3, 3), padding=(1, 1), with_bias=True)


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


def check(actual: Array, expected: torch.Tensor, magnitude: torch.Tensor) -> None:
    assert actual.shape == tuple(expected.shape)
    assert (np.abs(actual - expected.numpy()) <= TOLERANCE * magnitude.numpy()).all()


def gradients(
    case: Case, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx and dweight."""
    stride, padding, dilation, groups = case.geometry
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, True, False)
    )
    return dx, dweight


def check_against_torch(kernels: _native.Kernels, case: Case) -> None:
    y, dx, dweight = case.run(kernels)
    x, weight, bias, dy = (
        None if array is None else torch.from_numpy(array).double() for array in case.arrays()
    )
    assert x is not None and weight is not None and dy is not None
    expected = conv2d(x, weight, bias, *case.geometry)
    magnitude = conv2d(x.abs(), weight.abs(), None if bias is None else bias.abs(), *case.geometry)
    check(y, expected.relu() if case.relu else expected, magnitude)
    for actual, expected, magnitude in zip(
        (dx, dweight),
        gradients(case, dy, x, weight),
        gradients(case, dy.abs(), x.abs(), weight.abs()),
        strict=True,
    ):
        check(actual, expected, magnitude)


@given(cases)
@example(IMAGE_INSIDE_KERNEL)
@example(PADDING_ONLY)
@example(MANY_BANDS)
@example(BACK_AND_FORTH)
@example(FEW_IMAGES)
def test_convolutions_are_those_of_torch(kernels: _native.Kernels, case: Case) -> None:
    assume(min(case.y_size) > 0)
    check_against_torch(kernels, case)


@given(depthwise_cases)
@example(DEPTHWISE)
def test_depthwise_convolutions_are_those_of_torch(kernels: _native.Kernels, case: Case) -> None:
    assume(min(case.y_size) > 0)
    check_against_torch(kernels, case)


@pytest.mark.parametrize(
    "case", [DIGITS_LIKE, HAR_FIRST, HAR_SECOND, CIFAR_FIRST, CIFAR_EXPERT], ids=str
)
def test_the_layers_of_the_models(kernels: _native.Kernels, case: Case) -> None:
    check_against_torch(kernels, case)


@pytest.mark.parametrize("case", [HAR_FIRST, FEW_IMAGES, DEPTHWISE], ids=str)
def test_nan_stays_in_its_image(kernels: _native.Kernels, case: Case) -> None:
    x, weight, bias, _ = case.arrays()
    clean = kernels.conv2d(x, weight, bias, *case.geometry, case.relu)
    x[1] = np.nan
    y = kernels.conv2d(x, weight, bias, *case.geometry, case.relu)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(np.delete(y, 1, axis=0), np.delete(clean, 1, axis=0))


@pytest.mark.parametrize(
    "case", [HAR_SECOND, CIFAR_EXPERT, MANY_BANDS, FEW_IMAGES, LARGE_DEPTHWISE], ids=str
)
def test_three_threads_give_the_same_bits(kernels: _native.Kernels, case: Case) -> None:
    # Smaller ones stay on one thread.
    assert case.groups * case.group_in * np.prod(case.y_size) * np.prod(case.kernel) > 1e6
    three = _native.kernels(kernels.isa, threads=3)
    for shared, alone in zip(case.run(three), case.run(kernels), strict=True):
        np.testing.assert_array_equal(shared, alone)
