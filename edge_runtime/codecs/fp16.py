"""`fp16`: half the bytes, 11 bits of precision.

Body::

    1 byte    e, signed: the values were multiplied by 2^-e, so that the largest is in [2^14, 2^15)
    rest      the products as IEEE binary16, in byte planes (`planes.py`)

Without the factor, changes below 6e-8 would vanish and weights above 65504 overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.body import Body, check_length
from edge_runtime.codecs.flat import Flat, join, total
from edge_runtime.codecs.pieces import InPieces
from edge_runtime.codecs.planes import to_planes, words_in_pieces
from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Shapes

# A factor and its inverse must be normal numbers: then the product is the same on any processor.
_LEAST, _MOST = -126, 126
_TARGET = 15
# The largest half below 2^15: what is next to the largest float32 must not round to infinity.
_LARGEST = np.float32(2**15 - 16)


class Fp16(InPieces):
    """Values to the nearest of 11 bits: an error of 2^-12 of a value is too little to feed back."""

    name = "fp16"
    biased = False

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        flat = join(tensors)
        largest = float(np.abs(flat).max(initial=0))
        exponent = max(_LEAST, math.frexp(largest)[1] - _TARGET) if largest else 0
        scaled = np.clip(flat * _power(-exponent), -_LARGEST, _LARGEST)
        halves = scaled.astype(np.float16)
        return exponent.to_bytes(1, "big", signed=True) + to_planes(halves.view(np.uint16))

    def pieces(self, body: Body, shapes: Shapes) -> Iterator[Flat]:
        check_length(body, self.size_bytes(shapes))
        exponent = int.from_bytes(body.at(0).read(1), "big", signed=True)
        if not _LEAST <= exponent <= _MOST:
            raise WireError("bad-body", f"an exponent of {exponent}")
        for halves in words_in_pieces(body, 1, total(shapes), "u2"):
            with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinities
                values = halves.view(np.float16).astype(np.float32) * _power(exponent)
            yield values

    def size_bytes(self, shapes: Shapes) -> int:
        return 1 + 2 * total(shapes)


def _power(exponent: int) -> np.float32:
    return np.float32(math.ldexp(1.0, exponent))
