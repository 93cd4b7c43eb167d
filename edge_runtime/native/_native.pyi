"""The extension's types, written by hand: nanobind's own are vague. test_packaging.py compares."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Integers = NDArray[np.int64]
_Pair = tuple[int, int]
_Bytes = bytes | bytearray | memoryview | NDArray[np.uint8]

class Kernels:
    """The kernels of one instruction set; float32 arrays in and out."""

    @property
    def isa(self) -> str: ...
    @property
    def vector_floats(self) -> int: ...
    def gemm(
        self,
        a: _Floats,
        b: _Floats,
        bias: _Floats | None = None,
        transpose_a: bool = False,
        transpose_b: bool = False,
        relu: bool = False,
    ) -> _Floats: ...
    def sum_rows(self, x: _Floats) -> _Floats: ...
    def sum_channels(self, x: _Floats) -> _Floats: ...
    def conv2d(
        self,
        x: _Floats,
        weight: _Floats,
        bias: _Floats | None = None,
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
        relu: bool = False,
    ) -> _Floats: ...
    def conv2d_backward_input(
        self,
        dy: _Floats,
        weight: _Floats,
        input_size: Sequence[int],
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
    ) -> _Floats: ...
    def conv2d_backward_weight(
        self,
        dy: _Floats,
        x: _Floats,
        weight_size: Sequence[int],
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
    ) -> _Floats: ...
    def group_norm(
        self,
        x: _Floats,
        weight: _Floats | None,
        bias: _Floats | None,
        groups: int,
        eps: float = 1e-05,
        relu: bool = False,
    ) -> tuple[_Floats, _Floats, _Floats]: ...
    def group_norm_backward(
        self,
        dy: _Floats,
        x: _Floats,
        mean: _Floats,
        rstd: _Floats,
        weight: _Floats | None,
        y: _Floats | None,
        groups: int,
    ) -> tuple[_Floats, _Floats, _Floats]: ...
    def relu(self, x: _Floats) -> _Floats: ...
    def relu_backward(self, dy: _Floats, y: _Floats) -> _Floats: ...
    def add(self, a: _Floats, b: _Floats) -> _Floats: ...
    def mean_pool(self, x: _Floats) -> _Floats: ...
    def mean_pool_backward(self, dy: _Floats, input_size: Sequence[int]) -> _Floats: ...
    def avg_pool2d(
        self, x: _Floats, kernel: _Pair, stride: _Pair, padding: _Pair = (0, 0)
    ) -> _Floats: ...
    def avg_pool2d_backward(
        self,
        dy: _Floats,
        input_size: Sequence[int],
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
    ) -> _Floats: ...
    def max_pool2d(
        self,
        x: _Floats,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
    ) -> tuple[_Floats, _Integers]: ...
    def max_pool2d_backward(
        self, dy: _Floats, indices: _Integers, input_size: Sequence[int]
    ) -> _Floats: ...
    def mixture_cross_entropy(
        self,
        scores: _Floats,
        outputs: _Floats,
        y: _Integers,
        experts: _Integers,
        sample_weight: _Floats,
        balance: float = 0.0,
    ) -> tuple[_Floats, _Floats, _Floats, _Floats]: ...
    def mixture_evaluate(
        self,
        scores: _Floats,
        outputs: _Floats,
        y: _Integers,
        experts: _Integers,
        sample_weight: _Floats,
    ) -> tuple[_Floats, _Floats]: ...
    def sum_of_squares(self, x: _Floats) -> float: ...
    def all_finite(self, x: _Floats) -> bool: ...
    def scale(self, x: _Floats, factor: float) -> None: ...
    def sgd(
        self,
        weight: _Floats,
        gradient: _Floats,
        velocity: _Floats | None,
        learning_rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None: ...
    def adamw(
        self,
        weight: _Floats,
        gradient: _Floats,
        m: _Floats,
        v: _Floats,
        step: int,
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-08,
        weight_decay: float = 0.01,
    ) -> None: ...

MAX_THREADS: int

def isas() -> list[str]:
    """The instruction sets that this machine and build can run, the best first."""

def kernels(isa: str | None = None, threads: int = 1) -> Kernels:
    """The kernels of `isa`; ValueError names those that there are. None: the best, or what the
    environment's FLEXMOE_ISA names.
    """

class Rates:
    """How a step changes the weights; see trainer.Rates."""

    def __init__(
        self,
        *,
        optimizer: str,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        clip_norm: float,
    ) -> None: ...

class Session:
    """A training and an evaluation program over one set of weights."""

    def __init__(
        self, training: _Bytes, evaluation: _Bytes, classes: int, experts: int, threads: int
    ) -> None: ...
    def begin(self, experts: Sequence[int]) -> None:
        """Take these experts, one for each slot; the optimizer's state is zeroed."""

    def train_step(
        self, x: _Floats, y: _Integers, sample_weight: _Floats, rates: Rates
    ) -> tuple[float, _Floats]:
        """(loss, stats [k, 3]) of one step. Where the loss or a gradient is not finite, the weights
        stay and the loss is not finite.
        """

    def evaluate(self, x: _Floats, y: _Integers, sample_weight: _Floats) -> tuple[float, _Floats]:
        """(loss, stats [k, 3]); the weights stay."""

    @property
    def weights(self) -> list[_Floats]:
        """The weights themselves, writable; they keep the session alive."""

    @property
    def gradients(self) -> list[_Floats]:
        """The gradients of the last training step, as the optimizer used them."""

    @property
    def memory(self) -> dict[str, int]:
        """Bytes held, by kind."""

def describe(program: _Bytes) -> dict[str, Any]:
    """What a program says of itself: layout, inputs, outputs, operators, arena_bytes."""

def memory_need(
    training: _Bytes, evaluation: _Bytes, rates: Rates, batch: int, threads: int
) -> dict[str, int]:
    """The most bytes that a session of this pair takes, by kind. Allocates none of them."""
