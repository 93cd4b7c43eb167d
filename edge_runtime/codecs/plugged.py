"""A codec of an installed package, kept to the contract."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.contract import Codec
from edge_runtime.errors import FlexmoeError, WireError
from edge_runtime.tensor_blob import Shapes, Tensors


class Plugged:
    """`codec` under the name of its entry point: any error of it becomes a `WireError`.

    What it was not written for may come from the network, and must not end a process.
    """

    def __init__(self, name: str, codec: Codec) -> None:
        self.name = name
        self.biased = bool(codec.biased)
        self._codec = codec

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        try:
            return bytes(self._codec.encode(tensors, rng))
        except FlexmoeError:
            raise
        except Exception as error:
            raise self._failed("encode", error) from error

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        try:
            tensors = dict(self._codec.decode(body, shapes))
            made = {name: (value.shape, value.dtype.name) for name, value in tensors.items()}
        except WireError:
            raise
        except Exception as error:
            raise self._failed("decode", error) from error
        if made != {name: (tuple(shape), "float32") for name, shape in shapes.items()}:
            raise WireError("bad-body", f"codec {self.name!r} made other tensors than asked for")
        return tensors

    def size_bytes(self, shapes: Shapes) -> int:
        return int(self._codec.size_bytes(shapes))

    def _failed(self, what: str, error: Exception) -> WireError:
        return WireError(
            "bad-body", f"codec {self.name!r}: {what}: {type(error).__name__}: {error}"
        )
