"""Matrix products against PyTorch in double precision, on every instruction set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.native import _native

Array = NDArray[np.float32]

# Of the sum of the terms' magnitudes: some 30 roundings of float32, however many terms there are.
TOLERANCE = 2e-6


class Case(NamedTuple):
    """One product: random arrays of these sizes."""

    m: int
    n: int
    k: int
    transpose_a: bool = False
    transpose_b: bool = False
    with_bias: bool = False
    relu: bool = False
    seed: int = 0

    def arrays(self) -> tuple[Array, Array, Array | None]:
        """a [m,k] and b [k,n], or their transposes as stored; bias [n] or None."""
        rng = np.random.default_rng(self.seed)
        a = rng.standard_normal((self.k, self.m) if self.transpose_a else (self.m, self.k))
        b = rng.standard_normal((self.n, self.k) if self.transpose_b else (self.k, self.n))
        bias = rng.standard_normal(self.n).astype(np.float32) if self.with_bias else None
        return a.astype(np.float32), b.astype(np.float32), bias

    def run(self, kernels: _native.Kernels) -> Array:
        a, b, bias = self.arrays()
        return kernels.gemm(a, b, bias, self.transpose_a, self.transpose_b, self.relu)


sizes = st.integers(1, 40) | st.sampled_from([64, 100, 129, 300])
cases = st.builds(
    Case,
    m=sizes,
    n=sizes,
    k=sizes,
    transpose_a=st.booleans(),
    transpose_b=st.booleans(),
    with_bias=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@pytest.fixture(scope="module", params=_native.isas())
def kernels(request: pytest.FixtureRequest) -> _native.Kernels:
    return _native.kernels(request.param)


@given(cases)
@example(Case(3, 40, 1100, with_bias=True, relu=True))  # more than two blocks of k
@example(Case(500, 33, 520, transpose_b=True, with_bias=True, relu=True))  # and of rows
@example(Case(300, 300, 520, transpose_a=True))  # a and b lie too far apart to be read in place
def test_gemm_is_the_product(kernels: _native.Kernels, case: Case) -> None:
    a, b, bias = (None if x is None else torch.from_numpy(x).double() for x in case.arrays())
    assert a is not None and b is not None
    a, b = a.T if case.transpose_a else a, b.T if case.transpose_b else b
    expected, magnitude = a @ b, a.abs() @ b.abs()
    if bias is not None:
        expected, magnitude = expected + bias, magnitude + bias.abs()
    if case.relu:
        expected = expected.relu()
    error = np.abs(case.run(kernels) - expected.numpy())
    assert (error <= TOLERANCE * magnitude.numpy()).all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_of_no_terms_is_its_bias(kernels: _native.Kernels, with_bias: bool) -> None:
    case = Case(5, 37, 0, with_bias=with_bias)
    bias = case.arrays()[2]
    expected = np.zeros(37, np.float32) if bias is None else bias
    np.testing.assert_array_equal(case.run(kernels), np.tile(expected, (5, 1)))


@pytest.mark.parametrize("n", [1, 10, 32])
def test_relu_keeps_nan_where_it_arose(kernels: _native.Kernels, n: int) -> None:
    case = Case(7, n, 5, transpose_b=True, relu=True)
    a, b, _ = case.arrays()
    a[3, 2] = np.nan
    c = kernels.gemm(a, b, transpose_b=True, relu=True)
    assert np.isnan(c[3]).all()
    assert (np.delete(c, 3, axis=0) >= 0).all()


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_two_threads_give_the_same_bits(
    kernels: _native.Kernels, transpose_a: bool, transpose_b: bool
) -> None:
    case = Case(130, 170, 600, transpose_a, transpose_b, with_bias=True, relu=True)
    two = _native.kernels(kernels.isa, threads=2)
    np.testing.assert_array_equal(case.run(two), case.run(kernels))
