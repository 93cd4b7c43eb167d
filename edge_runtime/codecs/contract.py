"""What a codec is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.tensor_blob import Shapes, Tensors


class Codec(Protocol):
    """Values to bytes and back. What is lost on the way, a codec's own docstring says.

    `biased`: what is lost is not nought on average; it has to be added to the next change (error
    feedback), or it is lost for good.
    """

    name: str
    biased: bool

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        """The body: the values alone. `WireError` if they are not finite."""
        ...

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        """Tensors of the names and shapes of `shapes`, float32; `WireError` for other bytes.

        The same bits on any machine: server and devices build on each other's result.
        """
        ...

    def size_bytes(self, shapes: Shapes) -> int:
        """About how many bytes a body has."""
        ...
