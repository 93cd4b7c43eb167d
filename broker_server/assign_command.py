"""`flexmoe assign`: the assignment engine on matrices of one's own.

Matrices come as `.npy` files (`numpy.save`). They are mapped, not read: the quality of a million
clients in float32 or float64 stays on disk. The answer is `X`, bool [C, E], as a `.npy` file, and
its certificate: how far from the best it can be, and what each expert gets.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from broker_server.assignment import Assignment, Problem, policy
from broker_server.load import GRAIN, coefficient_of_variation
from edge_runtime.errors import ConfigError, DataError

DEFAULT_OUT = Path("X.npy")
MOST_EXPERTS = 64
"""With more experts than this, loads are summed up and not listed."""

_WIDTH = 100
_LABEL = 15


@dataclass(frozen=True)
class Request:
    """What was asked for. `C` clients, `E` experts.

    quality: file of [C, E]. samples, capacity: file of whole numbers [C], or one number for all.
    history: file of [E], the loads before. fixed: the file of the policy `fixed`. out: where X
    goes; None: `DEFAULT_OUT`, if nothing is there. The rest as in `assignment.assign`.
    """

    quality: Path
    samples: str
    capacity: str
    policy: str = "flex_moe"
    delta: float = 0.02
    grain: float = GRAIN
    solver: str | None = None
    history: Path | None = None
    seed: int = 0
    fixed: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Report:
    """What came of a request; `total_s` counts reading, checking and writing too."""

    request: Request
    problem: Problem
    answer: Assignment
    out: Path
    total_s: float


def run(request: Request) -> Report:
    """Assign, and write X. Raises `ConfigError`, `DataError` or `FleetError`: then no file has
    changed."""
    started = time.perf_counter()
    decide = policy(request.policy, **_options(request))
    out = _free_place(request)
    quality = _matrix(request.quality)
    clients = quality.shape[0] if quality.ndim else 0
    problem = Problem.balanced(
        quality,
        _vector(request.samples, clients),
        _vector(request.capacity, clients),
        delta=request.delta,
        grain=request.grain,
        history=None if request.history is None else _matrix(request.history),
        seed=request.seed,
    )
    answer = decide(problem)
    _write(answer.X, out)
    return Report(request, problem, answer, out, time.perf_counter() - started)


def to_json(report: Report) -> str:
    """One JSON object; null where there is no certificate.

    load, violated, lower, upper: of each expert, in samples. round_cv: of these loads; load_cv: of
    them with the history.
    """
    request, problem, answer = report.request, report.problem, report.answer
    facts: dict[str, Any] = {
        "policy": request.policy,
        "solver": answer.solver,
        "clients": problem.clients,
        "experts": problem.experts,
        "delta": request.delta,
        "seed": request.seed,
        "objective": answer.objective,
        "bound": answer.bound,
        "gap": answer.gap,
        "violation": answer.violation,
        "violation_bound": answer.violation_bound,
        "load": answer.load.tolist(),
        "violated": answer.violated.tolist(),
        "lower": problem.lower.tolist(),
        "upper": problem.upper.tolist(),
        "round_cv": coefficient_of_variation(answer.load),
        "load_cv": coefficient_of_variation(_cumulative(report)),
        "solve_s": answer.solve_s,
        "total_s": report.total_s,
        "out": str(report.out),
    }
    known = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in facts.items()
    }
    return json.dumps(known, allow_nan=False)


def to_text(report: Report) -> str:
    """The certificate and the loads, in lines of at most 100 columns."""
    problem, answer = report.problem, report.answer
    load = answer.load
    lines = [
        ("policy", f"{report.request.policy}, by {answer.solver}"),
        ("size", f"{problem.clients} clients, {problem.experts} experts"),
        ("objective", f"{answer.objective:.8g}"),
        ("bound", _or_none(answer.bound, "{:.8g}")),
        ("gap", _or_none(100 * answer.gap, "{:.4f} %")),
        ("violation", _violation(answer)),
        ("time", f"{answer.solve_s:.3f} s to solve, {report.total_s:.3f} s in all"),
        (
            "load, samples",
            f"min {load.min()}, mean {load.mean():.1f}, max {load.max()}, "
            f"CV {coefficient_of_variation(load):.4f}",
        ),
    ]
    lines.append(("load bounds", _bounds(problem)))
    if report.request.history is not None:
        cumulative = coefficient_of_variation(_cumulative(report))
        lines.append(("with history", f"CV {cumulative:.4f}"))
    if problem.experts <= MOST_EXPERTS:
        lines += _load_table(answer)
    lines.append(("written", f"{report.out}, bool [{problem.clients}, {problem.experts}]"))
    return "\n".join(f"{label:{_LABEL}}{text}" for label, text in lines)


def _options(request: Request) -> dict[str, Any]:
    """The options of the policy itself."""
    options: dict[str, Any] = {}
    if request.solver is not None:
        if request.policy != "flex_moe":
            raise ConfigError(f"--solver is for --policy flex_moe, not {request.policy}")
        options["solver"] = request.solver
    if (request.fixed is not None) != (request.policy == "fixed"):
        raise ConfigError(
            "--policy fixed needs --fixed FILE: the assignment to use"
            if request.fixed is None
            else f"--fixed is for --policy fixed, not {request.policy}"
        )
    if request.fixed is not None:
        options["file"] = request.fixed
    return options


def _free_place(request: Request) -> Path:
    """Where X may go, found before the work is done."""
    out = request.out or DEFAULT_OUT
    there = os.path.exists(out)
    if there and request.out is None:
        raise ConfigError(f"{out} is there already; replace it with --out {out}, or name another")
    given = (request.quality, request.history, request.fixed, request.samples, request.capacity)
    if there and any(p and os.path.exists(p) and os.path.samefile(out, p) for p in given):
        raise ConfigError(f"--out {out} is one of the inputs; name another file")
    if not os.access(out.parent, os.W_OK) or (there and not os.path.isfile(out)):
        raise ConfigError(f"--out {out}: expected a file, in a folder that can be written to")
    return out


def _matrix(path: Path) -> NDArray[Any]:
    """The array of a `.npy` file, mapped and read-only."""
    try:
        return open_memmap(path, mode="r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged header fails in as many ways as Python's own parser
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: expected an array of numbers, written by numpy.save ({reason})"
        ) from None


def _vector(text: str, clients: int) -> NDArray[Any]:
    """The array of a file, or a plain number for each client."""
    if text.isdecimal() and len(text) <= 18:  # more digits would not fit an int64
        return np.full(clients, int(text))
    if not os.path.isfile(text):
        raise ConfigError(f"{text!r}: expected a whole number of 1 or more, or a .npy file of them")
    return _matrix(Path(text))


def _write(X: NDArray[np.bool_], out: Path) -> None:
    """Whole or not at all: a full disk must not leave half a file."""
    place = Path(os.path.realpath(out))  # a link stays one
    part = place.with_name(f".assign-{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.save(file, X, allow_pickle=False)
        part.replace(place)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _cumulative(report: Report) -> NDArray[Any]:
    history = report.problem.history
    load = report.answer.load
    return load if history is None else history + load


def _bounds(problem: Problem) -> str:
    low, high = problem.lower, problem.upper
    if np.ptp(low) == np.ptp(high) == 0:
        return f"{low[0]:.1f} to {high[0]:.1f} for every expert"
    return f"lower {low.min():.1f} to {low.max():.1f}, upper {high.min():.1f} to {high.max():.1f}"


def _or_none(value: float, form: str) -> str:
    return "none: this policy gives no certificate" if math.isnan(value) else form.format(value)


def _violation(answer: Assignment) -> str:
    outside = int(np.count_nonzero(answer.violated))
    text = f"{answer.violation:.2f} samples outside the load bounds, {outside} experts"
    if not math.isnan(answer.violation_bound):
        text += f"; none has less than {answer.violation_bound:.2f}"
    return text


def _load_table(answer: Assignment) -> list[tuple[str, str]]:
    """The loads in rows of at most 8; ``*`` marks those outside their bounds."""
    cells = [
        f"{load}{'*' if off else ' '}"
        for load, off in zip(answer.load.tolist(), answer.violated.tolist(), strict=True)
    ]
    width = max(map(len, cells)) + 1
    columns = min(8, (_WIDTH - _LABEL) // width)
    rows = []
    for first in range(0, len(cells), columns):
        row = cells[first : first + columns]
        text = "".join(f"{cell:>{width}}" for cell in row).rstrip()
        rows.append((f"  {first} to {first + len(row) - 1}", text))
    if answer.violated.any():
        rows.append(("", "* outside its bounds"))
    return rows
