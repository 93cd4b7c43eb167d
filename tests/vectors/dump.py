"""Annotated hex dumps of a message and of coded blobs, by the plain readers."""

from __future__ import annotations

from typing import Any

from tests.vectors.plain_codecs import Bits, Shapes, bfloat, open_blob, topk, varint
from tests.vectors.plain_messages import Schema, read

CODECS = ["", "raw", "fp16", "int8", "int4", "topk"]
_WIDTH = 12  # bytes a line


class Dump:
    """Lines: an offset, bytes, what they are."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self._data = data
        self._offset = offset
        self.lines: list[str] = []

    def add(self, start: int, end: int, what: str) -> None:
        for at in range(start, end, _WIDTH):
            found = self._data[at : min(end, at + _WIDTH)].hex(" ")
            text = f"{self._offset + at:04x}  {found:<{3 * _WIDTH}} {what if at == start else ''}"
            self.lines.append(text.rstrip())

    def bits(self, text: str, what: str) -> None:
        for at in range(0, len(text), 32):
            label = what if at == 0 else ""
            self.lines.append(f"      {text[at : at + 32]:<{3 * _WIDTH}} {label}".rstrip())


def message(payload: bytes, known: Schema) -> list[str]:
    """A message, field by field."""
    dump, number = Dump(payload), read(payload, _array_head(payload, 0)[0] + 1)[0]
    name, (_, fields) = next((n, f) for n, f in known.items() if f[0] == number)
    at, size = _array_head(payload, 0)
    dump.add(0, at, f"array of {size}")
    dump.add(at, at + 1, "version 4")
    dump.add(at + 1, at + 2, f"type {number}: {name}")
    at += 2
    for field, kind in fields:
        at = _field(dump, payload, at, field, kind, known)
    return dump.lines


def _field(dump: Dump, data: bytes, at: int, name: str, kind: str, known: Schema) -> int:
    value, end = read(data, at)
    part = kind.removeprefix("list of ")
    if part in known and value:
        start, size = _array_head(data, at)
        if part == kind:
            dump.add(at, start, f"{name}: {kind}, array of {size}")
            for inner, inner_kind in known[kind][1]:
                start = _field(dump, data, start, f"  {inner}", inner_kind, known)
            return end
        dump.add(at, start, f"{name}: array of {size}")
        for i in range(size):
            item, stop = read(data, start)
            dump.add(start, stop, f"  [{i}] {' '.join(map(_plain, item))}")
            start = stop
        return end
    if isinstance(value, dict):
        dump.add(at, at + 1, f"{name}: map of {len(value)}")
        start = at + 1
        for key in value:
            stop = read(data, read(data, start)[1])[1]
            dump.add(start, stop, f"  {key}: {value[key]:g}")
            start = stop
        return end
    dump.add(at, end, f"{name}: {_plain(value)}")
    return end


def _array_head(data: bytes, at: int) -> tuple[int, int]:
    """Where the items of an array begin, and how many they are."""
    if data[at] == 0xDC:
        return at + 3, int.from_bytes(data[at + 1 : at + 3], "big")
    return at + 1, data[at] & 0x0F


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def coded(blob: bytes, shapes: Shapes | None, title: str, offset: int = 0) -> list[str]:
    """A coded blob that is not compressed: its header, and an int8 or a topk body."""
    number, body, shapes, start = open_blob(blob, shapes)
    dump = Dump(blob, offset)
    dump.lines.append(f"{title}, {len(blob)} bytes")
    described = blob[0] & 4
    dump.add(0, 1, f"version 1, {'described' if described else 'not described'}, not compressed")
    dump.add(1, 2, f"codec {number}: {CODECS[number]}")
    if described:
        size, at = varint(blob, 2)
        dump.add(2, at, f"description of {size} bytes")
        dump.add(at, at + size, f"msgpack: {read(blob, at)[0]}".replace("'", '"'))
    if CODECS[number] == "topk":
        _topk(dump, body, shapes, start)
    else:
        _int8(dump, body, shapes, start)
    return dump.lines


def _topk(dump: Dump, body: bytes, shapes: Shapes, start: int) -> None:
    seen: list[Bits] = []
    values = topk(body, shapes, seen)
    count, at = varint(body, 0)
    m, head = body[at], 3 if body[at] == 7 else 5
    base, step = (bfloat(int.from_bytes(body[at + i : at + i + 2], "big")) for i in (1, 3))
    dump.add(start, start + at, f"n = {count} of {len(values)} values")
    dump.add(start + at, start + at + 1, f"M = {m}")
    dump.add(start + at + 1, start + at + 3, f"base {base:.6g}")
    if m < 7:
        dump.add(start + at + 3, start + at + 5, f"step {step:.6g}")
    dump.add(start + at + head, start + len(body), "bits:")
    bits = seen[0]
    ends = [*(mark for mark, _ in bits.marks[1:]), len(bits.text)]
    for (begin, what), end in zip(bits.marks, ends, strict=True):
        if end > begin:
            dump.bits(bits.text[begin:end], what)
    kept = ", ".join(f"[{i}] {value:.4g}" for i, value in enumerate(values) if value)
    dump.lines += [f"      = {kept}"]


def _int8(dump: Dump, body: bytes, shapes: Shapes, start: int) -> None:
    rows = 0
    for shape in shapes.values():
        rows += shape[0] if len(shape) > 1 else 1
    dump.add(start, start + rows, f"upper bytes of the {rows} steps")
    dump.add(start + rows, start + 2 * rows, "lower bytes of the steps")
    at = start + 2 * rows
    for name in sorted(shapes):
        shape = shapes[name]
        table = shape if len(shape) > 1 else (1, *shape)
        for row in range(table[0]):
            place = f"{name}[{row}]" if len(shape) > 1 else name
            dump.add(at, at + table[1], f"{place} in steps")
            at += table[1]
