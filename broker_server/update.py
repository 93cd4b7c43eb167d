"""A device's answer: is it what was asked for, and what it says, as arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker_server.aggregation import ClientUpdate
from edge_runtime.blob import kind_of_expert
from edge_runtime.codec import Codec
from edge_runtime.errors import WireError
from edge_runtime.messages import Assign, Report
from edge_runtime.parts import GATE, ModelParts, Tensors, check_like

# A codec may add a header to a tensor's bytes, never this much.
_MAX_HEADER_BYTES = 64 * 1024


def update_kinds(assign: Assign) -> list[str]:
    """The kinds of the blobs that answer `assign`, in their order."""
    gate = [] if assign.local_gate else ["gate"]
    return ["backbone", *gate, *(kind_of_expert(expert) for expert in assign.experts)]


def check_report(report: Report, assign: Assign, samples: int, model: ModelParts) -> None:
    """Raise `WireError` unless `report` answers `assign` for a device with `samples`.

    Called before any blob is fetched, so the sizes that it allows bound what a device can make the
    server hold.
    """
    k = len(assign.experts)
    if report.experts != assign.experts:
        raise WireError("wrong-experts", f"expected {assign.experts}, got {report.experts}")
    if not len(report.usage) == len(report.loss) == len(report.hits) == k:
        raise WireError("wrong-count", f"expected usage, loss and hits of {k} experts")
    if any(not 0 <= hit <= used for hit, used in zip(report.hits, report.usage, strict=True)):
        raise WireError("wrong-count", f"hits {report.hits} of usage {report.usage}")
    if sum(report.usage) != samples:
        raise WireError("wrong-count", f"usage {report.usage} of {samples} samples")
    if not 0 <= report.test_hits <= report.test_samples:
        raise WireError("wrong-count", f"{report.test_hits} test hits of {report.test_samples}")
    kinds = update_kinds(assign)
    if [ref.kind for ref in report.update] != kinds:
        raise WireError("wrong-blobs", f"expected {kinds}, got {[r.kind for r in report.update]}")
    for ref in report.update:
        limit = _size_bytes(ref.kind, model) + _MAX_HEADER_BYTES
        if ref.size_bytes > limit:
            raise WireError("oversized", f"{ref.kind}: {ref.size_bytes} bytes, at most {limit}")


def decode_update(
    blobs: Mapping[str, bytes],
    report: Report,
    assign: Assign,
    samples: int,
    model: ModelParts,
    codec: Codec,
) -> ClientUpdate:
    """The update in `blobs` (by kind); `WireError` for wrong names, shapes or values not finite."""
    gate = None
    if not assign.local_gate:
        like = {GATE: model.gate[assign.experts]}
        gate = _change(codec.decode(blobs["gate"]), like, "gate")[GATE]
    backbone = _change(codec.decode(blobs["backbone"]), model.backbone, "backbone")
    changes = [
        _change(codec.decode(blobs[kind]), model.experts[expert], kind)
        for expert in assign.experts
        for kind in [kind_of_expert(expert)]
    ]
    return ClientUpdate(samples, assign.experts, report.usage, backbone, gate, changes)


def _change(tensors: Tensors, model: Tensors, what: str) -> Tensors:
    """A change to `model` whose sum with it is finite, so that every mean of such sums is, too."""
    change = check_like(tensors, model, what)
    with np.errstate(over="ignore"):
        for name, value in change.items():
            if not np.isfinite(model[name] + value).all():
                raise WireError("not-finite", f"{what}: {name!r} overflows when it is added")
    return change


def _size_bytes(kind: str, model: ModelParts) -> int:
    if kind == "gate":
        return model.gate.nbytes
    tensors = model.backbone if kind == "backbone" else model.experts[0]
    return sum(value.nbytes for value in tensors.values())
