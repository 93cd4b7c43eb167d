"""How many bytes does a round cost, and what does saving them cost in accuracy?

    python benchmarks/bytes_per_round.py [--data DIR] [--task digits|har|cifar]... [--seeds N]
        [--rounds N] [--json]

The same experiment (those in `experiments/`) in four ways, each a `flexmoe run` of its own with
broker and device processes:

    dense    federated averaging of the full model, float32, all experts to and from every device
    subset   each device's experts only, lossless
    default  the same with the preset `default`: what a user gets who asks for nothing
    narrow   the same with the preset `narrow`

Bytes are those of the devices' links, whole MQTT packets, both directions, everything in it
(messages, programs on first sight, the connection); means over rounds and seeds. Devices begin with
empty caches. Accuracy is the global model's after the last round. DIR holds the data sets (default:
FLEXMOE_DATA, else ../shared/data); cifar runs only if it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPERIMENTS = {"digits": ("quickstart", ""), "har": ("har", "uci_har.npz")}
EXPERIMENTS["cifar"] = ("cifar", "cifar10_small.npz")
RAW = ["wire.preset=lossless", *(f"wire.{way}=raw" for way in ("uplink", "downlink", "whole"))]
WAYS = {
    "dense": ["assignment.policy=full", *RAW],
    "subset": ["wire.preset=lossless"],
    "default": ["wire.preset=default"],
    "narrow": ["wire.preset=narrow"],
}
_BYTES = ("uplink_bytes", "downlink_bytes", "egress_bytes")


def run(
    task: str, way: str, seed: int, rounds: int | None, data: Path, cache: Path
) -> dict[str, float]:
    """A run's mean bytes a round, and its accuracy after the last one."""
    name, file = EXPERIMENTS[task]
    shutil.rmtree(cache / "devices", ignore_errors=True)
    changes = [*WAYS[way], *([f"data.path={data / file}"] if file else [])]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "edge_runtime", "run"]
        command += [str(ROOT / "experiments" / f"{name}.toml"), "--out", str(out)]
        command += ["--seed", str(seed)] + (["--rounds", str(rounds)] if rounds else [])
        command += [argument for change in changes for argument in ("--set", change)]
        environment = {**os.environ, "FLEXMOE_CACHE": str(cache)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr.strip())
        final = json.loads((out / "report.json").read_text())["final"]
    figures = {key: final[key] / final["rounds"] for key in _BYTES}
    figures["bytes_per_round"] = figures["uplink_bytes"] + figures["downlink_bytes"]
    return {**figures, "accuracy": final["global_accuracy"]}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds, and the accuracy's sample standard deviation; 0 of one seed."""
    mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
    accuracy = mean.pop("accuracy")
    spread = statistics.stdev(run["accuracy"] for run in runs) if len(runs) > 1 else 0.0
    return {**mean, "accuracy_mean": accuracy, "accuracy_std": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--task", action="append", choices=list(EXPERIMENTS), help="only this one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="in place of the experiment's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = options.data or Path(os.environ.get("FLEXMOE_DATA", ROOT.parent / "shared" / "data"))
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for task in options.task or ["digits", "har"]:
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for seed in range(options.seeds):
                for way in WAYS:
                    runs[way].append(run(task, way, seed, options.rounds, data, Path(cache)))
            results[task] = {way: summary(found) for way, found in runs.items()}
            if not options.json:
                _print(task, options.seeds, results[task])
    if options.json:
        print(json.dumps(results))


def _print(task: str, seeds: int, ways: dict[str, dict[str, float]]) -> None:
    print(f"\n{task}, {seeds} seeds")
    print(f"{'':8}{'KB a round':>12}{'up':>10}{'down':>10}{'egress':>10}{'fewer':>8}  accuracy")
    for way, figures in ways.items():
        total, up, down = (
            figures[key] / 1000 for key in ("bytes_per_round", "uplink_bytes", "downlink_bytes")
        )
        fewer = ways["dense"]["bytes_per_round"] / figures["bytes_per_round"]
        print(
            f"{way:8}{total:12,.1f}{up:10,.1f}{down:10,.1f}{figures['egress_bytes'] / 1000:10,.1f}"
            f"{fewer:7.1f}x  {figures['accuracy_mean']:.4f} ({figures['accuracy_std']:.4f})"
        )


if __name__ == "__main__":
    main()
