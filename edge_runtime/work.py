"""One round's work on a device: is it sound, what it needs, where it starts, what it changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge_runtime.blob import kind_of_expert
from edge_runtime.errors import ProgramError, WireError
from edge_runtime.layout import ProgramLayout
from edge_runtime.local_gate import Row
from edge_runtime.messages import Assign, BlobRef
from edge_runtime.parts import GATE, ModelParts, Tensors, check_like, difference

MAX_EPOCHS = 1_000_000


def check_work(work: Assign) -> None:
    """Raise `WireError` for work that makes no sense."""
    experts = work.experts
    if not experts or experts != sorted(set(experts)) or len(experts) != len(work.expert_blobs):
        raise WireError("bad-assign", f"experts {experts}, {len(work.expert_blobs)} expert blobs")
    rates_fit = work.learning_rate > 0 and 0 <= work.momentum < 1 and work.weight_decay >= 0
    if not rates_fit or not 1 <= work.epochs <= MAX_EPOCHS or work.seed < 0:
        raise WireError("bad-assign", "epochs, rates or seed are out of range")


def references(work: Assign) -> list[BlobRef]:
    """All blobs that the work needs."""
    return [
        work.training_program,
        work.evaluation_program,
        work.backbone,
        work.gate,
        *work.expert_blobs,
    ]


def starting_parts(
    work: Assign,
    layout: ProgramLayout,
    tensors: Callable[[BlobRef], Tensors],
    own_rows: Mapping[int, Row],
) -> ModelParts:
    """The weights that the work starts from.

    `tensors` decodes a blob; `own_rows` are gate rows [features] by expert that the device kept,
    and that stand before the server's. The gate's rows of other experts are 0: no program of this
    subset looks at them.
    """
    shapes = {weight.name: weight.shape for weight in layout.weights}
    if len(shapes.get(GATE, ())) != 2 or not set(work.experts) <= set(range(shapes[GATE][0])):
        raise ProgramError(f"the program's gate has no rows for experts {work.experts}")
    gate = np.zeros(shapes[GATE], np.float32)
    gate[work.experts] = check_like(tensors(work.gate), {GATE: gate[work.experts]}, "gate")[GATE]
    for expert in own_rows.keys() & set(work.experts):
        gate[expert] = own_rows[expert]
    experts = tuple(tensors(ref) for ref in work.expert_blobs)
    return ModelParts(tensors(work.backbone), gate, experts)


def changes(work: Assign, before: ModelParts, after: ModelParts) -> list[tuple[str, Tensors]]:
    """What training changed, by kind: backbone, gate rows (unless they are local), each expert."""
    changed = [("backbone", difference(after.backbone, before.backbone))]
    if not work.local_gate:
        changed.append(("gate", {GATE: (after.gate - before.gate)[work.experts]}))
    for slot, expert in enumerate(work.experts):
        change = difference(after.experts[slot], before.experts[slot])
        changed.append((kind_of_expert(expert), change))
    return changed
