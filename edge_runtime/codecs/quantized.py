"""`int8` and `int4`: each row of a tensor in whole steps of its own.

A row is an index of the first axis of a tensor with two axes or more; any other tensor is one row.
Body, over the R rows that have values, tensors by name::

    2 R bytes  steps (`bfloat.py`), in byte planes
    rest       the values in steps, signed: int8 a byte each; int4 two a byte, the first one in the
               upper half; if their number is odd, the lower half of the last byte is 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import bfloat
from edge_runtime.codecs.body import Body, check_length
from edge_runtime.codecs.flat import Flat, join, piece_sizes, total
from edge_runtime.codecs.pieces import InPieces
from edge_runtime.codecs.planes import from_planes, to_planes
from edge_runtime.tensor_blob import Shapes


class Quantized(InPieces):
    """Values rounded up or down at random, so that they are right on average.

    A row's largest value is `most` steps: an error is below a step.
    """

    biased = False

    def __init__(self, bits: int) -> None:
        """`bits` a value: 8 or 4."""
        self.name = f"int{bits}"
        self._per_byte = 8 // bits
        self._most = (1 << (bits - 1)) - 1
        self._largest_step = bfloat.down(bfloat.LARGEST / self._most)

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        flat = join(tensors)
        lengths = _rows({name: value.shape for name, value in tensors.items()})
        steps = self._steps(flat, lengths)
        wide = bfloat.widen(np.maximum(steps, 1))  # a row of zeros has no step to divide by
        scaled = flat / np.repeat(wide, lengths)
        rounded = np.floor(scaled + rng.random(len(flat), np.float32))
        whole = np.clip(rounded, -self._most, self._most).astype(np.int8)
        return to_planes(steps) + (whole.tobytes() if self._per_byte == 1 else _halves(whole))

    def pieces(self, body: Body, shapes: Shapes) -> Iterator[Flat]:
        check_length(body, self.size_bytes(shapes))
        lengths = _rows(shapes)
        cursor = body.at(0)
        ends = np.cumsum(lengths)
        wide = bfloat.widen(from_planes(bytes(cursor.read(2 * len(lengths))), "u2"))
        start, count = 0, total(shapes)
        for size in piece_sizes(count):
            whole = np.frombuffer(cursor.read(-(-size // self._per_byte)), np.int8)
            if self._per_byte == 2:
                whole = np.stack([whole >> 4, (whole << 4) >> 4], axis=1).reshape(-1)[:size]
            rows, repeats = (slice(None), lengths) if size == count else _within(start, size, ends)
            with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinities
                values = whole.astype(np.float32) * np.repeat(wide[rows], repeats)
            yield values
            start += size
        cursor.end()

    def size_bytes(self, shapes: Shapes) -> int:
        return 2 * len(_rows(shapes)) - (-total(shapes) // self._per_byte)

    def _steps(self, flat: Flat, lengths: NDArray[np.int64]) -> NDArray[np.uint16]:
        if not len(lengths):
            return np.zeros(0, np.uint16)
        starts = np.cumsum(lengths) - lengths
        largest = np.maximum.reduceat(np.abs(flat), starts).astype(np.float64)
        # Above it, `most` steps would be no finite number.
        return np.minimum(bfloat.up(largest / self._most), np.uint16(self._largest_step))


def _rows(shapes: Shapes) -> NDArray[np.int64]:
    """How many values each row has, without the rows that have none."""
    lengths = [np.zeros(0, np.int64)]
    for name in sorted(shapes):
        shape = shapes[name]
        rows = shape[0] if len(shape) > 1 else 1
        size = math.prod(shape)
        if size:
            lengths.append(np.full(rows, size // rows))
    return np.concatenate(lengths)


def _within(start: int, size: int, ends: NDArray[np.int64]) -> tuple[slice, NDArray[np.int64]]:
    """The rows that have values among `size` from `start` on, and how many each has there."""
    first, last = np.searchsorted(ends, (start, start + size - 1), side="right")
    rows = slice(int(first), int(last) + 1)
    return rows, np.diff(np.minimum(ends[rows] - start, size), prepend=0)


def _halves(whole: NDArray[np.int8]) -> bytes:
    even = np.append(whole, np.int8(0)) if len(whole) % 2 else whole
    pairs = even.view(np.uint8).reshape(-1, 2)
    return ((pairs[:, 0] << 4) | (pairs[:, 1] & 15)).tobytes()
