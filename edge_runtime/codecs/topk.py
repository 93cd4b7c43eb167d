"""`topk(share)` or `topk(share,bits)`: the largest changes now, the rest later.

Of all values of a section together, the share with the largest magnitudes is kept (at least one
value); of equal ones, those that come first. A kept value is its place, its sign and its magnitude:
one of 2^(bits - 1), evenly spaced over what is kept. Body, for n values kept::

    varint    n; nothing follows if it is 0
    1 byte    M, the Rice parameter (`rice.py`) of the magnitudes; 7: all are 0 and not written
    2 bytes   base (`bfloat.py`), the higher byte first: what magnitude 0 stands for
    2 bytes   step; not there if M is 7
    rest      bits, from the highest of each byte; zero bits up to a whole byte:
              the areas (`areas.py`), whose places are numbered; n signs (1: below zero); of each 32
              gaps their Rice parameter, 4 bits; the lower bits of the gaps, then of the magnitudes;
              the unary parts of the gaps, then of the magnitudes

A gap counts the numbers between that of a kept value and the one before, or the begin. A value is
+-(base + magnitude * step), each operation rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import areas, bfloat, rice
from edge_runtime.codecs.flat import Flat, cut, join, total
from edge_runtime.codecs.varint import pack_varint, unpack_varint
from edge_runtime.errors import ConfigError, WireError
from edge_runtime.tensor_blob import Shapes, Tensors

MOST_BITS = 8
_NO_MAGNITUDES = 7
_MOST_M = 6
_MOST_MAGNITUDE = (1 << (MOST_BITS - 1)) - 1
# No codes are longer than two bytes a value and what stands before them; it bounds working memory.
_MOST_BYTES_A_VALUE = 2
_SLACK_BYTES = 64


class TopK:
    """A share of the values, roughly; the others are lost, so it needs error feedback."""

    name = "topk"
    biased = True

    def __init__(self, share: float, bits: int = MOST_BITS) -> None:
        """Keep `share` (above 0, to 1) of the values, in `bits` (1 to 8) with the sign."""
        self._share = share
        self._bits = bits

    def encode(self, tensors: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> bytes:
        flat = join(tensors)
        size = np.abs(flat)
        kept = _largest(size, max(1, math.ceil(self._share * len(flat))))
        if not len(kept):
            return pack_varint(0)
        base, step, magnitudes = _steps(size[kept].astype(np.float64), 1 << (self._bits - 1))
        held = areas.find(kept, {name: value.shape for name, value in tensors.items()})
        gaps = np.diff(areas.to_numbers(kept, held), prepend=-1) - 1
        block_gs = rice.best_ks(gaps)
        gs = np.repeat(block_gs, rice.BLOCK)[: len(gaps)]
        lower = [rice.lower_bits(gaps, gs)]
        unary = [rice.unary_bits(gaps >> gs)]
        m = _NO_MAGNITUDES
        if magnitudes.any():
            m = rice.best_k(magnitudes, _MOST_M)
            lower.append(rice.lower_bits(magnitudes, np.full(len(kept), m)))
            unary.append(rice.unary_bits(magnitudes >> m))
        scales = [base] if m == _NO_MAGNITUDES else [base, step]
        parameters = rice.lower_bits(block_gs, np.full(len(block_gs), rice.K_BITS))
        signs = np.signbit(flat[kept]).view(np.uint8)
        bits = np.concatenate([areas.to_bits(held), signs, parameters, *lower, *unary])
        head = pack_varint(len(kept)) + bytes([m])
        return head + np.array(scales, ">u2").tobytes() + np.packbits(bits).tobytes()

    def decode(self, body: bytes, shapes: Shapes) -> Tensors:
        flat = np.zeros(total(shapes), np.float32)
        if len(body) > _MOST_BYTES_A_VALUE * len(flat) + _SLACK_BYTES:
            raise WireError("bad-body", f"{len(body)} bytes for {len(flat)} values")
        count, start = unpack_varint(body)
        if count > len(flat) or (not count and len(body) > start):
            raise WireError("bad-body", f"{count} of {len(flat)} values in {len(body)} bytes")
        if count:
            kept, values = _read(body, start, count, shapes)
            flat[kept] = values
        return cut(flat, shapes)

    def size_bytes(self, shapes: Shapes) -> int:
        """What evenly spread places would need: those of real changes need less."""
        size = total(shapes)
        if not size:
            return 1
        count = max(1, math.ceil(self._share * size))
        place_bits = math.log2(size / count) + 1.5
        # Magnitudes above the smallest one fall off like an exponential: few are large.
        value_bits = 1 + max(0.25 * self._bits, self._bits - 3)
        return 9 + math.ceil(count * (place_bits + value_bits) / 8)


def make_topk(argument: str) -> TopK:
    """The codec of ``share`` or ``share,bits``; `ConfigError` for anything else."""
    share_text, _, bits_text = argument.partition(",")
    try:
        share, bits = float(share_text), int(bits_text or MOST_BITS)
    except ValueError:
        share, bits = 0.0, 0
    if not 0 < share <= 1 or not 1 <= bits <= MOST_BITS:
        raise ConfigError(
            f"topk takes a share above 0 and up to 1, and bits from 1 to {MOST_BITS}, such as "
            f"topk(0.05) or topk(0.05,4); got {argument!r}"
        )
    return TopK(share, bits)


def _largest(size: Flat, count: int) -> NDArray[np.int64]:
    """The places of the `count` largest that are not 0, ascending; of equal ones the first."""
    if not len(size):
        return np.zeros(0, np.int64)
    least = np.partition(size, len(size) - count)[len(size) - count]
    if not least:
        return np.flatnonzero(size)
    chosen = size > least
    equal = np.flatnonzero(size == least)
    chosen[equal[: count - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)


def _steps(size: NDArray[np.float64], levels: int) -> tuple[int, int, NDArray[np.int64]]:
    """Base and step as bits of a `bfloat`, and the magnitudes in steps, below `levels`."""
    least, most = float(size.min()), float(size.max())
    step = int(bfloat.up((most - least) / levels))
    width = float(bfloat.widen(step))
    magnitudes = np.zeros(len(size), np.int64)
    if width:
        magnitudes = np.minimum((size - least) // width, levels - 1).astype(np.int64)
    # Not the middle of a step: most are in its lower part, and this base is right on average.
    base = bfloat.nearest(float((size - magnitudes * width).mean()))
    # What is next to the largest float32 must not round to infinity.
    room = (bfloat.LARGEST - float(bfloat.widen(base))) / width if width else 0.0
    return base, step, np.minimum(magnitudes, int(min(room, levels)))


def _read(
    body: bytes, start: int, count: int, shapes: Shapes
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The places and values of the `count` >= 1 that are kept."""
    m = body[start] if start < len(body) else -1
    scales = 1 if m == _NO_MAGNITUDES else 2
    bits_at = start + 1 + 2 * scales
    if not 0 <= m <= _NO_MAGNITUDES or bits_at > len(body):
        raise WireError("bad-body", f"{len(body)} bytes are too few, or M is {m}")
    bits = np.unpackbits(np.frombuffer(body, np.uint8, offset=bits_at))
    held, signs_at = areas.from_bits(bits, shapes)
    parameters_at = signs_at + count
    gaps_at = parameters_at + rice.K_BITS * rice.blocks(count)
    if gaps_at > len(bits):
        raise WireError("bad-body", f"too few bytes for {count} values")
    block_gs = rice.from_lower_bits(
        bits[parameters_at:gaps_at], np.full(rice.blocks(count), rice.K_BITS)
    )
    gs = np.repeat(block_gs, rice.BLOCK)[:count]
    magnitudes_at = gaps_at + int(gs.sum())
    unary_at = magnitudes_at + (0 if scales == 1 else m * count)
    codes, rest = rice.from_unary_bits(bits[unary_at:])
    if len(codes) != scales * count or rest > 7:
        raise WireError("bad-body", f"expected the codes of {count} values")
    gaps = (codes[:count] << gs) | rice.from_lower_bits(bits[gaps_at:magnitudes_at], gs)
    numbers = np.cumsum(gaps + 1) - 1
    if numbers[-1] >= sum(area.size for area in held):
        raise WireError("bad-body", "a place beyond the last")
    size = np.repeat(bfloat.widen(np.frombuffer(body, ">u2", 1, start + 1)), count)
    if scales == 2:
        lower = rice.from_lower_bits(bits[magnitudes_at:unary_at], np.full(count, m))
        magnitudes = (codes[count:] << m) | lower
        if magnitudes.max() > _MOST_MAGNITUDE:
            raise WireError("bad-body", f"a magnitude above {_MOST_MAGNITUDE}")
        step = bfloat.widen(np.frombuffer(body, ">u2", 1, start + 3))
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinities
            size = size + magnitudes.astype(np.float32) * step
    return areas.from_numbers(numbers, held), np.where(bits[signs_at:parameters_at], -size, size)
