"""What the vectors are made of: tensors, messages, a model that was trained a little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import local_training
from edge_runtime.parts import ModelParts, Tensors, merge, split
from edge_runtime.protocol.blob import digest, kind_of_expert, make_ref
from edge_runtime.protocol.messages import Artifact, Assign, Moved, Report
from edge_runtime.residual import Residuals
from edge_runtime.tensor_blob import pack_tensors
from edge_runtime.update import Update, code_update
from edge_runtime.work import changes, rates_of
from tests.edge_runtime.reference_trainer import ReferenceTrainer, make_toy_layout

SESSION = "0f1e2d3c4b5a"
FEDERATION, CLIENT = "demo", "device-03"
CODEC = "topk(0.2,4)"
EXPERTS = [1, 3]
LARGEST = np.finfo(np.float32).max


def _floats(values: object, *shape: int) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(shape)


def _laplace(seed: int, *shape: int) -> NDArray[np.float32]:
    return (0.01 * np.random.default_rng(seed).laplace(size=shape)).astype(np.float32)


def sparse_matrix() -> NDArray[np.float32]:
    """Whole rows and columns of it are 0, as those of silent units."""
    matrix = _laplace(4, 18, 12)
    matrix[np.arange(18) % 3 > 0] = 0
    matrix[:, [1, 2, 5, 7, 8, 11]] = 0
    return matrix


EDGES: Tensors = {
    "0.weight": _floats([1.5, -0.0, 2.0**-149, LARGEST, -LARGEST, -1e-40], 2, 3),
    "empty": _floats([], 0, 4),
    "scalar": _floats(-7.25),
}
SMALL: Tensors = {
    "0.bias": _laplace(1, 4),
    "0.weight": np.concatenate([_laplace(2, 2, 5), np.zeros((1, 5), np.float32)]),
    "scalar": _floats(0.5),
}
FLAT: Tensors = {"0.bias": _laplace(3, 40)}
MATRIX: Tensors = {"0.bias": _laplace(5, 24) / np.float32(8), "0.weight": sparse_matrix()}
LONG: Tensors = {"0.weight": np.concatenate([_laplace(6, 120), _laplace(7, 280) / np.float32(3)])}

CODED: list[tuple[str, str, Tensors, bool]] = [
    ("raw, the edges of float32", "raw", EDGES, False),
    ("raw, described", "raw", EDGES, True),
    ("raw, compressed", "raw+zlib", MATRIX, False),
    ("raw, compressed and described", "raw+zstd", MATRIX, True),
    ("fp16", "fp16", SMALL, False),
    ("fp16, far below its range", "fp16", {"x": SMALL["0.bias"] * np.float32(1e-30)}, False),
    ("fp16, far above its range", "fp16", {"x": SMALL["0.bias"] * np.float32(1e37)}, False),
    ("int8, with a row of zeros", "int8", SMALL, False),
    ("int8, compressed", "int8+zlib", MATRIX, False),
    ("int4, an even number of values", "int4", SMALL, False),
    ("int4, an odd number, described", "int4", {"x": _laplace(8, 3, 3)}, True),
    ("int4, compressed", "int4+zstd", MATRIX, False),
    ("topk of a vector", "topk(0.2)", FLAT, False),
    ("topk with fewer rows and columns", "topk(0.15,4)", MATRIX, False),
    ("topk, signs alone", "topk(0.3,1)", FLAT, False),
    ("topk, nothing but zeros", "topk(0.1)", {"x": np.zeros(5, np.float32)}, False),
    ("topk, several Rice parameters, described", "topk(0.15)", LONG, True),
]
"""A name, a spec, what to code, and whether it is to be described."""

TENSORS: dict[str, dict[str, NDArray[Any]]] = {
    "a part": SMALL,
    "the edges of float32": EDGES,
    "nothing": {},
    "every dtype": {
        code: np.array([[1, 2, 3]], np.dtype(f"<{code}"))
        for code in ("f2", "f4", "i1", "u1", "i4", "i8")
    },
    "long names and sizes": {
        "experts.17.branches.second.layers.3.weight": np.zeros((300, 0, 70_000), np.float32),
        "größe": _floats([1.0], 1),
        **{f"{i:02}": _floats([i], 1) for i in range(16)},
    },
}


@dataclass(frozen=True)
class Round:
    """A round of one device, as it ends."""

    assign: Assign
    before: ModelParts
    after: ModelParts
    update: Update
    report: Report


def rounds() -> list[Round]:
    """Two rounds of a device that learns whether its samples' sum is low, medium or high."""
    layout = make_toy_layout("train")
    rng = np.random.default_rng(11)
    x = rng.normal(size=(40, *layout.shape)).astype(np.float32)
    y = np.digitize(x.sum(1), [-1.0, 1.0])
    weights = {w.name: rng.normal(0, 0.4, w.shape).astype(np.float32) for w in layout.weights}
    before, residuals = split(weights), Residuals()
    residuals.enter(SESSION)
    trainer = ReferenceTrainer()
    program = layout.to_json().encode()
    trainer.load(program, program)
    made = []
    for number in (1, 2):
        assign = _assign(number, before, program)
        trainer.assign(EXPERTS, merge(before))
        rates = rates_of(assign)
        result = local_training.fit(trainer, x, y, assign.epochs, assign.batch, rates, assign.seed)
        tested = local_training.evaluate(trainer, x[:10], y[:10])
        assert result is not None and tested is not None
        after = split({name: value.copy() for name, value in trainer.weights().items()})
        update = code_update(assign, before, after, residuals)
        report = Report(
            SESSION, number, 1, EXPERTS, result.usage, result.loss, result.hits,
            result.train_loss, tested.hits, tested.samples,
            {"fetch_bytes": 1890.0, "fetch_s": 0.25, "train_s": 1.5},
            make_ref(update.data), [size for _, size in update.sections],
            [
                Moved("backbone", 0, 8, 0, 196, 231, 2),
                Moved("connection", 0, 205, 0, 0, 31, 0),
                Moved("control", 280, 343, 1, 691, 735, 2),
            ],
            [],
        )  # fmt: skip
        made.append(Round(assign, before, after, update, report))
        before = after
    return made


def _assign(number: int, model: ModelParts, program: bytes) -> Assign:
    def held(data: bytes) -> Artifact:
        return Artifact(digest(data), b"", [])

    return Assign(
        session=SESSION,
        round=number,
        attempt=1,
        counted=number - 1,
        experts=EXPERTS,
        training_program=held(program),
        evaluation_program=held(program.replace(b'"train"', b'"evaluate"')),
        backbone=held(pack_tensors(model.backbone)),
        gate=held(pack_tensors({"gate.weight": model.gate})),
        expert_parts=[held(pack_tensors(expert)) for expert in model.experts],
        local_gate=False,
        epochs=2,
        batch=8,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.0,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        clip_norm=0.0,
        seed=number,
        codec=CODEC,
    )


def sections(made: Round) -> list[tuple[str, Tensors, Tensors, bytes]]:
    """Of each section its kind, the weights before and after that it is about, and its blob."""
    zero = _zeros(made.before)
    starts = [tensors for _, tensors in changes(made.assign, zero, made.before)]
    ends = [tensors for _, tensors in changes(made.assign, zero, made.after)]
    found, at = [], 0
    for (kind, size), start, end in zip(made.update.sections, starts, ends, strict=True):
        found.append((kind, start, end, made.update.data[at : at + size]))
        at += size
    return found


def _zeros(parts: ModelParts) -> ModelParts:
    none = {name: np.zeros_like(value) for name, value in merge(parts).items()}
    return split(none)


def first_expert(made: Round) -> tuple[str, Tensors]:
    """What the frame of the page is of."""
    return kind_of_expert(made.assign.experts[0]), made.before.experts[0]
