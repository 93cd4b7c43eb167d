"""Unsigned integers in as few bytes as they need: seven bits a byte, the lowest first (LEB128)."""

from __future__ import annotations

from edge_runtime.errors import WireError

_MOST_BYTES = 5


def pack_varint(value: int) -> bytes:
    """`value` >= 0 as bytes; all but the last have their highest bit set."""
    packed = bytearray()
    while value > 0x7F:
        packed.append(0x80 | value & 0x7F)
        value >>= 7
    packed.append(value)
    return bytes(packed)


def unpack_varint(data: bytes, start: int = 0) -> tuple[int, int]:
    """The value that begins at `start`, and where it ends; `WireError` if it does not."""
    value = 0
    for index, byte in enumerate(data[start : start + _MOST_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte <= 0x7F:
            return value, start + index + 1
    raise WireError("bad-body", "a number does not end")
