"""Bytes made shorter: zstd where both sides have it, else zlib; bounded before anything allocates.

| name   | format                                                    | needs              |
|--------|-----------------------------------------------------------|--------------------|
| `zlib` | raw deflate: neither header nor checksum                  | nothing            |
| `zstd` | one zstd frame that says how long its content is          | the zstandard package |

Neither adds a checksum: whoever takes a blob has checked its digest.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import zlib
from typing import Any

from edge_runtime.codecs.body import Body, Cursor, Plain
from edge_runtime.errors import WireError

log = logging.getLogger("flexmoe.device")

COMPRESSORS = ("zlib", "zstd")
"""All that a blob may be compressed with; what this side has: `own_compressors`."""

_RAW_DEFLATE = -15
# Weights and changes repeat no strings: what can be gained is in how often each byte occurs. That
# differs from one byte plane or tensor to the next, so both make a new table every 8 KiB or so.
_ZLIB_LEVEL = 6
_ZLIB_MEMORY_LEVEL = 7
_ZSTD_LEVEL = 1
_ZSTD_BLOCK_BYTES = 8192
# A stream holds a window of what it made; a frame of ours asks for half of this.
_ZSTD_MOST_WINDOW_BYTES = 1 << 20
_READ_BYTES = 1 << 14
_SKIP_BYTES = 1 << 16


@functools.cache
def own_compressors() -> tuple[str, ...]:
    """The names of what this side can compress and decompress with."""
    if importlib.util.find_spec("zstandard") is None:
        return ("zlib",)
    try:
        _zstandard()
    except Exception as error:  # a broken package raises what it likes
        log.warning("the zstandard package cannot be imported (%s); zlib is used", error)
        return ("zlib",)
    return COMPRESSORS


def compress(data: bytes, name: str) -> bytes:
    """`data` compressed with `name`, one of `own_compressors`."""
    if name == "zstd":
        return _zstd(data)
    deflate = zlib.compressobj(
        _ZLIB_LEVEL, zlib.DEFLATED, _RAW_DEFLATE, _ZLIB_MEMORY_LEVEL, zlib.Z_RLE
    )
    return deflate.compress(data) + deflate.flush()


def decompress(data: bytes | memoryview, name: str, max_bytes: int) -> bytes:
    """What was compressed; `WireError` if it is no such data, or has more than `max_bytes`."""
    return _unzstd(data, max_bytes) if name == "zstd" else _inflate(data, max_bytes)


def open_packed(data: memoryview, name: str, max_bytes: int) -> Body:
    """What `decompress` gives, made while it is read: each cursor decompresses for itself.

    `WireError` as with `decompress`, but what is wrong may be found by a cursor, and of zlib data
    nobody asks how much there is. It takes no memory for more than a few pieces.
    """
    if name != "zstd":
        return _Inflated(data)
    size_bytes = _zstd_size_bytes(data, max_bytes)
    if _zstandard().get_frame_parameters(data).window_size > _ZSTD_MOST_WINDOW_BYTES:
        return Plain(_unzstd(data, max_bytes))  # a window for each cursor would be more
    return _Unzstd(data, size_bytes)


def _zstd(data: bytes) -> bytes:
    zstandard = _zstandard()
    stream = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj(size=len(data))
    parts: list[bytes] = []
    for start in range(0, len(data), _ZSTD_BLOCK_BYTES):
        if start:
            parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        parts.append(stream.compress(data[start : start + _ZSTD_BLOCK_BYTES]))
    return b"".join([*parts, stream.flush()])


def _inflate(data: bytes | memoryview, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(_RAW_DEFLATE)
    try:
        # One byte more than allowed tells a content that is too long from one that just fits.
        content = stream.decompress(data, max_bytes + 1)
    except zlib.error:
        raise _damaged("zlib") from None
    if len(content) > max_bytes:
        raise _too_long("zlib", max_bytes)
    if not stream.eof or stream.unused_data:
        raise _other_end("zlib")
    return content


class _Inflated:
    """The content of zlib data. Its end is where a cursor finds it."""

    size_bytes = None

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def at(self, start: int) -> Cursor:
        return _skip(_InflateCursor(self._data), start)


class _InflateCursor:
    def __init__(self, data: memoryview) -> None:
        self._stream = zlib.decompressobj(_RAW_DEFLATE)
        self._rest = data
        self._begun: bytes | memoryview = b""  # what was read from `_rest` and is not decompressed

    def read(self, size_bytes: int) -> bytes:
        parts, missing_bytes = [], size_bytes
        while missing_bytes:
            part = self._next(missing_bytes)
            if not part:
                raise _other_end("zlib")
            parts.append(part)
            missing_bytes -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        if self._next(1) or not self._stream.eof or self._stream.unused_data or len(self._rest):
            raise _other_end("zlib")

    def _next(self, most_bytes: int) -> bytes:
        """At least a byte of what follows; nothing at its end."""
        while True:
            try:
                part = self._stream.decompress(self._begun, most_bytes)
            except zlib.error:
                raise _damaged("zlib") from None
            self._begun = self._stream.unconsumed_tail
            if part or self._stream.eof or not len(self._rest):
                return part
            self._begun, self._rest = self._rest[:_READ_BYTES], self._rest[_READ_BYTES:]


def _unzstd(data: bytes | memoryview, max_bytes: int) -> bytes:
    size_bytes = _zstd_size_bytes(data, max_bytes)
    zstandard = _zstandard()
    try:
        content: bytes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        raise _damaged("zstd") from None
    if len(content) != size_bytes:
        raise _other_end("zstd")
    return content


class _Unzstd:
    """The content of a zstd frame."""

    def __init__(self, data: memoryview, size_bytes: int) -> None:
        if _zstd_frame_bytes(data) != len(data):  # a stream would not notice
            raise _other_end("zstd")
        self._data = data
        self.size_bytes = size_bytes

    def at(self, start: int) -> Cursor:
        return _skip(_UnzstdCursor(self._data), start)


class _UnzstdCursor:
    def __init__(self, data: memoryview) -> None:
        self._stream = _zstandard().ZstdDecompressor().stream_reader(data)

    def read(self, size_bytes: int) -> bytes:
        piece = self._next(size_bytes)
        if len(piece) < size_bytes:
            raise _other_end("zstd")
        return piece

    def end(self) -> None:
        if self._next(1):
            raise _other_end("zstd")

    def _next(self, most_bytes: int) -> bytes:
        try:
            piece: bytes = self._stream.read(most_bytes)
        except _zstandard().ZstdError:
            raise _damaged("zstd") from None
        return piece


def _zstd_size_bytes(data: bytes | memoryview, max_bytes: int) -> int:
    """How long the content of a frame is, as it says; `WireError` if that is too much."""
    if "zstd" not in own_compressors():
        raise WireError("unknown-codec", "zstd; install the extra `zstd` to read it")
    zstandard = _zstandard()
    try:
        size_bytes: int = zstandard.frame_content_size(data)
    except zstandard.ZstdError:
        raise _damaged("zstd") from None
    if size_bytes < 0:
        raise WireError("bad-compression", "the zstd frame does not say how long it is")
    if size_bytes > max_bytes:
        raise _too_long("zstd", max_bytes)
    return size_bytes


def _zstd_frame_bytes(data: memoryview) -> int:
    """How long the frame is that `data` begins with, by its blocks' headers (RFC 8878, 3.1.1)."""
    zstandard = _zstandard()
    end: int = zstandard.frame_header_size(data)
    last = False
    while not last:
        header = int.from_bytes(data[end : end + 3], "little")
        last, repeated, size_bytes = bool(header & 1), header >> 1 & 3 == 1, header >> 3
        end += 3 + (1 if repeated else size_bytes)
        if end > len(data):
            raise _other_end("zstd")
    return end + (4 if zstandard.get_frame_parameters(data).has_checksum else 0)


def _skip(cursor: Cursor, size_bytes: int) -> Cursor:
    for start in range(0, size_bytes, _SKIP_BYTES):
        cursor.read(min(_SKIP_BYTES, size_bytes - start))
    return cursor


def _damaged(name: str) -> WireError:
    return WireError("bad-compression", f"the {name} data is damaged")


def _other_end(name: str) -> WireError:
    return WireError("bad-compression", f"the {name} data ends too early or too late")


def _too_long(name: str, max_bytes: int) -> WireError:
    return WireError("oversized", f"{name} data of more than {max_bytes} bytes")


def _zstandard() -> Any:
    # Not before it is known that codecs are needed: it takes memory.
    import zstandard

    return zstandard
