"""What does a training step cost on the stock ExecuTorch runtime, beside eager PyTorch?

    python benchmarks/train_step.py [--model digits|har|cifar] [--k 2] [--batch 32] [--json]

One thread, the three variants interleaved, medians. `stock_plain` is the program without our graph
passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from edge_runtime.executorch_trainer import ExecuTorchTrainer
from edge_runtime.trainer import Batch, Rates
from model_export.models import ModelSpec, MoE
from model_export.program import export_program
from model_export.split import to_weights

SHAPES = {"digits": ((64,), 10), "har": ((9, 1, 128), 6), "cifar": ((3, 32, 32), 10)}
RATES = Rates(learning_rate=0.01, momentum=0.9)
ROUNDS = 30


def steps(name: str, k: int, batch: int) -> dict[str, Callable[[], object]]:
    """A step of each variant, on the same data."""
    shape, classes = SHAPES[name]
    spec = ModelSpec(name, shape, classes, experts=8)
    rng = np.random.default_rng(0)
    data = Batch(
        rng.standard_normal((batch, *shape)).astype(np.float32),
        rng.integers(0, classes, batch),
        np.full(batch, 1 / batch, np.float32),
    )
    model = MoE(spec, slots=k)
    evaluation = export_program(spec, k, batch, "evaluate")
    chosen: dict[str, Callable[[], object]] = {"eager": _eager_step(model, data, k)}
    for variant, optimize in (("stock", True), ("stock_plain", False)):
        trainer = ExecuTorchTrainer()
        training = export_program(spec, k, batch, "train", optimize)
        trainer.load(training.data, evaluation.data)
        trainer.assign(list(range(k)), to_weights(model))
        chosen[variant] = lambda trainer=trainer: trainer.train_step(data, RATES)  # type: ignore[misc]
    return chosen


def _eager_step(model: MoE, data: Batch, k: int) -> Callable[[], object]:
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    experts = torch.arange(k)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATES.learning_rate, momentum=RATES.momentum)

    def step() -> None:
        logits, _ = model(x, experts)
        loss = torch.nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, k: int, batch: int) -> dict[str, float]:
    """Median milliseconds of each variant."""
    torch.set_num_threads(1)
    variants = steps(name, k, batch)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for round_number in range(ROUNDS + 3):
        for variant, step in variants.items():
            began = time.perf_counter()
            step()
            if round_number >= 3:  # the first ones warm up
                times[variant].append(1000 * (time.perf_counter() - began))
    medians = {f"{variant}_ms": statistics.median(values) for variant, values in times.items()}
    medians["stock_over_eager"] = medians["stock_ms"] / medians["eager_ms"]
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, action="append")
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {name: measure(name, options.k, options.batch) for name in options.model or SHAPES}
    if options.json:
        print(json.dumps(results))
        return
    print(f"{'model':8}{'eager ms':>10}{'stock ms':>10}{'no passes':>11}{'stock/eager':>13}")
    for name, result in results.items():
        print(
            f"{name:8}{result['eager_ms']:10.2f}{result['stock_ms']:10.2f}"
            f"{result['stock_plain_ms']:11.2f}{result['stock_over_eager']:13.1f}"
        )


if __name__ == "__main__":
    main()
