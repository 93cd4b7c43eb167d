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
import zlib
from typing import Any

from edge_runtime.errors import WireError

COMPRESSORS = ("zlib", "zstd")
"""All that a blob may be compressed with; what this side has: `own_compressors`."""

_RAW_DEFLATE = -15
# Weights and changes repeat no strings: what can be gained is in how often each byte occurs. That
# differs from one byte plane or tensor to the next, so both make a new table every 8 KiB or so.
_ZLIB_LEVEL = 6
_ZLIB_MEMORY_LEVEL = 7
_ZSTD_LEVEL = 1
_ZSTD_BLOCK_BYTES = 8192


@functools.cache
def own_compressors() -> tuple[str, ...]:
    """The names of what this side can compress and decompress with."""
    return COMPRESSORS if importlib.util.find_spec("zstandard") is not None else ("zlib",)


def compress(data: bytes, name: str) -> bytes:
    """`data` compressed with `name`, one of `own_compressors`."""
    if name == "zstd":
        return _zstd(data)
    deflate = zlib.compressobj(
        _ZLIB_LEVEL, zlib.DEFLATED, _RAW_DEFLATE, _ZLIB_MEMORY_LEVEL, zlib.Z_RLE
    )
    return deflate.compress(data) + deflate.flush()


def decompress(data: bytes, name: str, max_bytes: int) -> bytes:
    """What was compressed; `WireError` if it is no such data, or has more than `max_bytes`."""
    return _unzstd(data, max_bytes) if name == "zstd" else _inflate(data, max_bytes)


def _zstd(data: bytes) -> bytes:
    zstandard = _zstandard()
    stream = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj(size=len(data))
    parts: list[bytes] = []
    for start in range(0, len(data), _ZSTD_BLOCK_BYTES):
        if start:
            parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        parts.append(stream.compress(data[start : start + _ZSTD_BLOCK_BYTES]))
    return b"".join([*parts, stream.flush()])


def _inflate(data: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(_RAW_DEFLATE)
    try:
        # One byte more than allowed tells a content that is too long from one that just fits.
        content = stream.decompress(data, max_bytes + 1)
    except zlib.error:
        raise WireError("bad-compression", "the zlib data is damaged") from None
    if len(content) > max_bytes:
        raise _too_long("zlib", max_bytes)
    if not stream.eof or stream.unused_data:
        raise WireError("bad-compression", "the zlib data ends too early or too late")
    return content


def _unzstd(data: bytes, max_bytes: int) -> bytes:
    if "zstd" not in own_compressors():
        raise WireError("unknown-codec", "zstd; install the extra `zstd` to read it")
    zstandard = _zstandard()
    try:
        size_bytes = zstandard.frame_content_size(data)
        if size_bytes < 0:
            raise WireError("bad-compression", "the zstd frame does not say how long it is")
        if size_bytes > max_bytes:
            raise _too_long("zstd", max_bytes)
        content: bytes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        raise WireError("bad-compression", "the zstd data is damaged") from None
    if len(content) != size_bytes:
        raise WireError("bad-compression", "the zstd frame is not as long as it says")
    return content


def _too_long(name: str, max_bytes: int) -> WireError:
    return WireError("oversized", f"{name} data of more than {max_bytes} bytes")


def _zstandard() -> Any:
    # Imported by the first blob that uses it: most devices never do.
    import zstandard

    return zstandard
