"""How do the assignment policies compare on real data? Whole runs, over several seeds.

    python benchmarks/policies_on_data.py [--experiment FILE] [--seeds N] [--policy NAME]... \\
        [--set KEY=VALUE]... [--json]

Each run is a `flexmoe run` of its own, with broker and device processes. Printed are mean and
standard deviation over the seeds of the figures after the last round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

POLICIES = ("flex_moe", "greedy", "random", "full")
FIGURES = ("global_accuracy", "device_accuracy", "load_cv", "usage_cv")
QUICKSTART = Path(__file__).parent.parent / "experiments" / "quickstart.toml"


def run(experiment: Path, policy: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """The last round's figures of one run, its mean bytes a round, and the sum of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "edge_runtime", "run", str(experiment)]
        command += ["--seed", str(seed), "--out", str(out)]
        for override in [*overrides, f"assignment.policy={policy}"]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", type=Path, default=QUICKSTART)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--policy", action="append", choices=POLICIES, help="only this one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    policies = options.policy or POLICIES
    runs: dict[str, list[dict[str, float]]] = {policy: [] for policy in policies}
    for seed in range(options.seeds):
        for policy in policies:
            runs[policy].append(run(options.experiment, policy, seed, options.overrides))
    if options.json:
        print(json.dumps({"experiment": options.experiment.stem, "runs": runs}))
        return
    print(f"{options.experiment.stem}, {options.seeds} seeds: mean (standard deviation)")
    print(f"{'policy':10}" + "".join(f"{figure:>20}" for figure in runs[policies[0]][0]))
    for policy, results in runs.items():
        cells = [_cell([result[figure] for result in results]) for figure in results[0]]
        print(f"{policy:10}" + "".join(f"{cell:>20}" for cell in cells))


def _cell(values: list[float]) -> str:
    mean = statistics.mean(values)
    digits = 4 if mean < 10 else 0
    return f"{mean:,.{digits}f} ({statistics.pstdev(values):,.{digits}f})"


if __name__ == "__main__":
    main()
