"""Words as byte planes: first the highest byte of every word, then the next, down to the lowest.

The bytes of a plane are alike (signs and exponents with signs and exponents), so a compressor finds
more in them than in words one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.body import Body
from edge_runtime.codecs.flat import piece_sizes


def to_planes(words: NDArray[Any]) -> bytes:
    """The planes of `words` [n], unsigned integers."""
    return _bytewise(words.astype(words.dtype.newbyteorder("<"), copy=False)).T[::-1].tobytes()


def from_planes(planes: bytes, dtype: str) -> NDArray[Any]:
    """The words, of a dtype such as ``u4``; `planes` has a whole number of them."""
    little = np.dtype(f"<{dtype}")
    words = np.empty(len(planes) // little.itemsize, little)
    _bytewise(words).T[::-1] = np.frombuffer(planes, np.uint8).reshape(little.itemsize, -1)
    return words.astype(dtype, copy=False)


def words_in_pieces(body: Body, start: int, count: int, dtype: str) -> Iterator[NDArray[Any]]:
    """The `count` words whose planes begin at the byte `start` and fill the rest of `body`."""
    cursors = [body.at(start + plane * count) for plane in range(np.dtype(dtype).itemsize)]
    for size in piece_sizes(count):
        yield from_planes(b"".join([cursor.read(size) for cursor in cursors]), dtype)
    cursors[-1].end()


def _bytewise(words: NDArray[Any]) -> NDArray[np.uint8]:
    """A view: a row a word, its lowest byte first."""
    return words.view(np.uint8).reshape(-1, words.dtype.itemsize)
