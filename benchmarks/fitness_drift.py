"""Do fitness scores drift, are early ones biased, and what does exploration change? Real runs.

    python benchmarks/fitness_drift.py [--experiment FILE] [--seeds N] [--explore SCALE]... \\
        [--set KEY=VALUE]... [--json]
    python benchmarks/fitness_drift.py RUN_DIR... [--json]

The first form does a `flexmoe run` for each seed and exploration scale (0 and 1 if none is given),
and prints mean and standard deviation over the seeds (that have the figure). The second looks at
runs that are there.

A run stores the quality Q of the pairs that were assigned; the other pairs keep theirs, from q0 on,
so the whole Q[c,e] of every round follows. A pair is *tried* when the client trained that expert,
and *observed* when its gate sent samples there: only then does Q move. Figures:

    global_accuracy, device_accuracy   after the last round
    tried, observed      share of all pairs, in the whole run
    unused               share of the trained experts that no sample was sent to
    variance             of Q over the rounds since a pair was first observed; mean over pairs
    late_variance        the same over the second half of the run
    first, later         mean fitness of a pair's first observation, and of its later ones; pairs
                         that were observed twice or more
    stale                share of the observed pairs that were not observed in the second half
    stale_quality, fresh_quality   mean Q at the end of those pairs, and of the other observed ones
    settled_80, settled_90   the round from which on a client's ranking of the experts by Q is like
                         that at the end: Spearman's correlation, mean over clients, stays above
                         0.8, or 0.9. Where pairs have the same Q they share a rank.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server import fitness
from broker_server.config import load_experiment
from broker_server.store import Store
from edge_runtime.errors import DataError, FlexmoeError

QUICKSTART = Path(__file__).parent.parent / "experiments" / "quickstart.toml"


@dataclass(frozen=True, eq=False)
class Scores:
    """A run's scores: `T` rounds, `C` clients by name, `E` experts.

    quality [T, C, E]: Q after each round. tried [T, C, E]: the client trained the expert. observed
    [T, C, E]: the fitness of the round; nan where no samples were sent to the expert.
    """

    quality: NDArray[np.float64]
    tried: NDArray[np.bool_]
    observed: NDArray[np.float64]
    global_accuracy: float
    device_accuracy: float


def read(run: Path) -> Scores:
    """The scores of the run in that directory. `DataError` if there is none, or no round of it."""
    with Store.open(run) as store:
        records = store.records()
    if not records:
        raise DataError(f"{run}: no round is finished there; expected a run with at least one")
    experiment = load_experiment(run / "config.toml")
    settings = experiment.fitness
    clients = sorted({part.client for record in records for part in record.clients})
    shape = (len(records), len(clients), experiment.model.experts)
    quality = np.full(shape, settings.q0)
    tried = np.zeros(shape, np.bool_)
    observed = np.full(shape, np.nan)
    for t, record in enumerate(records):
        quality[t] = quality[max(t - 1, 0)]
        for part in record.clients:
            if not part.usage:  # no answer that counted
                continue
            row = t, clients.index(part.client), part.experts
            scores = fitness.fitness(
                part.loss, part.hits, part.usage, settings.mode, settings.alpha
            )
            quality[row] = part.quality
            tried[row] = True
            observed[row] = np.where(np.array(part.usage) > 0, scores, np.nan)
    last = records[-1]
    return Scores(quality, tried, observed, last.global_accuracy, last.device_accuracy)


def correlations(quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's correlation [T] of the clients' rankings with those of the last round.

    quality [T, C, E]. The mean over the clients; one that ranks all experts the same, then or at
    the end, has no correlation and is left out.
    """
    here, other = quality[..., :, None], quality[..., None, :]
    ranks = (other < here).sum(axis=-1) - (other > here).sum(axis=-1)  # twice the rank, centred
    size = np.sqrt((ranks**2).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        each = (ranks * ranks[-1]).sum(axis=-1) / (size * size[-1])
    correlation: NDArray[np.float64] = _mean(each, axis=1)
    return correlation


def settled(correlation: NDArray[np.float64], level: float) -> float:
    """The first round, from 1, from which on the correlation [T] stays above `level`."""
    below = np.flatnonzero(~(correlation > level))
    return float(below[-1] + 2 if len(below) else 1)


def figures(scores: Scores) -> dict[str, float]:
    """The figures of the table; nan for one that the run does not have."""
    quality, observed = scores.quality, scores.observed
    half = len(quality) // 2
    seen = ~np.isnan(observed)
    ever, fresh = seen.any(axis=0), seen[half:].any(axis=0)
    since = np.where(seen.cumsum(axis=0) > 0, quality, np.nan)
    first, later = _first_and_later(observed)
    correlation = correlations(quality)
    return {
        "global_accuracy": scores.global_accuracy,
        "device_accuracy": scores.device_accuracy,
        "tried": float(scores.tried.any(axis=0).mean()),
        "observed": float(ever.mean()),
        "unused": float(1 - seen.sum() / scores.tried.sum()),
        "variance": float(_mean(_variance(since))),
        "late_variance": float(_mean(_variance(since[half:]))),
        "first": first,
        "later": later,
        "stale": float((ever & ~fresh).sum() / ever.sum()),
        "stale_quality": float(_mean(quality[-1][ever & ~fresh])),
        "fresh_quality": float(_mean(quality[-1][fresh])),
        "settled_80": settled(correlation, 0.8),
        "settled_90": settled(correlation, 0.9),
    }


def _first_and_later(observed: NDArray[np.float64]) -> tuple[float, float]:
    """Mean fitness of the first observation and of the later ones, over pairs that have both."""
    order = np.cumsum(~np.isnan(observed), axis=0)
    often = order[-1] > 1
    first = _mean(np.where(order == 1, observed, np.nan), axis=0)
    later = _mean(np.where(order > 1, observed, np.nan), axis=0)
    return float(_mean(first[often])), float(_mean(later[often]))


def _mean(values: NDArray[np.float64], axis: int | None = None) -> Any:
    """The mean of what is not nan; nan where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _variance(values: NDArray[np.float64]) -> Any:
    """The variance [C, E] over the rounds of what is not nan; nan where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanvar(values, axis=0)


def run(experiment: Path, explore: float, seed: int, overrides: list[str], out: Path) -> None:
    """A run of its own, with broker and device processes, into the directory `out`."""
    command = [sys.executable, "-m", "edge_runtime", "run", str(experiment)]
    command += ["--seed", str(seed), "--out", str(out)]
    for override in [*overrides, f"fitness.explore={explore}"]:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--experiment", type=Path, default=QUICKSTART)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--explore", type=float, action="append", help="0 and 1 by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    columns: dict[str, list[dict[str, Any]]] = {}
    try:
        for folder in options.runs:
            columns[str(folder)] = [_measured(folder)]
    except FlexmoeError as error:
        sys.exit(str(error))
    for explore in [] if options.runs else options.explore or [0.0, 1.0]:
        column = columns.setdefault(f"explore {explore:g}", [])
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                run(options.experiment, explore, seed, options.overrides, out)
                column.append(_measured(out))
    if options.json:
        name = None if options.runs else options.experiment.stem
        print(json.dumps(_plain({"experiment": name, "runs": columns})))
        return
    if not options.runs:
        print(f"{options.experiment.stem}, {options.seeds} seeds: mean (standard deviation)")
    print(f"{'':16}" + "".join(f"{name:>22}" for name in columns))
    for figure in next(iter(columns.values()))[0]:
        if figure != "correlation":
            cells = [_cell([result[figure] for result in results]) for results in columns.values()]
            print(f"{figure:16}" + "".join(f"{cell:>22}" for cell in cells))


def _measured(folder: Path) -> dict[str, Any]:
    scores = read(folder)
    return {**figures(scores), "correlation": correlations(scores.quality).tolist()}


def _plain(value: Any) -> Any:
    """`value` with None in place of nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(values: list[float]) -> str:
    """Mean and spread of the seeds that have the figure."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    spread = f" ({statistics.pstdev(known):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(known):.4f}{spread}"


if __name__ == "__main__":
    main()
