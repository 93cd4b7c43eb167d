"""Tensors as one flat array, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Shapes, Tensors

Flat = NDArray[np.float32]


def total(shapes: Shapes) -> int:
    """How many values tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes.values())


def join(tensors: Mapping[str, NDArray[np.float32]]) -> Flat:
    """A copy of all values [N]: C order, tensors by name; `WireError` unless all are finite."""
    arrays = [np.asarray(tensors[name], np.float32).reshape(-1) for name in sorted(tensors)]
    flat = np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
    if not np.isfinite(flat).all():
        bad = next(name for name in sorted(tensors) if not np.isfinite(tensors[name]).all())
        raise WireError("not-finite", f"{bad!r} has values that are not finite")
    return flat


def cut(flat: Flat, shapes: Shapes) -> Tensors:
    """The tensors whose values `flat` holds: views into it."""
    return {name: flat[at].reshape(shapes[name]) for name, at in places(shapes)}


def places(shapes: Shapes) -> Iterator[tuple[str, slice]]:
    """Where each tensor's values stand, tensors by name."""
    end = 0
    for name in sorted(shapes):
        start, end = end, end + math.prod(shapes[name])
        yield name, slice(start, end)


def check_length(body: bytes, expected: int) -> None:
    """`WireError` unless `body` has as many bytes as its shapes ask for."""
    if len(body) != expected:
        raise WireError("bad-body", f"expected {expected} bytes, got {len(body)}")
