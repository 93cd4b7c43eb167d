"""Contents from frames: what a device holds and works with, from what travelled.

A part's frames are coded blobs (`edge_runtime.codec`). A whole one is described and gives the
tensors; each delta is added to the tensors before it, in float32. A program has one frame: a byte
that says the compressor (0 none, 1 zlib, 2 zstd), then the program's bytes. The result is taken
only under the digest that names it, so all that hold it hold the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codec import open_coded
from edge_runtime.codecs.flat import not_finite
from edge_runtime.codecs.pieces import spread
from edge_runtime.compression import COMPRESSORS, compress, decompress
from edge_runtime.errors import WireError
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import MAX_BLOB_BYTES, Artifact
from edge_runtime.tensor_blob import NewBlob


def build_part(
    artifact: Artifact,
    base: Mapping[str, NDArray[np.float32]] | None,
    frames: Iterable[bytes],
    max_bytes: int = MAX_BLOB_BYTES,
) -> bytes:
    """The content that `frames` lead to, in its raw form (`tensor_blob.py`).

    Frames are drawn one by one and not held, and their values are written straight to where they
    stay, to save memory. `base`: the tensors of `artifact.base`; None if it is empty: then the
    first frame is whole. `max_bytes`: of the tensors; more is refused before it is allocated.
    `WireError` for frames that cannot be applied, or lead elsewhere.
    """
    rest = iter(frames)
    blob = _whole(next(rest, b""), max_bytes) if base is None else _copy(base)
    for frame in rest:
        _add(frame, blob, max_bytes)
    return _checked(artifact, blob.finish())


def _whole(frame: bytes, max_bytes: int) -> NewBlob:
    coded = open_coded(frame, None, max_bytes)
    blob = NewBlob(coded.shapes)
    for _, place, values in spread(coded.pieces(), blob.tensors):
        place[:] = values
    return blob


def _copy(tensors: Mapping[str, NDArray[np.float32]]) -> NewBlob:
    blob = NewBlob({name: value.shape for name, value in tensors.items()})
    for name, value in tensors.items():
        blob.tensors[name][...] = value
    return blob


def _add(frame: bytes, blob: NewBlob, max_bytes: int) -> None:
    shapes = {name: value.shape for name, value in blob.tensors.items()}
    coded = open_coded(frame, shapes, max_bytes)
    for name, place, values in spread(coded.pieces(), blob.tensors):
        with np.errstate(over="ignore", invalid="ignore"):
            place += values
        if not np.isfinite(place).all():
            raise not_finite(name)


def pack_program(program: bytes, compressor: str = "") -> bytes:
    """A program's frame; `compressor` is one of `own_compressors`, or empty.

    A program that compression would not shorten is left as it is.
    """
    packed = program
    if compressor == "zlib":
        # Programs repeat names and records, as weights never do: not `compression`'s strategy.
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = deflate.compress(program) + deflate.flush()
    elif compressor:
        packed = compress(program, compressor)
    if len(packed) < len(program):
        return bytes([COMPRESSORS.index(compressor) + 1]) + packed
    return b"\0" + program


def build_program(
    artifact: Artifact, frames: Sequence[bytes], max_bytes: int = MAX_BLOB_BYTES
) -> bytes:
    """The program in its one frame, of at most `max_bytes`; `WireError` for any other frame."""
    if artifact.base or len(frames) != 1:
        raise WireError("bad-artifact", f"a program has one frame and no base, not {len(frames)}")
    (frame,) = frames
    if not frame or frame[0] > len(COMPRESSORS):
        raise WireError("bad-blob", "expected a program's frame, whose first byte is 0, 1 or 2")
    if frame[0] == 0:
        return _checked(artifact, frame[1:])
    name = COMPRESSORS[frame[0] - 1]
    return _checked(artifact, decompress(memoryview(frame)[1:], name, max_bytes))


def _checked(artifact: Artifact, content: bytes) -> bytes:
    name = digest(content)
    if name != artifact.digest:
        raise WireError(
            "bad-digest",
            f"the frames lead to {name.hex()[:8]}, expected {artifact.digest.hex()[:8]}",
        )
    return content
