"""The step that `flexmoe bench device` measures, and the worker that takes it with our trainer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_runtime import turns
from edge_runtime.layout import ProgramLayout
from edge_runtime.trainer import Batch, Rates

MODELS = ("digits", "har", "cifar")
RATES = Rates(learning_rate=0.01, momentum=0.9)


def program_path(folder: Path, model: str, k: int, batch: int, role: str) -> Path:
    """Where the native program of a model for the benchmark lies in `folder`."""
    return folder / f"{model}-k{k}-b{batch}-{role}.pte"


def random_batch(layout: ProgramLayout) -> Batch:
    """A full batch of noise for a program of `layout`."""
    rng = np.random.default_rng(1)
    return Batch(
        rng.standard_normal((layout.batch, *layout.shape)).astype(np.float32),
        rng.integers(0, layout.classes, layout.batch),
        np.full(layout.batch, 1 / layout.batch, np.float32),
    )


def _work(training: str, evaluation: str, threads: str) -> None:
    """Be the worker of our trainer."""
    from edge_runtime.native_trainer import NativeTrainer

    trainer = NativeTrainer(threads=int(threads))
    trainer.load(Path(training).read_bytes(), Path(evaluation).read_bytes())
    layout = trainer.layout
    rng = np.random.default_rng(0)
    weights = {w.name: rng.uniform(-0.1, 0.1, w.shape).astype(np.float32) for w in layout.weights}
    trainer.assign(list(range(layout.k)), weights)
    batch = random_batch(layout)
    turns.serve(lambda: trainer.train_step(batch, RATES))


if __name__ == "__main__":
    _work(*sys.argv[1:])
