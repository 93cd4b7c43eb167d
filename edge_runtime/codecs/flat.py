"""Tensors as one flat array, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Shapes, Tensors

Flat = NDArray[np.float32]

_PIECE_VALUES = 1 << 16


def total(shapes: Shapes) -> int:
    """How many values tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes.values())


def join(tensors: Mapping[str, NDArray[np.float32]]) -> Flat:
    """A copy of all values [N]: C order, tensors by name; `WireError` unless all are finite."""
    arrays = [np.asarray(tensors[name], np.float32).reshape(-1) for name in sorted(tensors)]
    flat = np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
    check_finite(cut(flat, {name: value.shape for name, value in tensors.items()}))
    return flat


def check_finite(tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """`WireError` unless all values are finite."""
    for name, value in tensors.items():
        flat, end = value.reshape(-1), 0
        for size in piece_sizes(len(flat)):
            if not np.isfinite(flat[end : end + size]).all():
                raise not_finite(name)
            end += size


def not_finite(name: str) -> WireError:
    """The error for a tensor that holds infinities or NaN."""
    return WireError("not-finite", f"{name!r} has values that are not finite")


def cut(flat: Flat, shapes: Shapes) -> Tensors:
    """The tensors whose values `flat` holds: views into it."""
    return {name: flat[at].reshape(shapes[name]) for name, at in places(shapes)}


def places(shapes: Shapes) -> Iterator[tuple[str, slice]]:
    """Where each tensor's values stand, tensors by name."""
    end = 0
    for name in sorted(shapes):
        start, end = end, end + math.prod(shapes[name])
        yield name, slice(start, end)


def piece_sizes(count: int) -> Iterator[int]:
    """How many of `count` values to work on at a time: an even number, but for the last."""
    for start in range(0, count, _PIECE_VALUES):
        yield min(_PIECE_VALUES, count - start)
