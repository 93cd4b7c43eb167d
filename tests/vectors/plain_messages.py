"""The protocol's messages as docs/protocol.md tells them, read in plain Python: nothing of ours.

This file, `plain_tensors` and `plain_codecs` read a device's side of the protocol without numpy,
msgpack or our code. What they read as our code does, a device in another language can read from
that page alone. Bad input is a `ValueError`.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from typing import Any

Schema = dict[str, tuple[int, list[tuple[str, str]]]]  # number (of parts: -1), fields with types

_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_SIZED = {
    0xC4: "B", 0xC5: "H", 0xC6: "I", 0xD9: "B", 0xDA: "H", 0xDB: "I",
    0xDC: "H", 0xDD: "I", 0xDE: "H", 0xDF: "I",
}  # fmt: skip
_MOVED = ("payload_bytes", "wire_bytes", "messages")


def check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def chunk_topic(federation: str, name: bytes, index: int) -> str:
    return f"fm4/{federation}/b/{base64.urlsafe_b64encode(name[:6]).decode()}/{index}"


def read(data: bytes, at: int = 0) -> tuple[Any, int]:
    """One msgpack value, and where it ends."""
    check(at < len(data), "the message ends too early")
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return (first if first < 0x80 else first - 256), at
    if first in (0xC2, 0xC3):
        return first == 0xC3, at
    if first in _NUMBERS:
        end = at + struct.calcsize(_NUMBERS[first])
        check(end <= len(data), "a number does not end")
        return struct.unpack(_NUMBERS[first], data[at:end])[0], end
    if first in _SIZED:
        end = at + struct.calcsize(_SIZED[first])
        check(end <= len(data), "a length does not end")
        (size,), at = struct.unpack(f">{_SIZED[first]}", data[at:end]), end
    else:
        check(first < 0xC0, f"no value begins with {first:#x}")
        size = first & (0x1F if first >= 0xA0 else 0x0F)
    if first in (0xDC, 0xDD) or 0x90 <= first < 0xA0:
        return _read_items(data, at, size)
    if first in (0xDE, 0xDF) or 0x80 <= first < 0x90:
        flat, at = _read_items(data, at, 2 * size)
        check(all(type(key) is str for key in flat[::2]), "a key is no text")
        return dict(zip(flat[::2], flat[1::2], strict=True)), at
    check(at + size <= len(data), "text or bytes do not end")
    found = data[at : at + size]
    return (found if 0xC4 <= first <= 0xC6 else found.decode()), at + size


def _read_items(data: bytes, at: int, size: int) -> tuple[list[Any], int]:
    check(size <= 2 * 4096, "too many items")
    items = []
    for _ in range(size):
        item, at = read(data, at)
        items.append(item)
    return items, at


def schema(page: str) -> Schema:
    """Messages and their parts as the tables of the page have them."""
    found: Schema = {}
    blocks = re.findall(r"^###+ (?:(\d+) )?(\w+)(.*?)(?=^#)", page, flags=re.M | re.S)
    for number, title, block in blocks:
        rows = re.findall(r"^\| `(\w+)` \| ([\w ]+?) \|", block, flags=re.M)
        if number or rows:
            found[title] = (int(number or -1), rows)
    return found


def read_message(payload: bytes, known: Schema) -> tuple[str, dict[str, Any]]:
    """A message's type and its fields."""
    check(len(payload) <= 278_528, "too long")
    raw, end = read(payload)
    check(end == len(payload) and isinstance(raw, list) and len(raw) > 1, "no message")
    check(type(raw[0]) is int and raw[0] == 4, "another version")
    names = [name for name, (number, _) in known.items() if number == raw[1] and number >= 0]
    check(type(raw[1]) is int and len(names) == 1, "an unknown type")
    return names[0], _fields(raw[2:], names[0], known)


def _fields(values: Any, name: str, known: Schema) -> dict[str, Any]:
    fields = known[name][1]
    check(isinstance(values, list) and len(values) == len(fields), f"{name}: a wrong count")
    found = {
        field: _typed(value, kind, known)
        for value, (field, kind) in zip(values, fields, strict=True)
    }
    check(_within_limits(name, found), f"{name}: beyond a limit")
    return found


def _within_limits(name: str, fields: dict[str, Any]) -> bool:
    """What the tables say of values."""
    held = fields.get("held", fields.get("dropped", []))
    if len(fields.get("digest", bytes(16))) != 16 or len(held) > 1024:
        return False
    if any(len(digest) != 16 for digest in held):
        return False
    if name == "Hello":
        return int(fields["memory_kills"]) >= -1
    if name == "Welcome":
        return 4096 <= int(fields["chunk_bytes"]) <= 262_144
    if name == "Chunk":
        return int(fields["index"]) >= 0
    if name == "BlobRef":
        return 1 <= int(fields["size_bytes"]) <= 1 << 30
    if name == "Artifact":
        return fields["base"] == b"" or (len(fields["base"]) == 16 and fields["frames"] != [])
    if name == "Want":
        return int(fields["first"]) >= 0 and 1 <= int(fields["count"]) <= 4096
    if name == "Moved":
        ways = [[fields[f"{way}_{what}"] for what in _MOVED] for way in ("up", "down")]
        return all(0 <= payload <= wire and count >= 0 for payload, wire, count in ways)
    return True


def _typed(value: Any, kind: str, known: Schema) -> Any:
    if kind.startswith("list of "):
        check(isinstance(value, list) and len(value) <= 4096, "no list")
        return [_typed(item, kind[8:], known) for item in value]
    if kind == "map of text to float":
        check(isinstance(value, dict) and len(value) <= 4096, "no map")
        return {_typed(k, "text", known): _typed(v, "float", known) for k, v in value.items()}
    if kind in known:
        return _fields(value, kind, known)
    if kind == "float" and type(value) is int:
        value = float(value)
    types = {"text": str, "int": int, "float": float, "bool": bool, "bytes": bytes}
    check(type(value) is types[kind], f"no {kind}")
    check(kind != "text" or len(value) <= 1024, "text is too long")
    check(kind != "float" or math.isfinite(value), "not finite")
    check(kind != "int" or -(2**63) <= value < 2**63, "out of range")
    return value
