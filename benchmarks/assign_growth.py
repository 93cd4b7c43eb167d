"""How do the two assignment solvers grow with the fleet: seconds and memory, and log-log slopes?

    python benchmarks/assign_growth.py [--clients C...] [--experts E...] [--cp-sat C...] [--json]

`prices` over the clients at 64 experts, and over the experts at 10,000 clients; `cp_sat` over the
clients at 8 experts, up to the first size that it does not finish within the time limit. Instances
and measures are those of assign.py. A slope of 1 means: twice the size costs twice as much. Memory
is what the solve adds, so small instances, which fit into what the process has already, show little
of it; the slope of memory is fitted to the sizes that added at least 10 MiB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from assign import Result, Setup, add_options, cell, count, measure, setup_of

CLIENTS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
EXPERTS = (8, 16, 32, 64, 128, 256)
CP_SAT = (10, 20, 50, 100, 200, 500, 1_000)
AT_EXPERTS, AT_CLIENTS, CP_SAT_EXPERTS = 64, 10_000, 8

_LEAST_MIB = 10.0
_MEASURED = ("seconds", "peak_mib")


def series(solver: str, sizes: Sequence[tuple[int, int]], along: str, setup: Setup) -> Result:
    """The results of each size (clients, experts), and slopes over `along`, one of the two."""
    rows: list[Result] = []
    for clients, experts in sizes:
        result = measure([solver], clients, experts, setup)[solver]
        rows.append({"clients": clients, "experts": experts, **result})
        if solver == "cp_sat" and result["status"] != "optimal":
            break
    solved = [row for row in rows if row["objective"] is not None]
    if solver == "cp_sat":
        solved = [row for row in solved if row["status"] == "optimal"]
    slopes = {
        "seconds_slope": slope([(row[along], row["seconds"]) for row in solved]),
        "peak_mib_slope": slope(
            [(row[along], row["peak_mib"]) for row in solved if row["peak_mib"] >= _LEAST_MIB]
        ),
    }
    return {"solver": solver, "along": along, "rows": rows, **slopes}


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of a line through the logarithms, by least squares; None of fewer than 2 points."""
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("clients", CLIENTS), ("experts", EXPERTS), ("cp-sat", CP_SAT)):
        parser.add_argument(f"--{option}", type=count, nargs="*", default=default, metavar="N")
    add_options(parser)
    parser.set_defaults(time_limit=60.0)
    options = parser.parse_args()
    setup = setup_of(options)
    plan: tuple[tuple[str, str, list[tuple[int, int]]], ...] = (
        ("prices", "clients", [(c, AT_EXPERTS) for c in options.clients]),
        ("prices", "experts", [(AT_CLIENTS, e) for e in options.experts]),
        ("cp_sat", "clients", [(c, CP_SAT_EXPERTS) for c in options.cp_sat]),
    )
    found = [series(solver, sizes, along, setup) for solver, along, sizes in plan if sizes]
    print(json.dumps({"series": found}) if options.json else "\n\n".join(map(table, found)))


def table(found: dict[str, Any]) -> str:
    """A series as text."""
    lines = [
        f"{found['solver']} over {found['along']}: slope of seconds "
        f"{_figure(found['seconds_slope'])}, of peak MiB {_figure(found['peak_mib_slope'])}",
        f"{'clients':>9}{'experts':>9}{'seconds':>10}{'peak MiB':>10}{'gap %':>10}{'violation':>11}"
        "  status",
    ]
    for row in found["rows"]:
        gap = None if row["gap"] is None else 100 * row["gap"]
        lines.append(
            f"{row['clients']:9}{row['experts']:9}{cell(row['seconds'], 10, 3)}"
            f"{cell(row['peak_mib'], 10, 1)}{cell(gap, 10, 5)}"
            f"{cell(row['max_violation'], 11, 3)}  {row['status']}"
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
