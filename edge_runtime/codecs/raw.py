"""`raw`: every bit arrives.

Body: the values as IEEE binary32, rotated to the left by one bit, so that the exponent is a byte of
its own and the sign the lowest bit; in byte planes (`planes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.body import Body, check_length
from edge_runtime.codecs.flat import Flat, join, total
from edge_runtime.codecs.pieces import InPieces
from edge_runtime.codecs.planes import to_planes, words_in_pieces
from edge_runtime.tensor_blob import Shapes


class Raw(InPieces):
    """Values as they are: nothing is lost."""

    name = "raw"
    biased = False

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        words = join(tensors).view(np.uint32)
        signs = words >> 31
        words <<= 1  # in place: a model may be most of a device's memory
        words |= signs
        return to_planes(words)

    def pieces(self, body: Body, shapes: Shapes) -> Iterator[Flat]:
        check_length(body, self.size_bytes(shapes))
        for words in words_in_pieces(body, 0, total(shapes), "u4"):
            signs = words << 31
            words >>= 1
            words |= signs
            yield words.view(np.float32)

    def size_bytes(self, shapes: Shapes) -> int:
        return 4 * total(shapes)
