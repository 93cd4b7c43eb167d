"""One round's work on a device: is it sound, what it needs, where it starts, what it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import cast, get_args

import numpy as np

from edge_runtime.codec import parse_coding
from edge_runtime.errors import ConfigError, ProgramError, WireError
from edge_runtime.layout import ProgramLayout
from edge_runtime.local_gate import Row
from edge_runtime.parts import GATE, ModelParts, Tensors, check_like, difference
from edge_runtime.protocol.blob import kind_of_expert
from edge_runtime.protocol.messages import Artifact, Assign
from edge_runtime.trainer import MemoryNeed, OptimizerName, Rates, in_mib, misfits

MAX_EPOCHS = 1_000_000
MAX_BATCH = 1_000_000


class TooLarge(ProgramError):
    """Training needs `needed_bytes` of memory, more than the device may use, or could get."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


def check_work(work: Assign) -> None:
    """Raise `WireError` for work that makes no sense."""
    experts = work.experts
    if not experts or experts != sorted(set(experts)) or len(experts) != len(work.expert_parts):
        raise WireError("bad-assign", f"experts {experts}, {len(work.expert_parts)} expert parts")
    if work.optimizer not in get_args(OptimizerName):
        raise WireError("bad-assign", "an unknown optimizer; this device is too old for the server")
    if not (1 <= work.epochs <= MAX_EPOCHS and 1 <= work.batch <= MAX_BATCH and work.seed >= 0):
        raise WireError("bad-assign", "epochs, batch or seed are out of range")
    rates = rates_of(work)
    for name, must in misfits(rates).items():
        raise WireError("bad-assign", f"{name}: expected {must}, got {getattr(rates, name)}")
    try:
        parse_coding(work.codec)
    except ConfigError as error:
        raise WireError("unknown-codec", f"this device cannot code its update: {error}") from None


def rates_of(work: Assign) -> Rates:
    """How the work changes the weights; it names a known optimizer."""
    return Rates(
        work.learning_rate,
        work.momentum,
        work.weight_decay,
        cast(OptimizerName, work.optimizer),
        work.beta1,
        work.beta2,
        work.epsilon,
        work.clip_norm,
    )


def check_memory(work: Assign, need: MemoryNeed, available_bytes: int) -> None:
    """Raise `TooLarge` if training needs more than `available_bytes`."""
    if need.total_bytes > available_bytes:
        count = len(work.experts)
        raise TooLarge(
            f"training {count} expert{'s' if count > 1 else ''} needs {need}, the device may use "
            f"{in_mib(max(0, available_bytes))}; assign it fewer experts, or choose a "
            "smaller train.micro_batch or a smaller model",
            need.total_bytes,
        )


def contents_of(work: Assign) -> list[tuple[str, Artifact]]:
    """All contents that the work builds on, with their kinds."""
    experts = map(kind_of_expert, work.experts)
    return [
        ("program", work.training_program),
        ("program", work.evaluation_program),
        ("backbone", work.backbone),
        ("gate", work.gate),
        *zip(experts, work.expert_parts, strict=True),
    ]


def same_task(one: Assign, other: Assign) -> bool:
    """Whether both are the same work on the same contents, whatever frames lead there."""
    return _bare(one) == _bare(other)


def _bare(work: Assign) -> Assign:
    return replace(
        work,
        training_program=_goal(work.training_program),
        evaluation_program=_goal(work.evaluation_program),
        backbone=_goal(work.backbone),
        gate=_goal(work.gate),
        expert_parts=[_goal(part) for part in work.expert_parts],
    )


def _goal(artifact: Artifact) -> Artifact:
    return Artifact(artifact.digest, b"", [])


def starting_parts(
    work: Assign,
    layout: ProgramLayout,
    tensors: Callable[[Artifact], Tensors],
    own_rows: Mapping[int, Row],
) -> ModelParts:
    """The weights that the work starts from.

    `tensors` gives those of a part; `own_rows` are gate rows [features] by expert that the device
    kept, and that stand before the server's. The gate's rows of other experts are 0: no program of
    this subset looks at them.
    """
    shapes = {weight.name: weight.shape for weight in layout.weights}
    if len(shapes.get(GATE, ())) != 2 or not set(work.experts) <= set(range(shapes[GATE][0])):
        raise ProgramError(f"the program's gate has no rows for experts {work.experts}")
    gate = np.zeros(shapes[GATE], np.float32)
    given = check_like(tensors(work.gate), {GATE: gate}, "gate")[GATE]
    gate[work.experts] = given[work.experts]
    for expert in own_rows.keys() & set(work.experts):
        gate[expert] = own_rows[expert]
    experts = tuple(tensors(part) for part in work.expert_parts)
    return ModelParts(tensors(work.backbone), gate, experts)


def changes(work: Assign, before: ModelParts, after: ModelParts) -> Iterator[tuple[str, Tensors]]:
    """What training changed, by kind: backbone, gate rows (unless they are local), each expert.

    One at a time, so that a device need not hold them all.
    """
    yield "backbone", difference(after.backbone, before.backbone)
    if not work.local_gate:
        yield "gate", {GATE: (after.gate - before.gate)[work.experts]}
    for slot, expert in enumerate(work.experts):
        yield kind_of_expert(expert), difference(after.experts[slot], before.experts[slot])
