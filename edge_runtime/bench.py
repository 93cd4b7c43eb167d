"""`flexmoe bench device`: what a training step costs on this machine.

On a board only our trainer is measured, from program files (`flexmoe programs` writes them, and
wheels carry a set); where the server extra is installed, eager PyTorch and the stock ExecuTorch
runtime stand beside it, all taking turns. One thread unless told otherwise; the stock runtime takes
no more than one, so with more it is left out.

| column        | meaning                                                                     |
|---------------|-----------------------------------------------------------------------------|
| ours ms       | median of a step with SGD and momentum                                      |
| eager ms      | the same in PyTorch                                                         |
| stock ms      | the same program as core ATen, on the stock runtime                         |
| stock passes  | after our graph passes for the stock kernels, in ms                         |
| ours/eager    | our time over PyTorch's                                                     |
| stock/ours    | the stock runtime's time, without our passes, over ours                     |
| of peak       | our step's floating-point operations a second, over the best rate of a      |
|               | large product here, ours or PyTorch's                                       |
| eager of peak | the same of PyTorch's step                                                  |
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import bench_step, turns
from edge_runtime.bench_step import program_path
from edge_runtime.errors import ConfigError
from edge_runtime.layout import ROLES

BUNDLED = Path(__file__).with_name("bench_programs")
PEAK_SIZES = (256, 512, 768)
PEAK_REPEATS = 10
COLUMNS = (
    ("ours ms", "ours_ms", "{:.3f}"),
    ("eager ms", "eager_ms", "{:.3f}"),
    ("stock ms", "stock_ms", "{:.2f}"),
    ("stock passes", "stock_passes_ms", "{:.2f}"),
    ("ours/eager", "ours_over_eager", "{:.2f}"),
    ("stock/ours", "stock_over_ours", "{:.1f}"),
    ("of peak", "ours_share_of_peak", "{:.0%}"),
    ("eager of peak", "eager_share_of_peak", "{:.0%}"),
)

Array = NDArray[np.float32]


def report(
    models: Sequence[str], k: int, batch: int, threads: int, folder: Path | None, as_json: bool
) -> str:
    """What `measure` finds for each model, as a table or as one JSON object.

    The object is that of the model if there is one, else holds one for each model by name.
    """
    results = {model: measure(model, k, batch, threads, folder, turns.PACE) for model in models}
    if not as_json:
        return table(results)
    return json.dumps(results if len(models) > 1 else {"model": models[0], **results[models[0]]})


def measure(
    model: str,
    k: int,
    batch: int,
    threads: int = 1,
    folder: Path | None = None,
    pace: turns.Pace = turns.PACE,
) -> dict[str, float]:
    """Median milliseconds of each variant that this machine can run, and what follows.

    `folder` holds the programs; None: those of the wheel, or else ones exported now, if they can
    be. `ConfigError` says how to get them.
    """
    peers = _peers()
    with tempfile.TemporaryDirectory(prefix="flexmoe-bench-") as scratch:
        place = _programs(folder, model, k, batch, peers, Path(scratch))
        paths = [str(program_path(place, model, k, batch, role)) for role in ROLES]
        variants = {"ours": ["-m", bench_step.__name__, *paths, str(threads)]}
        for variant in peers.variants(threads) if peers is not None else ():
            sizes = [str(number) for number in (k, batch, threads)]
            variants[variant] = ["-m", peers.__name__, variant, model, *sizes]
        medians_s = turns.medians_s(variants, threads, pace)
    result = {f"{variant}_ms": 1000 * median_s for variant, median_s in medians_s.items()}
    peak = peak_flops(_own_product(threads)) / 1e9
    if peers is not None:
        peak = max(peak, peak_flops(peers.product(threads)) / 1e9)
        gflop = peers.step_flops(model, k, batch) / 1e9
        result["gflop"] = gflop
        result["ours_over_eager"] = result["ours_ms"] / result["eager_ms"]
        for stock in ("stock", "stock_passes"):
            if stock in medians_s:
                result[f"{stock}_over_ours"] = result[f"{stock}_ms"] / result["ours_ms"]
        for variant in ("ours", "eager"):
            result[f"{variant}_share_of_peak"] = gflop / medians_s[variant] / peak
    result["gemm_peak_gflops"] = peak
    return result


def peak_flops(product: Callable[[Array, Array], object]) -> float:
    """The best rate (FLOP/s) of `product` over large square matrices of float32."""
    best = 0.0
    for n in PEAK_SIZES:
        a, b = np.random.default_rng(n).standard_normal((2, n, n)).astype(np.float32)
        for _ in range(PEAK_REPEATS):
            began_s = time.perf_counter()
            product(a, b)
            best = max(best, 2 * n**3 / (time.perf_counter() - began_s))
    return best


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as text: the columns that every model has."""
    from edge_runtime.native import _native

    columns = [c for c in COLUMNS if all(c[1] in result for result in results.values())]
    lines = ["model   " + "".join(f"{head:>14}" for head, _, _ in columns)]
    for model, result in results.items():
        cells = "".join(f"{form.format(result[key]):>14}" for _, key, form in columns)
        lines.append(f"{model:8}{cells}")
    peak = max(result["gemm_peak_gflops"] for result in results.values())
    isa = _native.kernels().isa
    lines.append(f"kernels: {isa}; the largest products reach {peak:.0f} GFLOP/s here")
    return "\n".join(lines)


def _own_product(threads: int) -> Callable[[Array, Array], object]:
    from edge_runtime.native import _native

    return _native.kernels(threads=threads).gemm


def _peers() -> Any:
    """The other variants, if the server extra is installed here."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "executorch")):
        return None
    return importlib.import_module("model_export.bench")


def _programs(
    folder: Path | None, model: str, k: int, batch: int, peers: Any, scratch: Path
) -> Path:
    """The folder with the programs asked for; where that is possible, exported to `scratch`."""
    place = folder or BUNDLED
    if all(program_path(place, model, k, batch, role).is_file() for role in ROLES):
        return place
    if folder is None and peers is not None:
        peers.export_programs(scratch, [model], k, batch)
        return scratch
    raise ConfigError(
        f"no programs of {model} with k={k}, batch {batch} in {place}; write them "
        f"where the server is installed (flexmoe programs DIR --k {k} --batch {batch}), copy that "
        "folder here, and name it with --programs"
    )
