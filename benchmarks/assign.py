"""What does an assignment cost: our two solvers, and the linear programs that one would try first.

    python benchmarks/assign.py --clients C --experts E [--solver NAME]... [--uniform] [--json]

| solver | what it is                                                          | its answer     |
|--------|---------------------------------------------------------------------|----------------|
| prices | ours: one price an expert, for any size                             | an assignment  |
| cp_sat | ours: the integer program, by CP-SAT of OR-Tools                     | an assignment  |
| glop   | the linear relaxation by the simplex method of OR-Tools             | a bound, and   |
| pdlp   | the same by the first-order method of OR-Tools, at its own accuracy | some clients   |
| highs  | the same by HiGHS, through scipy                                    | hold fractions |

All solve the same instance (see assign_instance.py), each in a process of its own, taking turns
where they repeat. `seconds` starts with the numpy arrays: building the program counts, loading the
libraries does not. `peak MiB` is by how much the process's memory grew over what it had before;
from a million clients on it counts the pages of the mapped quality, too. The gap is
(bound - objective) / |bound|; the violation is by how many samples the worst expert's load is
outside its bounds. A solver over the time limit or the memory limit is stopped; `prices` has no
time limit of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import assign_instance
import psutil
from assign_solvers import SOLVERS, peak_mib

ROOT = Path(__file__).parents[1]
GRACE_S = 30.0
"""How long after its limit a solver may take to notice; then it is killed, and has nothing."""

_POLL_S = 0.02
_OUT_OF_MEMORY = ("memoryerror", "bad_alloc", "allocate memory")
_NOTHING = {"objective": None, "bound": None, "gap": None, "max_violation": None}

Result = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """How the solvers are measured: the instance's kind, and the limits of each solver."""

    seed: int = 0
    delta: float = 0.05
    uniform: bool = False
    limit_s: float = 400.0
    memory_gib: float = 16.0
    repeat: int = 1


def measure(solvers: Sequence[str], clients: int, experts: int, setup: Setup) -> dict[str, Result]:
    """What each solver did; of several repeats, the one of median time."""
    runs: dict[str, list[Result]] = {name: [] for name in solvers}
    with tempfile.TemporaryDirectory(prefix="flexmoe-assign-") as scratch:
        folder = Path(scratch)
        assign_instance.write(folder, clients, experts, setup.seed, setup.delta, setup.uniform)
        for _ in range(setup.repeat):
            for name in solvers:
                runs[name].append(_run(name, folder, setup))
    by_time = {name: sorted(found, key=lambda r: r["seconds"]) for name, found in runs.items()}
    return {name: found[len(found) // 2] for name, found in by_time.items()}


def _run(name: str, folder: Path, setup: Setup) -> Result:
    """One solver, once. One that does not stop by itself is killed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "assign_solvers.py")]
    command += [name, str(folder), str(setup.limit_s)]
    limit = round(setup.memory_gib * 2**30)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this code, whatever is installed
    said, errors = folder / "stdout", folder / "stderr"
    with said.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        began_s, most_mib = time.perf_counter(), 0.0
        try:
            while process.poll() is None and not _over(began_s, setup):
                most_mib = max(most_mib, peak_mib(process.pid))
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
    seconds = time.perf_counter() - began_s
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    if len(lines) == 2:
        result: Result = lines[1]
        return result
    reason = errors.read_text()
    if _over(began_s, setup):
        status = "time limit"
    elif any(word in reason.lower() for word in _OUT_OF_MEMORY):
        status = "memory limit"
    else:
        status = "failed"
        print(f"{name}: ended with code {process.returncode}: {reason.strip()}", file=sys.stderr)
    grown = most_mib - lines[0]["before_mib"] if lines else None
    return {"seconds": seconds, **_NOTHING, "status": status, "peak_mib": grown}


def _over(began_s: float, setup: Setup) -> bool:
    return time.perf_counter() - began_s > setup.limit_s + GRACE_S


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a `Setup`."""
    parser.add_argument("--seed", type=partial(count, least=0), default=0)
    parser.add_argument("--delta", type=size, default=0.05, help="of the load bounds")
    parser.add_argument("--uniform", action="store_true", help="quality without specialities")
    limit = "of a solver [default: %(default)g]"
    parser.add_argument("--time-limit", type=size, default=400.0, metavar="S", help=limit)
    memory = psutil.virtual_memory().available / 2**30 * 0.75
    parser.add_argument("--memory-limit", type=size, default=memory, metavar="GIB")
    parser.add_argument("--repeat", type=count, default=1, metavar="N", help="[default: 1]")
    parser.add_argument("--json", action="store_true")


def setup_of(options: argparse.Namespace) -> Setup:
    """The `Setup` that was asked for."""
    return Setup(
        seed=options.seed,
        delta=options.delta,
        uniform=options.uniform,
        limit_s=options.time_limit,
        memory_gib=options.memory_limit,
        repeat=options.repeat,
    )


def count(text: str, least: int = 1) -> int:
    """An option's whole number, from `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
    return int(text)


def size(text: str) -> float:
    """An option's number, from 0."""
    try:
        if 0 <= (value := float(text)) < math.inf:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=count, required=True, metavar="C")
    parser.add_argument("--experts", type=count, required=True, metavar="E")
    parser.add_argument("--solver", action="append", choices=SOLVERS, help="only this one")
    add_options(parser)
    options = parser.parse_args()
    clients, experts = options.clients, options.experts
    results = measure(options.solver or list(SOLVERS), clients, experts, setup_of(options))
    if options.json:
        print(json.dumps({"clients": clients, "experts": experts, "solvers": results}))
        return
    print(f"{clients} clients, {experts} experts; peak MiB: over what was held before the solve")
    print(
        f"{'solver':8}{'seconds':>10}{'objective':>16}{'bound':>16}{'gap %':>10}"
        f"{'violation':>11}{'peak MiB':>10}  status"
    )
    for name, result in results.items():
        gap = None if result["gap"] is None else 100 * result["gap"]
        print(
            f"{name:8}{cell(result['seconds'], 10, 3)}{cell(result['objective'], 16, 3)}"
            f"{cell(result['bound'], 16, 3)}{cell(gap, 10, 5)}"
            f"{cell(result['max_violation'], 11, 3)}{cell(result['peak_mib'], 10, 1)}"
            f"  {result['status']}"
        )


def cell(value: float | None, width: int, digits: int) -> str:
    """A number in a column; ``-`` where there is none."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


if __name__ == "__main__":
    main()
