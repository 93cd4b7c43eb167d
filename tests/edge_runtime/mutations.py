"""Bytes that are nearly right: what a broken or a hostile peer may send."""

from __future__ import annotations

import random
from collections.abc import Sequence

# Headers of msgpack with the longest, the shortest and one more than the allowed length; numbers
# at the ends of their range, or not finite. As parts of other formats: long counts and lengths.
EXTREMES = [
    b"\xdc\xff\xff", b"\xdc\x10\x00", b"\xdc\x10\x01", b"\xdd\xff\xff\xff\xff", b"\x90", b"\x9f",
    b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x80", b"\x8f",
    b"\xc4\xff", b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc4\x00",
    b"\xd9\xff", b"\xda\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xa0", b"\xbf",
    b"\xc7\xff\x01", b"\xc9\xff\xff\xff\xff\xff", b"\xd6\xff\x00\x00\x00\x01",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xcf\x7f" + b"\xff" * 7, b"\xff", b"\x00",
    b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6), b"\xca\xff\x80\x00\x00",
    b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xff" * 4, b"\x80" * 9 + b"\x01", b"\xff" * 9 + b"\x7f",
    b"\x00\x00\x80\x7f", b"\x00\x7c", b"\x00\x00\xc0\x7f",
]  # fmt: skip


def mutant(valid: Sequence[bytes], rng: random.Random) -> bytes:
    """One of `valid`, changed in one to four places; sometimes with the end of another."""
    data = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + 1] = rng.randbytes(1)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + rng.randrange(1, 5)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                other = rng.choice(valid)
                data[at:] = other[rng.randrange(len(other)) :]
            case 6:
                extreme = rng.choice(EXTREMES)
                data[at : at + rng.choice((1, len(extreme)))] = extreme
            case _ if data:  # near the start, where versions, types and lengths are
                data[rng.randrange(min(len(data), 24))] = rng.randrange(256)
    return bytes(data)
