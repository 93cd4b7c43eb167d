"""What must be refused: good bytes with one thing wrong."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack
import numpy as np

from edge_runtime.codecs.rice import unary_bits

MESSAGE, RAW, CODED, PROGRAM = "message", "raw tensors", "coded blob", "program frame"


def cases(files: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each: what it claims to be, what is wrong, its bytes, and shapes if it needs any."""
    found: list[tuple[str, str, bytes, dict[str, list[int]] | None]] = []
    found += [(MESSAGE, *case, None) for case in _messages(files["messages"])]
    found += [(RAW, *case, None) for case in _raw(bytes.fromhex(files["tensors"][0]["bytes"]))]
    found += [(CODED, *case) for case in _coded()]
    found += [(PROGRAM, *case, None) for case in _programs(files["programs"])]
    return [
        {"subject": subject, "wrong": wrong, "bytes": data.hex(), **_of(shapes)}
        for subject, wrong, data, shapes in found
    ]


def _of(shapes: dict[str, list[int]] | None) -> dict[str, Any]:
    return {} if shapes is None else {"shapes": shapes}


def _messages(good: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    by_type = {item["type"]: bytes.fromhex(item["bytes"]) for item in good}
    received = msgpack.unpackb(by_type["Received"])
    fetch = msgpack.unpackb(by_type["Fetch"])
    hello = msgpack.unpackb(by_type["Hello"])
    report = by_type["Report"]
    nan = report.replace(struct.pack(">d", 12.25), struct.pack(">d", float("nan")))

    def changed(raw: list[Any], at: int, value: Any) -> bytes:
        return bytes(msgpack.packb([*raw[:at], value, *raw[at + 1 :]]))

    return [
        ("no bytes", b""),
        ("a map, not an array", msgpack.packb({"version": 4})),
        ("version 3", changed(received, 0, 3)),
        ("a version that is a bool", changed(received, 0, True)),
        ("an unknown type", changed(received, 1, 14)),
        ("a field too few", msgpack.packb(received[:-1])),
        ("a field too many", msgpack.packb([*received, 0])),
        ("a bool where an int belongs", changed(received, 3, True)),
        ("a float where an int belongs", changed(received, 3, 1.0)),
        ("bytes where text belongs", changed(received, 2, b"s")),
        ("an int beyond 64 bits with sign", changed(received, 3, 2**63)),
        ("text of 1025 characters", changed(received, 2, "s" * 1025)),
        ("text that is not UTF-8", by_type["Rollcall"][:-1] + b"\xff"),
        ("nil", changed(received, 2, None)),
        ("a digest of 15 bytes", changed(fetch, 2, [[b"\1" * 15, 0, 1]])),
        ("text where bytes belong", changed(fetch, 2, [["d" * 16, 0, 1]])),
        ("a part with a field too many", changed(fetch, 2, [[b"\1" * 16, 0, 1, 0]])),
        ("a list of 4097", changed(hello, 5, [1] * 4097)),
        ("memory kills below -1", changed(hello, 14, -2)),
        ("an array that does not end", by_type["Received"][:-1]),
        ("a byte after the array", by_type["Received"] + b"\0"),
        ("an array that claims 2^32 - 1 items", b"\xdd\xff\xff\xff\xff\x04"),
        ("a number that is not finite", nan),
    ]


def _raw(good: bytes) -> list[tuple[str, bytes]]:
    end = 8 + int.from_bytes(good[4:8], "little")
    specs = msgpack.unpackb(good[8:end])

    def blob(header: bytes, data: bytes = b"") -> bytes:
        prefix = b"FXT1" + struct.pack("<I", len(header)) + header
        return prefix + bytes(-len(prefix) % 16) + data

    long_format = b"\xdc" + struct.pack(">H", len(specs)) + good[9:end]
    return [
        ("another magic", b"FXT2" + good[4:]),
        ("a header that does not end", good[: end - 1]),
        ("a header in a longer format", blob(long_format, good[-(-end // 16) * 16 :])),
        ("padding that is not zero", good[:end] + b"\1" + good[end + 1 :]),
        ("data that does not end", good[:-1]),
        ("a byte after the data", good + b"\0"),
        ("names that do not ascend", blob(msgpack.packb([["b", "f4", []], ["a", "f4", []]]))),
        ("one name twice", blob(msgpack.packb([["a", "f4", [0]], ["a", "f4", [0]]]))),
        ("an unknown dtype", blob(msgpack.packb([["a", "f8", [1]]]), bytes(8))),
        ("nine dimensions", blob(msgpack.packb([["a", "f4", [1] * 9]]), bytes(4))),
        ("more values than bytes", blob(msgpack.packb([["a", "f4", [2**27]]]), bytes(4))),
    ]


def _coded() -> list[tuple[str, bytes, dict[str, list[int]]]]:
    vector = {"x": [4]}
    zeros = b"\x10\x01" + bytes(16)

    def deflated(body: bytes) -> bytes:
        stream = zlib.compressobj(9, zlib.DEFLATED, -15)
        return stream.compress(body) + stream.flush()

    def topk(head: bytes, bits: str) -> bytes:
        whole = bits + "0" * (-len(bits) % 8)
        return b"\x10\x05" + head + int(f"1{whole}", 2).to_bytes(len(whole) // 8 + 1, "big")[1:]

    other = msgpack.packb([["x", "f4", []]])
    # n = 1, M = 7, base 1.0; a sign, G = 0, and a gap.
    signs_alone = b"\x01\x07\x3f\x80"
    with_magnitude = b"\x01\x00\x3f\x80\x3f\x80"
    magnitude = "".join(map(str, unary_bits(np.array([128]))))
    return [
        ("one byte", b"\x10", vector),
        ("version 2", b"\x20" + zeros[1:], vector),
        ("bit 3 set", b"\x18" + zeros[1:], vector),
        ("compressor 3", b"\x13" + zeros[1:], vector),
        ("codec 6", b"\x10\x06" + bytes(16), vector),
        ("an unknown codec by name", b"\x10\x00\x09not-there" + bytes(16), vector),
        ("a description that does not end", b"\x14\x01\x20\x91", vector),
        ("a description of other tensors", b"\x14\x01\x08" + other + bytes(4), vector),
        ("raw: a byte too few", zeros[:-1], vector),
        ("raw: a byte too many", zeros + b"\0", vector),
        ("raw: a value that is not finite", b"\x10\x01" + b"\xff" * 4 + bytes(12), vector),
        ("fp16: an exponent of 127", b"\x10\x02\x7f" + bytes(8), vector),
        ("fp16: infinity", b"\x10\x02\x00\x7c" + bytes(7), vector),
        ("int8: a byte too few", b"\x10\x03" + bytes(5), vector),
        ("int8: a step that is not finite", b"\x10\x03\x7f\x80\x01\x00\x00\x00", vector),
        ("int4: a byte too many", b"\x10\x04" + bytes(5), vector),
        ("topk: n above N", topk(b"\x05\x07\x3f\x80", "0" * 40), vector),
        ("topk: n does not end", b"\x10\x05\xff\xff\xff\xff\xff\x01", vector),
        ("topk: bytes after n = 0", b"\x10\x05\x00\x00", vector),
        ("topk: M = 8", b"\x10\x05\x01\x08\x3f\x80\x3f\x80\x08", vector),
        ("topk: codes that do not end", topk(signs_alone, "0" + "0000" + "000"), vector),
        ("topk: a place beyond the last", topk(signs_alone, "0" + "0000" + "00001"), vector),
        ("topk: a bit after the last code", topk(signs_alone, "0" + "0000" + "011"), vector),
        ("topk: a byte after the last code", topk(signs_alone, "0" + "0000" + "1") + b"\0", vector),
        ("topk: a magnitude of 128", topk(with_magnitude, "0" + "0000" + "1" + magnitude), vector),
        ("topk: a place in no row", topk(signs_alone, "1" + "00" + "11" + "0" + "0000" + "1"),
         {"x": [2, 2]}),
        ("zlib: damaged", b"\x11\x01\xff\xff\xff", vector),
        ("zlib: a header", b"\x11\x01" + zlib.compress(bytes(16)), vector),
        ("zlib: bytes after its end", b"\x11\x01" + deflated(bytes(16)) + b"\0", vector),
        ("zlib: more than 4 N + 1024 bytes", b"\x11\x01" + deflated(bytes(10_000)), vector),
    ]  # fmt: skip


def _programs(good: dict[str, Any]) -> list[tuple[str, bytes]]:
    file = bytes.fromhex(good["file"])
    return [
        ("no bytes", b""),
        ("compressor 3", b"\3" + file),
        ("a seal that does not fit", b"\0" + bytes([file[0] ^ 1]) + file[1:]),
        ("damaged", b"\1" + b"\xff" + file),
    ]
