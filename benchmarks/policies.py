"""How do the assignment policies compare where the truth is known? Simulated rounds.

    python benchmarks/policies.py [--rounds N] [--clients C]... [--experts E] [--seeds N] \\
        [--sizes uniform|dirichlet] [--delta D] [--participation P] [--explore SCALE] \\
        [--noise SD] [--drift SD] [--solver auto|exact|prices] [--policy NAME]... [--json]

The federation is that of `simulation.py`: n_c is 50 to 500 samples (or Dirichlet(1) shares), k_c is
1 to 4; ``fixed`` gets a round-robin file. Printed are mean and standard deviation over the seeds:
the objective (true quality of the assigned pairs, mean of the rounds), `load_cv` (std / mean over
experts of the samples of all rounds), `round_cv` (mean of the same of one round), how many experts
no round trained, regret, and the seconds of one decision.

Regret is (optimum - objective) / optimum. The planted optimum is what `flex_moe` gains that knows
the truth of all rounds and assigns them at once, under the load bounds of the last round. It is an
optimum among balanced assignments: a policy that ignores the bounds can gain more, and then has a
negative regret; `full` ignores the capacities as well. Where the bounds of single rounds cost
quality shows in the row `(informed)`: `flex_moe` round by round, as ever, but knowing the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from simulation import Fleet, Outcome, Settings, make_fleet, planted_optimum, round_robin, simulate

from broker_server.assignment import POLICIES, policy
from edge_runtime.errors import FlexmoeError

FIGURES = ("objective", "load_cv", "round_cv", "untrained", "regret")
ALSO = ("idle", "violation", "solve_s")


def compare(settings: Settings, names: list[str], seeds: int, solver: str) -> dict[str, Any]:
    """One fleet size: the policies' figures, the optimum, and what they were measured with."""
    flex_moe = policy("flex_moe", solver=solver)
    results: dict[str, list[Outcome]] = {name: [] for name in names}
    informed: list[Outcome] = []
    optima: list[float] = []
    for seed in range(seeds):
        fleet = make_fleet(settings, seed)
        optima.append(planted_optimum(settings, fleet, flex_moe))
        informed.append(simulate(settings, fleet, flex_moe, knows_truth=True))
        for name in names:
            results[name].append(_outcome(settings, fleet, name, solver))
    return {
        **asdict(settings),
        "seeds": seeds,
        "solver": solver,
        "policies": {name: _summary(outcomes, optima) for name, outcomes in results.items()},
        "informed": _summary(informed, optima),
        "optimum": statistics.mean(optima),
    }


def _outcome(settings: Settings, fleet: Fleet, name: str, solver: str) -> Outcome:
    if name == "flex_moe":
        return simulate(settings, fleet, policy(name, solver=solver))
    if name != "fixed":
        return simulate(settings, fleet, policy(name), everything=name == "full")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "round_robin.npy"
        np.save(file, round_robin(fleet))
        return simulate(settings, fleet, policy(name, file=file))


def _summary(outcomes: list[Outcome], optima: list[float]) -> dict[str, Any]:
    """Mean and spread over the seeds, and how many rounds each solver settled."""
    rows = [
        {**asdict(outcome), "regret": (optimum - outcome.objective) / optimum}
        for outcome, optimum in zip(outcomes, optima, strict=True)
    ]
    columns = {figure: [row[figure] for row in rows] for figure in (*FIGURES, *ALSO)}
    solvers: dict[str, int] = {}
    for outcome in outcomes:
        for solver, rounds in outcome.solvers.items():
            solvers[solver] = solvers.get(solver, 0) + rounds
    return {
        **{figure: statistics.mean(values) for figure, values in columns.items()},
        **{f"{figure}_std": statistics.pstdev(values) for figure, values in columns.items()},
        "solvers": solvers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=_count, default=100)
    parser.add_argument(
        "--clients", type=_count, action="append", help="20 by default; may be given repeatedly"
    )
    parser.add_argument("--experts", type=_count, default=8)
    parser.add_argument("--seeds", type=_count, default=3)
    parser.add_argument("--sizes", choices=("uniform", "dirichlet"), default="uniform")
    parser.add_argument("--delta", type=float, default=0.0)
    parser.add_argument("--participation", type=float, default=1.0)
    parser.add_argument("--explore", type=_scale, default=0.0)
    parser.add_argument("--noise", type=_scale, default=Settings.noise)
    parser.add_argument("--drift", type=_scale, default=Settings.drift)
    parser.add_argument("--solver", choices=("auto", "exact", "prices"), default="auto")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="only this one")
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    fleets, seeds, solver = given.pop("clients") or [20], given.pop("seeds"), given.pop("solver")
    names, as_json = given.pop("policy") or list(POLICIES), given.pop("json")
    try:
        results = {
            clients: compare(Settings(clients=clients, **given), names, seeds, solver)
            for clients in fleets
        }
    except FlexmoeError as error:
        sys.exit(str(error))
    if as_json:
        print(json.dumps(results[fleets[0]] if len(results) == 1 else {"fleets": results}))
        return
    for result in results.values():
        _print(result)


def _count(text: str) -> int:
    """A whole number from 1, or what argparse answers."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return number


def _scale(text: str) -> float:
    """A number from 0, or what argparse answers."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text}")
    return number


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['clients']} clients, {result['experts']} experts, {result['rounds']} rounds, "
        f"{result['seeds']} seeds, delta {result['delta']}: mean (standard deviation); "
        f"planted optimum {result['optimum']:.4f}"
    )
    columns = (*FIGURES, "solve_s")
    print(f"{'policy':14}" + "".join(f"{figure:>20}" for figure in columns))
    for name, row in {**result["policies"], "(informed)": result["informed"]}.items():
        cells = [f"{row[figure]:.4g} ({row[f'{figure}_std']:.2g})" for figure in columns]
        print(f"{name:14}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
