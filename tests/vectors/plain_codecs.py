"""Coded blobs and contents, in plain Python, from docs/protocol.md (see `plain_messages`)."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

from tests.vectors.plain_messages import check
from tests.vectors.plain_tensors import Tensor, pack_floats, places, read_header

Shapes = Mapping[str, tuple[int, ...]]


def single(value: float) -> float:
    """`value` rounded to binary32, as each operation has to be."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        raise ValueError("not finite") from None
    check(math.isfinite(rounded), "not finite")
    return float(rounded)


def bfloat(bits: int) -> float:
    """A number whose upper 16 bits these are."""
    return float(struct.unpack(">f", struct.pack(">HH", bits, 0))[0])


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(5):
        check(at + i < len(data), "a number does not end")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError("a number does not end")


def total(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def inflate(data: bytes, compressor: int, most: int) -> bytes:
    """What was compressed: 0 not at all, 1 raw deflate, 2 zstd."""
    check(compressor <= 2, "an unknown compressor")
    if compressor == 0:
        return data
    if compressor == 2:
        import zstandard

        try:
            size = zstandard.frame_content_size(data)
            check(0 <= size <= most, "too long, or it does not say how long")
            return bytes(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
        except zstandard.ZstdError:
            raise ValueError("damaged") from None
    stream = zlib.decompressobj(-15)
    try:
        content = stream.decompress(data, most + 1)
    except zlib.error:
        raise ValueError("damaged") from None
    check(len(content) <= most and stream.eof and not stream.unused_data, "too long, or damaged")
    return content


def open_blob(
    data: bytes, shapes: Shapes | None, most: int = 1 << 20
) -> tuple[int, bytes, Shapes, int]:
    """The codec's number, the body, the shapes of a coded blob, and where the body began.

    `most` bytes may its values take as float32.
    """
    check(len(data) >= 2 and data[0] >> 4 == 1 and not data[0] & 8, "no coded blob")
    check(1 <= data[1] <= 5, "an unknown codec")
    at = 2
    if data[0] & 4:
        size, at = varint(data, at)
        check(at + size <= len(data), "the description does not end")
        specs = read_header(data[at : at + size])
        check(all(code == "f4" for (_, code, _), _, _ in places(specs, 0)), "not float32")
        described = {name: shape for name, _, shape in specs}
        check(shapes in (None, described), "other tensors")
        shapes, at = described, at + size
    check(shapes is not None, "which tensors?")
    assert shapes is not None
    check(4 * total(shapes) <= most, "too many values")
    return data[1], inflate(data[at:], data[0] & 3, 4 * total(shapes) + 1024), shapes, at


def decode(data: bytes, shapes: Shapes | None = None) -> dict[str, Tensor]:
    """The tensors of a coded blob."""
    number, body, shapes, _ = open_blob(data, shapes)
    codec: Callable[[bytes, Shapes], list[float]] = [_raw, _fp16, _int8, _int4, topk][number - 1]
    rest = iter([single(value) for value in codec(body, shapes)])
    return {
        name: (tuple(shapes[name]), [next(rest) for _ in range(math.prod(shapes[name]))])
        for name in sorted(shapes)
    }


def _words(body: bytes, count: int, size: int) -> list[int]:
    """`count` words of `size` bytes from byte planes."""
    check(len(body) == count * size, "a wrong length")
    return [int.from_bytes(body[i::count], "big") for i in range(count)]


def _raw(body: bytes, shapes: Shapes) -> list[float]:
    words = [w >> 1 | (w & 1) << 31 for w in _words(body, total(shapes), 4)]
    return [float(struct.unpack(">f", struct.pack(">I", w))[0]) for w in words]


def _fp16(body: bytes, shapes: Shapes) -> list[float]:
    check(len(body) == 1 + 2 * total(shapes), "a wrong length")
    (exponent,) = struct.unpack("b", body[:1])
    check(-126 <= exponent <= 126, "a bad exponent")
    halves = (struct.pack(">H", word) for word in _words(body[1:], total(shapes), 2))
    return [float(struct.unpack(">e", half)[0]) * 2.0**exponent for half in halves]


def _int8(body: bytes, shapes: Shapes) -> list[float]:
    return _quantized(body, shapes, lambda rest: list(struct.unpack(f"{len(rest)}b", rest)), 1)


def _int4(body: bytes, shapes: Shapes) -> list[float]:
    def halves(rest: bytes) -> list[int]:
        nibbles = [half for byte in rest for half in (byte >> 4, byte & 15)]
        return [half - 16 if half > 7 else half for half in nibbles]

    return _quantized(body, shapes, halves, 2)


def _quantized(
    body: bytes, shapes: Shapes, unpack: Callable[[bytes], list[int]], per_byte: int
) -> list[float]:
    lengths = [length for _, rows, length in _tables(shapes) for _ in range(rows)]
    start = 2 * len(lengths)
    check(len(body) == start - (-total(shapes) // per_byte), "a wrong length")
    steps = [bfloat(word) for word in _words(body[:start], len(lengths), 2)]
    of_value = [step for step, length in zip(steps, lengths, strict=True) for _ in range(length)]
    return [q * step for q, step in zip(unpack(body[start:]), of_value, strict=False)]


def _tables(shapes: Shapes) -> Iterator[tuple[bool, int, int]]:
    """Of each tensor that has values: whether it is a matrix, its rows, a row's values."""
    for name in sorted(shapes):
        size, matrix = math.prod(shapes[name]), len(shapes[name]) > 1
        rows = shapes[name][0] if matrix else 1
        if size:
            yield matrix, rows, size // rows


class Bits:
    """Bits from the highest of each byte on. `marks` tells where what is called how begins."""

    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0
        self.marks: list[tuple[int, str]] = []

    def mark(self, what: str) -> None:
        self.marks.append((self.at, what))

    def take(self, count: int) -> int:
        check(self.at + count <= len(self.text), "too few bits")
        self.at += count
        return int(self.text[self.at - count : self.at] or "0", 2)

    def unary(self) -> int:
        end = self.text.find("1", self.at)
        check(end >= 0, "too few bits")
        zeros, self.at = end - self.at, end + 1
        return zeros


def topk(body: bytes, shapes: Shapes, seen: list[Bits] | None = None) -> list[float]:
    values = [0.0] * total(shapes)
    check(len(body) <= 2 * len(values) + 64, "too long")
    n, at = varint(body, 0)
    check(n <= len(values) and (n > 0 or at == len(body)), "too many values")
    if n == 0:
        return values
    head = 3 if body[at : at + 1] == b"\x07" else 5
    check(len(body) >= at + head and body[at] <= 7, "a bad head")
    m = body[at]
    base = bfloat(int.from_bytes(body[at + 1 : at + 3], "big"))
    step = bfloat(int.from_bytes(body[at + 3 : at + 5], "big")) if m < 7 else 0.0
    bits = Bits(body[at + head :])
    if seen is not None:
        seen.append(bits)
    places: list[int] = []
    start = 0
    bits.mark("areas")
    for matrix, rows, columns in _tables(shapes):
        all_rows, all_columns = list(range(rows)), list(range(columns))
        if matrix and bits.take(1):
            all_rows = [row for row in all_rows if bits.take(1)]
            all_columns = [column for column in all_columns if bits.take(1)]
        places += [start + row * columns + column for row in all_rows for column in all_columns]
        start += rows * columns
    bits.mark("signs")
    signs = [bits.take(1) for _ in range(n)]
    bits.mark("Rice parameters of the gaps")
    ks = [bits.take(4) for _ in range(-(-n // 32))]
    bits.mark("lower bits of the gaps")
    gaps = [bits.take(ks[i // 32]) for i in range(n)]
    bits.mark("lower bits of the magnitudes")
    magnitudes = [bits.take(m) if m < 7 else 0 for _ in range(n)]
    bits.mark("unary parts of the gaps")
    gaps = [gap | bits.unary() << ks[i // 32] for i, gap in enumerate(gaps)]
    bits.mark("unary parts of the magnitudes")
    if m < 7:
        magnitudes = [magnitude | bits.unary() << m for magnitude in magnitudes]
    bits.mark("zero bits up to a whole byte")
    rest = bits.text[bits.at :]
    check(len(rest) < 8 and "1" not in rest, "bits after the last code")
    check(max(magnitudes) <= 127, "too large a magnitude")
    number = -1
    for sign, gap, magnitude in zip(signs, gaps, magnitudes, strict=True):
        number += 1 + gap
        check(number < len(places), "a place beyond the last")
        value = single(base + single(magnitude * step)) if m < 7 else base
        values[places[number]] = -value if sign else value
    return values


def add(tensors: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each value plus its change, also where that is 0."""
    return {
        name: (shape, [single(a + b) for a, b in zip(values, delta[name][1], strict=True)])
        for name, (shape, values) in tensors.items()
    }


def build(base: Mapping[str, Tensor] | None, frames: list[bytes]) -> bytes:
    """The content that frames lead to, in its raw form."""
    rest = list(frames)
    tensors = dict(decode(rest.pop(0)) if base is None else base)
    for frame in rest:
        tensors = add(tensors, decode(frame, {name: shape for name, (shape, _) in tensors.items()}))
    return pack_floats(tensors)


def open_program(frame: bytes, most: int) -> bytes:
    """The program file in a frame."""
    check(len(frame) > 0 and frame[0] <= 2, "no program")
    file = inflate(frame[1:], frame[0], most)
    check(file[-40:-32] == b"FLXM\1\0\0\0", "no seal")
    check(hashlib.sha256(file[:-32]).digest() == file[-32:], "another seal")
    return file
