"""Tensors in their raw form, in plain Python, from docs/protocol.md (see `plain_messages`).

A tensor is its shape and a list of its values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping

from tests.vectors.plain_messages import check, read

Tensor = tuple[tuple[int, ...], list[float]]
Spec = tuple[str, str, tuple[int, ...]]  # name, dtype code, shape

_ITEMS = {"f2": 2, "f4": 4, "i1": 1, "u1": 1, "i4": 4, "i8": 8}


def pack_header(specs: list[Spec]) -> bytes:
    """A header, as short as msgpack allows."""

    def size(value: int, short: int, most: int, *codes: int) -> bytes:
        if value <= most:
            return bytes([short + value])
        code, form = next(
            (c, f) for c, f in zip(codes, "BHIQ", strict=False)
            if c and value < 1 << 8 * struct.calcsize(f)
        )  # fmt: skip
        return bytes([code]) + struct.pack(f">{form}", value)

    def text(value: str) -> bytes:
        return size(len(value.encode()), 0xA0, 31, 0xD9, 0xDA) + value.encode()

    out = size(len(specs), 0x90, 15, 0, 0xDC)
    for name, code, shape in specs:
        out += b"\x93" + text(name) + text(code) + size(len(shape), 0x90, 15, 0, 0xDC)
        out += b"".join(size(n, 0, 127, 0xCC, 0xCD, 0xCE, 0xCF) for n in shape)
    return out


def read_header(header: bytes) -> list[Spec]:
    raw, end = read(header)
    check(end == len(header) and isinstance(raw, list), "no header")
    check(
        all(
            isinstance(item, list) and len(item) == 3 and isinstance(item[2], list) for item in raw
        ),
        "no header",
    )
    specs = [(name, code, tuple(shape)) for name, code, shape in raw]
    names = [name for name, _, _ in specs]
    check(all(type(name) is str and 0 < len(name) <= 256 for name in names), "a bad name")
    check(len(specs) <= 4096, "too many tensors")
    check(names == sorted(set(names)), "names must ascend")
    for _, code, shape in specs:
        check(type(code) is str and code in _ITEMS and len(shape) <= 8, "a bad type or shape")
        check(all(type(n) is int and n >= 0 for n in shape), "a bad size")
    check(pack_header(specs) == header, "not the shortest header")
    return specs


def places(specs: list[Spec], end: int) -> Iterator[tuple[Spec, int, int]]:
    """Where each tensor's values begin and end, after a header that ends at `end`."""
    for name, code, shape in specs:
        start = -(-end // 16) * 16
        # A size of 0 must not hide the others.
        check(start + _ITEMS[code] * math.prod(max(n, 1) for n in shape) <= 1 << 30, "too large")
        end = start + _ITEMS[code] * math.prod(shape)
        yield (name, code, shape), start, end


def read_raw(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The dtype code, shape and bytes of each tensor."""
    check(data[:4] == b"FXT1" and len(data) >= 8, "no raw tensors")
    end = 8 + int.from_bytes(data[4:8], "little")
    check(end <= len(data), "the header does not end")
    found = {}
    for (name, code, shape), start, stop in places(read_header(data[8:end]), end):
        check(stop <= len(data), "the data does not end")
        check(not any(data[end:start]), "padding is not zero")
        found[name], end = (code, shape, data[start:stop]), stop
    check(end == len(data), "bytes after the last tensor")
    return found


def pack_floats(tensors: Mapping[str, Tensor]) -> bytes:
    """Float32 tensors in their raw form: what a digest is taken of."""
    header = pack_header([(name, "f4", tensors[name][0]) for name in sorted(tensors)])
    out = b"FXT1" + len(header).to_bytes(4, "little") + header
    for name in sorted(tensors):
        out += bytes(-len(out) % 16) + floats_to_bytes(tensors[name][1])
    return out


def read_floats(data: bytes) -> dict[str, Tensor]:
    """What `pack_floats` packed."""
    return {
        name: (shape, [value for (value,) in struct.iter_unpack("<f", found)])
        for name, (_, shape, found) in read_raw(data).items()
    }


def floats_to_bytes(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
