"""`InPieces`: codecs that decode a piece at a time, and what becomes of the pieces.

A part may be most of a device's memory: with pieces, decoding takes little beside the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.body import Body, Plain
from edge_runtime.codecs.flat import Flat, cut, piece_sizes, total
from edge_runtime.tensor_blob import Shapes, Tensors


class InPieces(ABC):
    """The half of a `Codec` that decodes."""

    @abstractmethod
    def pieces(self, body: Body, shapes: Shapes) -> Iterator[Flat]:
        """All values, in the order of the flat array; `WireError` if the body is not of `shapes`.

        The body's end is checked after the last piece.
        """

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        """Tensors of the names and shapes of `shapes`; `WireError` for other bytes."""
        return gather(self.pieces(Plain(body), shapes), shapes)


def gather(pieces: Iterator[Flat], shapes: Shapes) -> Tensors:
    """The tensors of `shapes`, from all their values."""
    first, count = next(pieces, None), total(shapes)
    if first is not None and len(first) == count:
        finish(pieces)
        return cut(first, shapes)
    tensors = cut(np.empty(count, np.float32), shapes)
    rest = pieces if first is None else chain([first], pieces)
    for _, place, values in spread(rest, tensors):
        place[:] = values
    return tensors


def spread(
    pieces: Iterator[Flat], tensors: Mapping[str, NDArray[np.float32]]
) -> Iterator[tuple[str, Flat, Flat]]:
    """A tensor's name, a place in it, and the values of a piece that belong there; again and again.

    `tensors`: contiguous, in C order. A place is a view: what is written there is in the tensor.
    """
    piece, begin, end = np.zeros(0, np.float32), 0, 0
    for name in sorted(tensors):
        flat, filled = tensors[name].reshape(-1), 0
        while filled < len(flat):
            if begin == end:
                piece = next(pieces)
                begin, end = 0, len(piece)
            size = min(len(flat) - filled, end - begin)
            yield name, flat[filled : filled + size], piece[begin : begin + size]
            filled, begin = filled + size, begin + size
    finish(pieces)


def finish(pieces: Iterator[Flat]) -> None:
    """Go on to the end, after the last piece: only there is the body's end checked."""
    if next(pieces, None) is not None:
        raise AssertionError("more values than places")


def apart(tensors: Mapping[str, NDArray[np.float32]]) -> Iterator[Flat]:
    """All values of `tensors` in pieces: views where a tensor is contiguous."""
    for name in sorted(tensors):
        flat, end = tensors[name].reshape(-1), 0
        for size in piece_sizes(len(flat)):
            yield flat[end : end + size]
            end += size
