"""Rice codes, so arranged that numpy reads and writes them without a loop over values.

The code of a value is its lower k bits, and in unary what is above them: so many zeros and a one.
The lower bits of all values stand together, and so do the unary parts. Arrays of bits are uint8,
one a bit. (S. W. Golomb, 1966; R. F. Rice, 1979.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Values = NDArray[np.int64]

BLOCK = 32
"""So many values after one another share a k."""
K_BITS = 4
_MOST_K = (1 << K_BITS) - 1


def blocks(count: int) -> int:
    """How many blocks `count` values have."""
    return -(-count // BLOCK)


def best_ks(values: Values) -> Values:
    """Of each block, the k up to 15 that makes its codes shortest: [blocks]."""
    padded = np.zeros(blocks(len(values)) * BLOCK, np.int64)
    padded[: len(values)] = values
    # The padding costs the same for all but its lower bits, which are no part of the codes.
    lengths = np.minimum(BLOCK, len(values) - BLOCK * np.arange(blocks(len(values))))
    table = padded.reshape(-1, BLOCK)
    most = min(_MOST_K, int(values.max(initial=0)).bit_length())
    costs = [(table >> k).sum(axis=1) + k * lengths for k in range(most + 1)]
    best: Values = np.argmin(costs, axis=0)
    return best


def best_k(values: Values, most: int) -> int:
    """The k <= `most` that makes the codes of all `values` shortest."""
    return min(range(most + 1), key=lambda k: k * len(values) + int((values >> k).sum()))


def lower_bits(values: Values, ks: Values) -> Bits:
    """The lower k bits of each value, from the highest: [sum of `ks`]."""
    ends = np.cumsum(ks)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for bit in range(int(ks.max(initial=0))):
        longer = ks > bit
        bits[ends[longer] - 1 - bit] = (values[longer] >> bit) & 1
    return bits


def from_lower_bits(bits: Bits, ks: Values) -> Values:
    """The numbers that `lower_bits` took apart; `bits` has as many as `ks` say."""
    ends = np.cumsum(ks)
    values = np.zeros(len(ks), np.int64)
    for bit in range(int(ks.max(initial=0))):
        longer = ks > bit
        values[longer] |= bits[ends[longer] - 1 - bit].astype(np.int64) << bit
    return values


def unary_bits(values: Values) -> Bits:
    """Each value as so many zeros and a one."""
    ends = np.cumsum(values + 1)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    bits[ends - 1] = 1
    return bits


def from_unary_bits(bits: Bits) -> tuple[Values, int]:
    """The values whose codes end in `bits`, and how many bits come after the last one."""
    ends = np.flatnonzero(bits)
    values = np.diff(ends, prepend=-1) - 1
    return values, len(bits) - 1 - int(ends[-1]) if len(ends) else len(bits)
