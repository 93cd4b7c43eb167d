"""`Coded`: a coded blob that was opened: its tensors' shapes are known, its values not yet read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_runtime.codecs.body import Body, Plain
from edge_runtime.codecs.contract import Codec
from edge_runtime.codecs.flat import Flat, check_finite, not_finite, places, total
from edge_runtime.codecs.pieces import InPieces, apart, gather
from edge_runtime.compression import decompress, open_packed
from edge_runtime.tensor_blob import Shapes, Tensors

# A body may be longer than the values that it stands for only by what codecs put before them.
_SLACK_BYTES = 1024
# Up to here a body is decompressed at once: it is quicker, and memory no matter.
_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True)
class Coded:
    """What `codec` made of tensors of these `shapes`, and then `compressor`, if it is not empty.

    `max_bytes`: of the values as float32, and of the body once decompressed.
    """

    codec: Codec
    shapes: Shapes
    packed: memoryview
    compressor: str
    max_bytes: int

    def tensors(self) -> Tensors:
        """All tensors: float32 and finite; `WireError` if the body does not hold such."""
        if isinstance(self.codec, InPieces):
            return gather(self.pieces(), self.shapes)
        tensors = self.codec.decode(self._whole(), self.shapes)
        check_finite(tensors)
        return tensors

    def pieces(self) -> Iterator[Flat]:
        """The same values in the order of the flat array, with as little memory as the codec can.

        `WireError` comes when what is wrong is reached.
        """
        if not isinstance(self.codec, InPieces):
            yield from apart(self.tensors())
            return
        end = 0
        for piece in self.codec.pieces(self._body(), self.shapes):
            finite = np.isfinite(piece)
            if not finite.all():
                bad = end + int(np.argmin(finite))
                raise not_finite(next(n for n, at in places(self.shapes) if bad < at.stop))
            end += len(piece)
            yield piece

    def _body(self) -> Body:
        if not self.compressor:
            return Plain(self.packed)
        if 4 * total(self.shapes) <= _AT_ONCE_BYTES:
            return Plain(self._whole())
        return open_packed(self.packed, self.compressor, self.max_bytes + _SLACK_BYTES)

    def _whole(self) -> bytes:
        if not self.compressor:
            return bytes(self.packed)
        return decompress(self.packed, self.compressor, self.max_bytes + _SLACK_BYTES)
