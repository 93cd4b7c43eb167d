"""The peers of `flexmoe bench device`: eager PyTorch and the stock ExecuTorch runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime import turns
from edge_runtime.bench_step import RATES, program_path, random_batch
from edge_runtime.layout import ROLES
from edge_runtime.trainer import Batch
from model_export.cache import ProgramCache
from model_export.models import ModelSpec, MoE
from model_export.program import export_program, make_layout
from model_export.split import to_weights

SHAPES = {"digits": ((64,), 10), "har": ((9, 1, 128), 6), "cifar": ((3, 32, 32), 10)}
EXPERTS = 8

Array = NDArray[np.float32]


def variants(threads: int) -> tuple[str, ...]:
    """What can be measured with so many threads: the stock runtime takes one."""
    return ("eager", "stock", "stock_passes") if threads == 1 else ("eager",)


def spec_of(model: str) -> ModelSpec:
    """The reference model as the benchmark measures it."""
    shape, classes = SHAPES[model]
    return ModelSpec(model, shape, classes, EXPERTS)


def export_programs(folder: Path, models: Sequence[str], k: int, batch: int) -> None:
    """Write the native programs of `models` to `folder`, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    cache = ProgramCache()
    for model in models:
        for role in ROLES:
            program = cache.get(spec_of(model), k, batch, role, "native")
            program_path(folder, model, k, batch, role).write_bytes(program.data)


def step_flops(model: str, k: int, batch: int) -> int:
    """Multiplications and additions of products and convolutions in a step, as PyTorch counts."""
    from torch.utils.flop_counter import FlopCounterMode

    step = eager_step(model, k, batch, threads=1)
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def product(threads: int) -> Callable[[Array, Array], object]:
    """PyTorch's product of two matrices."""
    torch.set_num_threads(threads)
    return lambda a, b: torch.from_numpy(a) @ torch.from_numpy(b)


def eager_step(name: str, k: int, batch: int, threads: int) -> Callable[[], object]:
    """A training step as a PyTorch user writes it."""
    torch.set_num_threads(threads)
    model, data = _setting(name, k, batch)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    experts = torch.arange(k)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATES.learning_rate, momentum=RATES.momentum)

    def step() -> None:
        logits, _ = model(x, experts)
        loss = torch.nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def stock_step(name: str, k: int, batch: int, optimize: bool) -> Callable[[], object]:
    """The same on the stock runtime, with or without our graph passes."""
    from edge_runtime.executorch_trainer import ExecuTorchTrainer

    model, data = _setting(name, k, batch)
    programs = [
        export_program(spec_of(name), k, batch, role, "stock", optimize=optimize).data
        for role in ROLES
    ]
    trainer = ExecuTorchTrainer()
    trainer.load(*programs)
    trainer.assign(list(range(k)), {n: np.array(w) for n, w in to_weights(model).items()})
    return lambda: trainer.train_step(data, RATES)


def _setting(name: str, k: int, batch: int) -> tuple[MoE, Batch]:
    spec = spec_of(name)
    return MoE(spec, slots=k), random_batch(make_layout(spec, k, batch, "train", "native"))


def _work(variant: str, model: str, k: str, batch: str, threads: str) -> None:
    if variant == "eager":
        step = eager_step(model, int(k), int(batch), int(threads))
    else:
        step = stock_step(model, int(k), int(batch), optimize=variant == "stock_passes")
    turns.serve(step)


if __name__ == "__main__":
    _work(*sys.argv[1:])
