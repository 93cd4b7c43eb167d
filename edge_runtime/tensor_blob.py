"""Tensors in their raw form: the bytes whose digest names a content.

A raw blob is::

    4 bytes   magic ``FXT1`` (the 1 is the version)
    4 bytes   length of the header, unsigned, little-endian
    header    msgpack: [[name, dtype code, [dimension, ...]], ...], names ascending
    data      per tensor: zero bytes up to a multiple of 16, then its elements, little-endian,
              in C order

Given tensors have one encoding, and `unpack_tensors` takes no other: equal tensors give equal
bytes, so equal digests. Values are not looked at here: a NaN passes.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import MAX_BLOB_BYTES

Tensors = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

MAX_TENSORS = 4096
MAX_NAME = 256
MAX_RANK = 8
MAX_HEADER_BYTES = 1 << 20

_MAGIC = b"FXT1"
_PREFIX = struct.Struct("<4sI")
# Python's bytes start at a multiple of 16, so a tensor's view is aligned for every dtype.
_ALIGN_BYTES = 16
_DTYPES = {code: np.dtype(f"<{code}") for code in ("f2", "f4", "i1", "u1", "i4", "i8")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
# Checked by msgpack before it allocates; maps, bytes and extensions have no place in a header.
_UNPACK_LIMITS = {
    "max_str_len": 4 * MAX_NAME,
    "max_array_len": MAX_TENSORS,
    "max_map_len": 0,
    "max_bin_len": 0,
    "max_ext_len": 0,
}
_Spec = tuple[str, str, tuple[int, ...]]  # name, dtype code, shape


def pack_tensors(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """The blob of these tensors; `WireError` if their dtype, names or size forbid it."""
    specs = [(name, _code(name, tensors[name]), tensors[name].shape) for name in sorted(tensors)]
    header = _pack_header(specs)
    parts: list[bytes | memoryview] = [_PREFIX.pack(_MAGIC, len(header)), header]
    end = _PREFIX.size + len(header)
    for (name, code, _), offset, size_bytes in list(_places(specs, end)):
        array = np.asarray(tensors[name], dtype=_DTYPES[code], order="C")
        parts += [bytes(offset - end), array.data]
        end = offset + size_bytes
    return b"".join(parts)


def unpack_tensors(data: bytes) -> Tensors:
    """The tensors: read-only views into `data`, copied only where not aligned in memory."""
    if len(data) < _PREFIX.size:
        raise WireError("bad-tensors", f"{len(data)} bytes are too few")
    magic, header_bytes = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise WireError("bad-tensors", f"expected the magic {_MAGIC!r}, got {magic!r}")
    end = _PREFIX.size + header_bytes
    if header_bytes > MAX_HEADER_BYTES or end > len(data):
        raise WireError("bad-tensors", f"a header of {header_bytes} bytes does not fit")
    specs = _unpack_header(bytes(data[_PREFIX.size : end]))
    tensors: Tensors = {}
    for (name, code, shape), offset, size_bytes in _places(specs, end):
        if offset + size_bytes > len(data):
            raise WireError("bad-tensors", f"the data ends before the end of {name!r}")
        if any(data[end:offset]):
            raise WireError("bad-tensors", f"the padding before {name!r} is not zero")
        view = np.ndarray(shape, _DTYPES[code], buffer=data, offset=offset)
        tensors[name] = view if view.flags.aligned else view.copy()
        tensors[name].flags.writeable = False
        end = offset + size_bytes
    if end != len(data):
        raise WireError("bad-tensors", f"{len(data) - end} bytes after the last tensor")
    return tensors


class NewBlob:
    """A raw blob of float32 tensors of these shapes, which are 0 until somebody writes to them.

    What `pack_tensors` would make of `tensors`, without their memory.
    """

    def __init__(self, shapes: Shapes) -> None:
        specs = [(name, "f4", tuple(shapes[name])) for name in sorted(shapes)]
        header = _pack_header(specs)
        begin = _PREFIX.size + len(header)
        places = list(_places(specs, begin))
        end = places[-1][1] + places[-1][2] if places else begin
        # BytesIO takes over this object, and getvalue() gives it back: there is no second copy.
        self._buffer = io.BytesIO(bytes(end))
        self._buffer.write(_PREFIX.pack(_MAGIC, len(header)) + header)
        # Unlike np.ndarray(buffer=...), this keeps the buffer exported: `finish` relies on it.
        data = np.frombuffer(self._buffer.getbuffer(), np.uint8)
        self.tensors: Tensors = {
            name: data[offset : offset + size_bytes].view(_DTYPES[code]).reshape(shape)
            for (name, code, shape), offset, size_bytes in places
        }

    def finish(self) -> bytes:
        """The blob, given away; `BufferError` if somebody could still write to its tensors."""
        self.tensors = {}
        data = self._buffer.getvalue()
        self._buffer.close()
        return data


def pack_shapes(shapes: Shapes) -> bytes:
    """The header of a raw blob of float32 tensors of these shapes, alone."""
    return _pack_header([(name, "f4", tuple(shapes[name])) for name in sorted(shapes)])


def unpack_shapes(header: bytes) -> dict[str, tuple[int, ...]]:
    """The shapes that `pack_shapes` packed; `WireError` for any other bytes."""
    specs = _unpack_header(header)
    for (name, code, _), _, _ in _places(specs, 0):
        if code != "f4":
            raise WireError("bad-tensors", f"{name!r} is {code}; expected f4")
    return {name: shape for name, _, shape in specs}


def _code(name: str, array: NDArray[Any]) -> str:
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        raise WireError("bad-tensors", f"{name!r} is {array.dtype}; expected one of {_names()}")
    return code


def _names() -> str:
    return ", ".join(dtype.name for dtype in _CODES)


def _pack_header(specs: list[_Spec]) -> bytes:
    _check_specs(specs)
    try:
        header: bytes = msgpack.packb(specs)
    except UnicodeEncodeError:
        raise WireError("bad-tensors", "a tensor's name is not valid Unicode") from None
    if len(header) > MAX_HEADER_BYTES:
        raise WireError("bad-tensors", f"a header of {len(header)} bytes is too long")
    return header


def _unpack_header(header: bytes) -> list[_Spec]:
    try:
        raw = msgpack.unpackb(header, **_UNPACK_LIMITS)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise WireError("bad-tensors", f"header: {type(error).__name__}") from None
    if not isinstance(raw, list) or not all(
        isinstance(item, list) and len(item) == 3 and isinstance(item[2], list) for item in raw
    ):
        raise WireError("bad-tensors", "header: expected a list of [name, dtype code, shape]")
    specs = [(name, code, tuple(shape)) for name, code, shape in raw]
    if _pack_header(specs) != header:
        raise WireError("bad-tensors", "header: not the shortest msgpack")
    return specs


def _check_specs(specs: list[_Spec]) -> None:
    """`WireError` unless every name, dtype and shape is within the limits; nothing is allocated."""
    if len(specs) > MAX_TENSORS:
        raise WireError("bad-tensors", f"{len(specs)} tensors; at most {MAX_TENSORS} are allowed")
    before = ""
    for name, code, shape in specs:
        if type(name) is not str or not 0 < len(name) <= MAX_NAME:
            raise WireError("bad-tensors", f"a name has 1 to {MAX_NAME} characters")
        if name <= before:
            raise WireError("bad-tensors", f"{name!r}: names must ascend, each once")
        if type(code) is not str or code not in _DTYPES:
            raise WireError("bad-tensors", f"{name!r}: unknown dtype; expected one of {_names()}")
        if len(shape) > MAX_RANK or not all(
            type(size) is int and 0 <= size <= MAX_BLOB_BYTES for size in shape
        ):
            raise WireError("bad-tensors", f"{name!r}: expected up to {MAX_RANK} sizes, each >= 0")
        before = name


def _places(specs: list[_Spec], end: int) -> Iterator[tuple[_Spec, int, int]]:
    """Each tensor with its offset and size in bytes, after a header that ends at `end`."""
    for spec in specs:
        name, code, shape = spec
        offset = -(-end // _ALIGN_BYTES) * _ALIGN_BYTES
        # An empty dimension must not hide others that overflow numpy's index type.
        size_bytes = _DTYPES[code].itemsize * math.prod(max(size, 1) for size in shape)
        if offset + size_bytes > MAX_BLOB_BYTES:
            raise WireError("bad-tensors", f"{name!r}: a blob has at most {MAX_BLOB_BYTES} bytes")
        end = offset + (size_bytes if all(shape) else 0)
        yield spec, offset, end - offset
