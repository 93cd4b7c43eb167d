"""`flexmoe bench device`: what a training step costs on this machine.

One thread unless told otherwise. On a board only our trainer is measured, from program files
(`flexmoe programs` writes them, and wheels carry a set); where the server extra is installed, eager
PyTorch and the stock ExecuTorch runtime stand beside it, all taking turns.

| column           | meaning                                                              |
|------------------|----------------------------------------------------------------------|
| ours ms          | median of a step with SGD and momentum                               |
| eager ms         | the same in PyTorch                                                  |
| stock ms         | the same program as core ATen, on the stock runtime                  |
| stock passes     | after our graph passes for the stock kernels                         |
| of peak          | the step's multiply-adds a second, over the best rate of a large     |
|                  | product here, ours or PyTorch's                                      |
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import turns
from edge_runtime.errors import ConfigError
from edge_runtime.layout import ProgramLayout
from edge_runtime.trainer import Batch, Rates

MODELS = ("digits", "har", "cifar")
BUNDLED = Path(__file__).with_name("bench_programs")
RATES = Rates(learning_rate=0.01, momentum=0.9)
PEAK_SIZES = (256, 512, 768)
PEAK_REPEATS = 10


def program_path(folder: Path, model: str, k: int, batch: int, role: str) -> Path:
    """Where the native program of a model for the benchmark lies in `folder`."""
    return folder / f"{model}-k{k}-b{batch}-{role}.pte"


def run(arguments: Sequence[str]) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(
        prog="flexmoe bench device", description="What a training step costs on this machine."
    )
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--k", type=int, default=2, help="experts of the subset model")
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--threads", type=int, default=1, help="of our trainer")
    parser.add_argument("--programs", type=Path, metavar="DIR", help="the folder of program files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    results = {
        model: measure(model, options.k, options.batch, options.threads, options.programs)
        for model in options.model or MODELS
    }
    print(json.dumps(results) if options.json else table(results))
    return 0


def measure(
    model: str, k: int, batch: int, threads: int = 1, folder: Path | None = None
) -> dict[str, float]:
    """Median milliseconds of each variant that this machine can run, and what follows."""
    peers = _peers()
    folder = _programs(folder, model, k, batch, peers)
    paths = [str(program_path(folder, model, k, batch, role)) for role in ("train", "evaluate")]
    variants = {"ours": ["-m", "edge_runtime.bench", *paths, str(threads)]}
    if peers is not None:
        for variant in peers.VARIANTS:
            variants[variant] = ["-m", peers.__name__, variant, model, str(k), str(batch)]
    result = {f"{v}_ms": 1000 * s for v, s in turns.medians_s(variants).items()}
    ours_s = result["ours_ms"] / 1000
    result["gemm_peak_gflops"] = gemm_peak_flops(threads) / 1e9
    if peers is not None:
        peak = max(result["gemm_peak_gflops"], peers.gemm_peak_flops(PEAK_SIZES) / 1e9)
        gflop = peers.step_flops(model, k, batch) / 1e9
        result["gemm_peak_gflops"] = peak
        result["gflop"] = gflop
        result["ours_over_eager"] = result["ours_ms"] / result["eager_ms"]
        result["stock_over_ours"] = result["stock_ms"] / result["ours_ms"]
        result["stock_passes_over_ours"] = result["stock_passes_ms"] / result["ours_ms"]
        result["ours_share_of_peak"] = gflop / ours_s / peak
        result["eager_share_of_peak"] = gflop / (result["eager_ms"] / 1000) / peak
    return result


def gemm_peak_flops(threads: int = 1) -> float:
    """The best rate (FLOP/s) of our square float32 products."""
    from edge_runtime.native import _native

    kernels = _native.kernels(threads=threads)
    best = 0.0
    for n in PEAK_SIZES:
        a, b = np.random.default_rng(n).standard_normal((2, n, n)).astype(np.float32)
        for _ in range(PEAK_REPEATS):
            began_s = time.perf_counter()
            kernels.gemm(a, b)
            best = max(best, 2 * n**3 / (time.perf_counter() - began_s))
    return best


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as text."""
    from edge_runtime.native import _native

    columns = [
        ("ours ms", "ours_ms", "{:.3f}"),
        ("eager ms", "eager_ms", "{:.3f}"),
        ("stock ms", "stock_ms", "{:.2f}"),
        ("stock passes", "stock_passes_ms", "{:.2f}"),
        ("ours/eager", "ours_over_eager", "{:.2f}"),
        ("stock/ours", "stock_over_ours", "{:.1f}"),
        ("of peak", "ours_share_of_peak", "{:.0%}"),
        ("eager of peak", "eager_share_of_peak", "{:.0%}"),
    ]
    columns = [c for c in columns if all(c[1] in result for result in results.values())]
    lines = ["model   " + "".join(f"{head:>14}" for head, _, _ in columns)]
    for model, result in results.items():
        cells = "".join(f"{form.format(result[key]):>14}" for _, key, form in columns)
        lines.append(f"{model:8}{cells}")
    peak = max(result["gemm_peak_gflops"] for result in results.values())
    isa = _native.kernels().isa
    lines.append(f"kernels: {isa}; the largest products reach {peak:.0f} GFLOP/s here")
    return "\n".join(lines)


def _peers() -> Any:
    """The other variants, if the server extra is installed here."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "executorch")):
        return None
    return importlib.import_module("model_export.bench")


def _programs(folder: Path | None, model: str, k: int, batch: int, peers: Any) -> Path:
    """The folder with the programs asked for; exported now where that is possible."""
    for place in (folder,) if folder else (BUNDLED,):
        if all(program_path(place, model, k, batch, r).is_file() for r in ("train", "evaluate")):
            return place
    if folder is None and peers is not None:
        exported: Path = peers.export_programs(None, [model], k, batch)
        return exported
    raise ConfigError(
        f"no programs of {model} with k={k}, batch {batch} in {folder or BUNDLED}; write them "
        f"where the server is installed (flexmoe programs DIR --k {k} --batch {batch}), copy that "
        "folder here, and name it with --programs"
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


def random_batch(layout: ProgramLayout) -> Batch:
    """A full batch of noise for a program of `layout`."""
    rng = np.random.default_rng(1)
    return Batch(
        rng.standard_normal((layout.batch, *layout.shape)).astype(np.float32),
        rng.integers(0, layout.classes, layout.batch),
        np.full(layout.batch, 1 / layout.batch, np.float32),
    )


if __name__ == "__main__":
    _work(*sys.argv[1:])
