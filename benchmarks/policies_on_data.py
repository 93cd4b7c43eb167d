"""How do the assignment policies compare on real data? Whole runs, over several seeds.

    python benchmarks/policies_on_data.py [--experiment FILE] [--seeds N] [--policy NAME]... \\
        [--set KEY=VALUE]... [--json]

Each run is a `flexmoe run` of its own, with broker and device processes. ``fixed`` is given a
round-robin file. Printed are mean and standard deviation over the seeds of the figures after the
last round, the mean bytes a round, and the seconds of all rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment import POLICIES
from broker_server.config import Experiment, load_experiment

FIGURES = ("global_accuracy", "device_accuracy", "load_cv", "usage_cv", "routed_cv")
QUICKSTART = Path(__file__).parent.parent / "experiments" / "quickstart.toml"


def run(experiment: Path, policy: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """The last round's figures of one run, its mean bytes a round, and the sum of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "edge_runtime", "run", str(experiment)]
        command += ["--seed", str(seed), "--out", str(out)]
        chosen = [*overrides, f"assignment.policy={policy}"]
        if policy == "fixed":
            file = Path(folder) / "fixed.npy"
            np.save(file, round_robin(load_experiment(experiment, overrides)))
            chosen.append(f"assignment.file={file}")
        for override in chosen:
            command += ["--set", override]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr.strip())
        rounds = json.loads((out / "report.json").read_text())["rounds"]
    moved = [r["uplink_bytes"] + r["downlink_bytes"] for r in rounds]
    return {
        **{figure: rounds[-1][figure] for figure in FIGURES},
        "bytes_per_round": statistics.mean(moved),
        "rounds_s": sum(r["round_s"] for r in rounds),
    }


def round_robin(experiment: Experiment) -> NDArray[np.bool_]:
    """A fixed assignment [devices, E]: each device takes the k experts after the last one's."""
    experts, devices = experiment.model.experts, experiment.data.devices
    asked = np.array([experiment.model.experts_asked(device) for device in range(devices)])
    first = np.cumsum(asked) - asked
    X: NDArray[np.bool_] = (np.arange(experts) - first[:, None]) % experts < asked[:, None]
    return X


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", type=Path, default=QUICKSTART)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="only this one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    policies = options.policy or list(POLICIES)
    runs: dict[str, list[dict[str, float]]] = {policy: [] for policy in policies}
    for seed in range(options.seeds):
        for policy in policies:
            runs[policy].append(run(options.experiment, policy, seed, options.overrides))
    if options.json:
        print(json.dumps({"experiment": options.experiment.stem, "runs": runs}))
        return
    print(f"{options.experiment.stem}, {options.seeds} seeds: mean (standard deviation)")
    print(f"{'policy':12}" + "".join(f"{figure:>20}" for figure in runs[policies[0]][0]))
    for policy, results in runs.items():
        cells = [_cell([result[figure] for result in results]) for figure in results[0]]
        print(f"{policy:12}" + "".join(f"{cell:>20}" for cell in cells))


def _cell(values: list[float]) -> str:
    mean = statistics.mean(values)
    digits = 4 if mean < 10 else 0
    return f"{mean:,.{digits}f} ({statistics.pstdev(values):,.{digits}f})"


if __name__ == "__main__":
    main()
