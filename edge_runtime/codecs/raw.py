"""`raw`: every bit arrives.

Body: the values as IEEE binary32, rotated to the left by one bit, so that the exponent is a byte of
its own and the sign the lowest bit; in byte planes (`planes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.flat import check_length, cut, join, total
from edge_runtime.codecs.planes import from_planes, to_planes
from edge_runtime.tensor_blob import Shapes, Tensors


class Raw:
    """Values as they are: nothing is lost."""

    name = "raw"
    biased = False

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        words = join(tensors).view(np.uint32)
        signs = words >> 31
        words <<= 1  # in place: a model may be most of a device's memory
        words |= signs
        return to_planes(words)

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        check_length(body, self.size_bytes(shapes))
        words = from_planes(body, "u4")
        signs = words << 31
        words >>= 1
        words |= signs
        return cut(words.view(np.float32), shapes)

    def size_bytes(self, shapes: Shapes) -> int:
        return 4 * total(shapes)
