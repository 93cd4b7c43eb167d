"""Codecs by name, presets, and coded blobs: what weights and their changes travel as.

A codec's spec is its name, what it takes in brackets, and ``+zip`` if its body is to be compressed
too: ``raw``, ``int8+zip``, ``topk(0.05)``. On the wire ``+zip`` says which: ``+zstd`` or ``+zlib``.

A coded blob is::

    1 byte    bits 7-4 the version of this format (1); bit 2 set: described; bits 1-0 the
              compressor of the body: 0 none, 1 zlib, 2 zstd
    1 byte    the codec: 1 raw, 2 fp16, 3 int8, 4 int4, 5 topk; 0: named by what follows
    named     1 byte: so many bytes; the codec's spec in UTF-8
    described varint: so many bytes; names and shapes as `tensor_blob.pack_shapes` packs them
    rest      the body

A codec of your own is a callable ``(argument: str) -> Codec`` that an installed package names in
the entry-point group ``flexmoe.codecs``; the argument is what stands in the brackets, or empty.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.coded import Coded
from edge_runtime.codecs.contract import Codec
from edge_runtime.codecs.flat import total
from edge_runtime.codecs.registry import builtin, make, names, number, plugin
from edge_runtime.codecs.varint import pack_varint, unpack_varint
from edge_runtime.compression import COMPRESSORS, compress, own_compressors
from edge_runtime.errors import ConfigError, WireError
from edge_runtime.tensor_blob import Shapes, Tensors, pack_shapes, unpack_shapes

__all__ = [
    "PRESETS",
    "Codec",
    "Coded",
    "Coding",
    "Preset",
    "decode",
    "encode",
    "known_codecs",
    "needs",
    "open_coded",
    "parse_coding",
    "resolve",
]

ZIP = "zip"
"""In a spec: zstd if all concerned have it, else zlib."""

_VERSION = 1
_DESCRIBED = 4
_SPEC = re.compile(r"([a-z][\w.-]*)(?:\(([\w., =:/-]*)\))?(?:\+(zip|zlib|zstd))?", re.A | re.I)
_MOST_SPEC_BYTES = 64


class Preset(NamedTuple):
    """Specs of updates, of changes of the model, and of the whole parts that a run begins with."""

    uplink: str
    downlink: str
    whole: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "lossless": Preset("raw+zip", "raw+zip", "raw+zip"),
        "default": Preset("int4+zip", "topk(0.2,4)", "int8+zip"),
        "narrow": Preset("topk(0.1,4)", "topk(0.08,4)", "int4+zip"),
    }
)


@dataclass(frozen=True)
class Coding:
    """A spec as parsed. `compressor` is empty, ``zip``, ``zlib`` or ``zstd``."""

    spec: str
    codec: Codec
    compressor: str

    @property
    def compress(self) -> bool:
        """Whether bodies are to be compressed."""
        return bool(self.compressor)


def parse_coding(spec: str) -> Coding:
    """What `spec` names; `ConfigError` with what there is if there is no such codec."""
    match = _SPEC.fullmatch(spec.strip())
    if match is None or len(spec) > _MOST_SPEC_BYTES:
        raise ConfigError(
            f"codec {spec!r}: expected one of {', '.join(names())}, then its argument in brackets, "
            "then +zip; such as topk(0.05) or int8+zip"
        )
    name, argument, compressor = match.groups(default="")
    return Coding(match.group(), make(name, argument), compressor)


def resolve(coding: Coding, peers: Collection[str]) -> Coding:
    """`coding` with ``+zip`` resolved to what this side has and `peers` know (`known_codecs`)."""
    if coding.compressor != ZIP:
        return coding
    best = _best({*peers} & {*own_compressors()})
    return replace(coding, spec=coding.spec.removesuffix(ZIP) + best, compressor=best)


def needs(coding: Coding, compressors: Collection[str] | None = None) -> frozenset[str]:
    """The names of `known_codecs` that a peer must have to decode what `encode` makes of these."""
    used = _used(coding, compressors)
    return frozenset({coding.codec.name, used} - {""})


def known_codecs() -> list[str]:
    """What this side can decode: the names of codecs and of compressors."""
    return [*names(), *own_compressors()]


def encode(
    tensors: Mapping[str, NDArray[np.float32]],
    coding: Coding,
    rng: np.random.Generator,
    compressors: Collection[str] | None = None,
    described: bool = False,
) -> bytes:
    """A coded blob of `tensors`; `WireError` if they cannot be coded, or are not finite.

    `compressors`: those that ``+zip`` may choose from; all that this side has if None. `described`:
    names and shapes are in the blob. A body that compression would not shorten is left as it is.
    """
    shapes = {name: value.shape for name, value in tensors.items()}
    body = coding.codec.encode(tensors, rng)
    flags = _DESCRIBED if described else 0
    used = _used(coding, compressors)
    if used:
        packed = compress(body, used)
        if len(packed) < len(body):
            body, flags = packed, flags | (COMPRESSORS.index(used) + 1)
    header = bytes([_VERSION << 4 | flags]) + _pack_name(coding)
    if described:
        description = pack_shapes(shapes)
        header += pack_varint(len(description)) + description
    return header + body


def decode(data: bytes, shapes: Shapes | None, max_bytes: int) -> Tensors:
    """The tensors of a coded blob, float32 and finite; `WireError` for any other bytes.

    `shapes`: of the tensors; None: the blob must be described. `max_bytes`: of the tensors as
    float32, and of a body once decompressed; more is refused before it is allocated.
    """
    return open_coded(data, shapes, max_bytes).tensors()


def open_coded(data: bytes, shapes: Shapes | None, max_bytes: int) -> Coded:
    """A coded blob whose header was read: `decode` for whoever has a place for the values."""
    if len(data) < 2:
        raise WireError("bad-blob", f"{len(data)} bytes are too few")
    version, flags = data[0] >> 4, data[0] & 15
    if version != _VERSION or flags & 3 > len(COMPRESSORS) or flags & 8:
        raise WireError("bad-blob", f"this side reads version {_VERSION}, not {data[0]:#04x}")
    codec, start = _unpack_name(data)
    if flags & _DESCRIBED:
        described, start = _unpack_description(data, start)
        if shapes is not None and dict(shapes) != described:
            raise WireError("bad-blob", "the blob describes other tensors than expected")
        shapes = described
    if shapes is None:
        raise WireError("bad-blob", "the blob does not describe its tensors")
    if 4 * total(shapes) > max_bytes:
        raise WireError("oversized", f"{total(shapes)} values; at most {max_bytes} bytes allowed")
    compressor = COMPRESSORS[(flags & 3) - 1] if flags & 3 else ""
    return Coded(codec, shapes, memoryview(data)[start:], compressor, max_bytes)


def _best(compressors: Collection[str]) -> str:
    return "zstd" if "zstd" in compressors else "zlib"


def _used(coding: Coding, compressors: Collection[str] | None) -> str:
    """The compressor that `encode` uses, or empty: never one that this side lacks."""
    own = own_compressors()
    if coding.compressor == ZIP:
        return _best(own if compressors is None else {*compressors} & {*own})
    return coding.compressor if coding.compressor in own else coding.compressor and "zlib"


def _pack_name(coding: Coding) -> bytes:
    known = number(coding.codec)
    if known:
        return bytes([known])
    spec = coding.spec.partition("+")[0].encode()
    return bytes([0, len(spec)]) + spec


def _unpack_name(data: bytes) -> tuple[Codec, int]:
    """The codec of a blob, and where what follows its name begins."""
    if data[1]:
        return builtin(data[1]), 2
    end = 3 + data[2] if len(data) > 2 else 0
    if not 3 < end <= len(data) or data[2] > _MOST_SPEC_BYTES:
        raise WireError("bad-blob", "the codec's name does not end")
    match = _SPEC.fullmatch(bytes(data[3:end]).decode(errors="replace"))
    if match is None or match[3]:
        raise WireError("unknown-codec", repr(bytes(data[3:end])))
    return plugin(match[1], match[2] or ""), end


def _unpack_description(data: bytes, start: int) -> tuple[dict[str, tuple[int, ...]], int]:
    size_bytes, start = unpack_varint(data, start)
    if start + size_bytes > len(data):
        raise WireError("bad-blob", "the description does not end")
    return unpack_shapes(bytes(data[start : start + size_bytes])), start + size_bytes
