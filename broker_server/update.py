"""A device's answer: is it what was asked for, and what it says, as arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from broker_server.aggregation import ClientUpdate
from edge_runtime.codec import decode
from edge_runtime.errors import WireError
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.protocol.blob import kind_of_expert
from edge_runtime.protocol.messages import Assign, Report

# A codec may add a header to a part's values, never this much.
_MAX_HEADER_BYTES = 64 * 1024


def update_kinds(assign: Assign) -> list[str]:
    """The kinds of the sections of the update that answers `assign`, in their order."""
    gate = [] if assign.local_gate else ["gate"]
    return ["backbone", *gate, *(kind_of_expert(expert) for expert in assign.experts)]


def check_report(report: Report, assign: Assign, samples: int, model: ModelParts) -> None:
    """Raise `WireError` unless `report` answers `assign` for a device with `samples`.

    Called before the update is fetched, so the sizes that it allows bound what a device can make
    the server hold.
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
    if len(report.sections) != len(kinds):
        count = len(report.sections)
        raise WireError("wrong-sections", f"expected sections for {kinds}, got {count}")
    for (kind, like), size_bytes in zip(_sections(assign, model), report.sections, strict=True):
        limit = _raw_bytes(like) + _MAX_HEADER_BYTES
        if not 0 < size_bytes <= limit:
            raise WireError("wrong-sections", f"{kind}: {size_bytes} bytes, expected 1 to {limit}")
    if sum(report.sections) != report.update.size_bytes:
        raise WireError(
            "wrong-sections",
            f"sections of {sum(report.sections)} bytes, an update of {report.update.size_bytes}",
        )


def decode_update(
    data: bytes, report: Report, assign: Assign, samples: int, model: ModelParts
) -> ClientUpdate:
    """The update in `data`; `WireError` for wrong names, shapes or values not finite.

    `report` has been checked; `model` is what the changes are added to.
    """
    changes, begin = list[Tensors](), 0
    for (kind, like), size_bytes in zip(_sections(assign, model), report.sections, strict=True):
        changes.append(_change(data[begin : begin + size_bytes], like, kind))
        begin += size_bytes
    backbone, *rest = changes
    gate = None if assign.local_gate else rest.pop(0)[GATE]
    return ClientUpdate(samples, assign.experts, report.usage, backbone, gate, rest)


def _sections(assign: Assign, model: ModelParts) -> Iterator[tuple[str, Tensors]]:
    """The kinds of an update's sections, and the weights of `model` that they change."""
    parts = {kind_of_expert(expert): model.experts[expert] for expert in assign.experts}
    parts |= {"backbone": model.backbone, "gate": {GATE: model.gate[assign.experts]}}
    return ((kind, parts[kind]) for kind in update_kinds(assign))


def _change(data: bytes, like: Tensors, kind: str) -> Tensors:
    """A change to `like` whose sum with it is finite, so that every mean of such sums is, too."""
    try:
        change = decode(data, {n: v.shape for n, v in like.items()}, _raw_bytes(like))
    except WireError as error:
        why = str(error).removeprefix(f"{error.reason}: ")
        raise WireError(error.reason, f"{kind}: {why}") from None
    with np.errstate(over="ignore"):
        for name, value in change.items():
            if not np.isfinite(like[name] + value).all():
                raise WireError("not-finite", f"{kind}: {name!r} overflows when it is added")
    return change


def _raw_bytes(tensors: Tensors) -> int:
    return sum(value.nbytes for value in tensors.values())
