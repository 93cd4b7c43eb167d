"""A round's update: what training changed, coded, with what earlier updates lost of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.protocol.messages import MAX_BLOB_BYTES, Assign
from edge_runtime.residual import Lost, Residuals
from edge_runtime.work import changes


@dataclass(frozen=True)
class Update:
    """`data`: coded blobs, one after the other; `sections`: the kind and size of each."""

    data: bytes
    sections: list[tuple[str, int]]


def code_update(
    work: Assign, before: ModelParts, after: ModelParts, residuals: Residuals
) -> Update:
    """What `work` changed, coded with its codec; what that loses is proposed to `residuals`.

    Only what a biased codec loses is: the others lose nothing on average, and send what one before
    them left. `WireError` if a change cannot be coded. The same work codes to the same bytes.
    """
    residuals.settle(work.counted)
    coding = parse_coding(work.codec)
    blobs: list[bytes] = []
    sections: list[tuple[str, int]] = []
    lost: dict[str, Lost] = {}
    for number, (kind, change) in enumerate(changes(work, before, after)):
        rng = np.random.default_rng([work.seed, number])
        left = _left(work, kind, residuals)
        change = _with_residual(work, kind, change, left)
        blob = encode(change, coding, rng)
        if coding.codec.biased:
            shapes = {name: value.shape for name, value in change.items()}
            sent = decode(blob, shapes, MAX_BLOB_BYTES)
            rest = {name: value - sent[name] for name, value in change.items()}
            lost.update(_by_expert(work, kind, rest))
        else:
            lost.update({name: {} for name, tensors in left.items() if tensors})
        blobs.append(blob)
        sections.append((kind, len(blob)))
    residuals.propose(work.round, lost)
    return Update(b"".join(blobs), sections)


def _left(work: Assign, kind: str, residuals: Residuals) -> dict[str, Lost]:
    """What of this kind is still to be sent, by the kinds of residuals."""
    names = [_gate_of(expert) for expert in work.experts] if kind == "gate" else [kind]
    return {name: residuals.of(name) for name in names}


def _with_residual(work: Assign, kind: str, change: Tensors, left: Mapping[str, Lost]) -> Tensors:
    """`change` and what is `left` of this kind."""
    if kind != "gate":
        return _sum(change, left[kind])
    rows = [
        _sum({GATE: row}, left[_gate_of(expert)])[GATE]
        for expert, row in zip(work.experts, change[GATE], strict=True)
    ]
    return {GATE: np.stack(rows)}


def _by_expert(work: Assign, kind: str, rest: Tensors) -> dict[str, Lost]:
    """What was lost, by the kinds of residuals: each row of the gate is its expert's."""
    if kind != "gate":
        return {kind: rest}
    rows = zip(work.experts, rest[GATE], strict=True)
    return {_gate_of(expert): {GATE: row.copy()} for expert, row in rows}


def _gate_of(expert: int) -> str:
    return f"gate:{expert}"


def _sum(change: Tensors, residual: Lost) -> Tensors:
    if _forms(residual) != _forms(change):  # nothing, or of another model
        return change
    return {name: value + residual[name] for name, value in change.items()}


def _forms(tensors: Lost) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (value.shape, value.dtype.str) for name, value in tensors.items()}
