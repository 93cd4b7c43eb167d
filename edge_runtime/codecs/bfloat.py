"""Scales in 16 bits: the upper half of a binary32, its whole range at 8 bits of precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST = float(np.finfo(np.float32).max)
_LARGEST_BITS = 0x7F7F


def up(values: ArrayLike) -> NDArray[np.uint16]:
    """The bits of the smallest such number that is at least each of `values` >= 0 (float64).

    Those beyond the largest number become the largest.
    """
    exact = np.asarray(values, np.float64)
    single = np.minimum(exact, LARGEST).astype(np.float32)
    bits = single.view(np.uint32) + (single < exact)
    upper: NDArray[Any] = np.minimum((bits + np.uint32(0xFFFF)) >> 16, _LARGEST_BITS)
    return upper.astype(np.uint16)


def down(value: float) -> int:
    """The bits of the largest such number that is at most `value` >= 0."""
    bits = int(up(value))
    return bits - int(widen(bits) > value)


def nearest(value: float) -> int:
    """The bits of the number that is nearest to `value` >= 0; the lower one of two."""
    above = int(up(value))
    below = down(value)
    return above if float(widen(above)) - value < value - float(widen(below)) else below


def widen(bits: ArrayLike) -> NDArray[np.float32]:
    """The numbers as float32: exact."""
    wide: NDArray[Any] = np.asarray(bits, np.uint32) << 16
    return wide.astype(np.uint32, copy=False).view(np.float32)
